# Compiler settings, and the two functions by which every target is declared.

include(CheckCXXCompilerFlag)

# What every target of this build has in common. Consumers of the installed libraries get only the
# include path and the language level.
add_library(turnkeep_settings INTERFACE)
set_target_properties(turnkeep_settings PROPERTIES EXPORT_NAME settings)
target_include_directories(turnkeep_settings INTERFACE
  $<BUILD_INTERFACE:${PROJECT_SOURCE_DIR}/src> $<INSTALL_INTERFACE:include/turnkeep>)
target_compile_features(turnkeep_settings INTERFACE cxx_std_20)
set(turnkeep_warnings -Wall -Wextra -Werror -Wno-missing-field-initializers)
if(CMAKE_CXX_COMPILER_ID STREQUAL "Clang")
  list(APPEND turnkeep_warnings -Wthread-safety -Wno-unused-command-line-argument)
else()
  # GCC 12 at -O2 and above sees uninitialised and overlapping bytes inside moved std::string
  # members where there are none; clang's -Wuninitialized and the sanitizers stay.
  list(APPEND turnkeep_warnings -Wno-maybe-uninitialized -Wno-restrict)
endif()
target_compile_options(turnkeep_settings INTERFACE
  "$<BUILD_INTERFACE:$<$<COMPILE_LANGUAGE:CXX>:${turnkeep_warnings};-fno-omit-frame-pointer>>")
target_compile_definitions(turnkeep_settings INTERFACE
  $<BUILD_INTERFACE:TURNKEEP_VERSION="${PROJECT_VERSION}">)
if(TURNKEEP_SANITIZER)
  target_compile_options(turnkeep_settings INTERFACE
    "$<BUILD_INTERFACE:-fsanitize=${TURNKEEP_SANITIZER};-fno-sanitize-recover=all>")
  target_link_options(turnkeep_settings INTERFACE
    "$<BUILD_INTERFACE:-fsanitize=${TURNKEEP_SANITIZER}>")
  if(TURNKEEP_SANITIZER MATCHES thread)
    # ThreadSanitizer sees nothing of the locks in Debian's Abseil unless it is told.
    add_library(turnkeep_tsan_locks STATIC ${PROJECT_SOURCE_DIR}/cmake/ThreadSanitizerLocks.cc)
    target_compile_options(turnkeep_tsan_locks PRIVATE -std=c++20)
    target_link_libraries(turnkeep_settings INTERFACE $<BUILD_INTERFACE:turnkeep_tsan_locks>)
    file(STRINGS ${PROJECT_SOURCE_DIR}/cmake/ThreadSanitizerLocks.cc turnkeep_wrapped
      REGEX "^TURNKEEP_WRAP")
    foreach(line IN LISTS turnkeep_wrapped)
      string(REGEX MATCH "_ZN[A-Za-z0-9_]+" symbol ${line})
      # Wanted in every program: libraries that it links refer to it too.
      target_link_options(turnkeep_settings INTERFACE
        $<BUILD_INTERFACE:LINKER:--wrap=${symbol},--undefined=__wrap_${symbol}>)
    endforeach()
    # It does not know fences either. Asio has its mutexes beside them.
    target_compile_definitions(turnkeep_settings INTERFACE
      $<BUILD_INTERFACE:BOOST_ASIO_DISABLE_FENCED_BLOCK>)
  endif()
endif()

# The tests' own sources gain nothing from more.
set(turnkeep_test_options $<$<CONFIG:Release>:-O1>)

find_program(CCACHE ccache)
if(CCACHE AND NOT CMAKE_CXX_COMPILER_LAUNCHER)
  set(CMAKE_CXX_COMPILER_LAUNCHER ${CCACHE})
endif()

# turnkeep_layer(<name> SOURCES ... PUBLIC ... PRIVATE ...)
# One library per layer. PUBLIC and PRIVATE are what it links; layers only link downward.
function(turnkeep_layer name)
  cmake_parse_arguments(ARG "" "" "SOURCES;PUBLIC;PRIVATE" ${ARGN})
  add_library(${name} STATIC ${ARG_SOURCES})
  target_link_libraries(${name} PUBLIC turnkeep_settings ${ARG_PUBLIC} PRIVATE ${ARG_PRIVATE})
  turnkeep_precompile(${name} turnkeep_precompiled)
  string(FIND ${CMAKE_CURRENT_SOURCE_DIR} ${PROJECT_SOURCE_DIR}/src/ in_src)
  if(in_src EQUAL 0)
    turnkeep_export(${name})
  endif()
endfunction()

# turnkeep_export(<library>): installs it and exports it, turnkeep_client as turnkeep::client, which
# is also its name inside this build. turnkeep_layer() does so for what lies under src.
function(turnkeep_export name)
  string(REGEX REPLACE "^turnkeep_" "" short ${name})
  set_target_properties(${name} PROPERTIES EXPORT_NAME ${short})
  add_library(turnkeep::${short} ALIAS ${name})
  set_property(GLOBAL APPEND PROPERTY TURNKEEP_LIBRARIES ${name})
endfunction()

# turnkeep_test(<name> SOURCES ... LINK ... [LABELS ...] [TIMEOUT seconds])
# One GoogleTest program, registered as one CTest test.
function(turnkeep_test name)
  cmake_parse_arguments(ARG "" "TIMEOUT" "SOURCES;LINK;LABELS" ${ARGN})
  add_executable(${name} ${ARG_SOURCES})
  target_include_directories(${name} PRIVATE ${PROJECT_SOURCE_DIR}/tests)
  target_link_libraries(${name} PRIVATE turnkeep_settings ${ARG_LINK} GTest::gmock GTest::gtest_main)
  target_compile_options(${name} PRIVATE ${turnkeep_test_options})
  turnkeep_precompile(${name} turnkeep_precompiled_tests)
  add_test(NAME ${name} COMMAND ${name})
  if(NOT ARG_TIMEOUT)
    set(ARG_TIMEOUT 300)
  endif()
  set_tests_properties(${name} PROPERTIES TIMEOUT ${ARG_TIMEOUT} LABELS "${ARG_LABELS}"
    ENVIRONMENT "TURNKEEP_SHARED=${PROJECT_SOURCE_DIR}/../shared")
endfunction()

# turnkeep_script_test(<name> COMMAND ... [LABELS ...] [TIMEOUT seconds])
# One script as one CTest test. Exit code 77 and a line "SKIP: reason" skip it visibly.
function(turnkeep_script_test name)
  cmake_parse_arguments(ARG "" "TIMEOUT" "COMMAND;LABELS" ${ARGN})
  add_test(NAME ${name} COMMAND ${ARG_COMMAND})
  if(NOT ARG_TIMEOUT)
    set(ARG_TIMEOUT 300)
  endif()
  set_tests_properties(${name} PROPERTIES TIMEOUT ${ARG_TIMEOUT} LABELS "script;${ARG_LABELS}"
    SKIP_RETURN_CODE 77)
endfunction()
