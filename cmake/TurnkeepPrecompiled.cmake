# Precompiled system headers: they take about half of the compile time of a source. Off where there
# is ccache, whose cache does not work with them; so every source is still built without them, and
# a missing include shows.

if(CMAKE_CXX_COMPILER_LAUNCHER MATCHES ccache)
  set(turnkeep_precompile OFF)
else()
  set(turnkeep_precompile ON)
endif()
option(TURNKEEP_PRECOMPILE "Precompile system headers" ${turnkeep_precompile})

# Sources with options of their own (-mavx2) read the headers as text.
set(CMAKE_PCH_WARN_INVALID OFF)
if(TURNKEEP_PRECOMPILE)
  file(WRITE ${PROJECT_BINARY_DIR}/empty.cc "")
  add_library(turnkeep_precompiled OBJECT ${PROJECT_BINARY_DIR}/empty.cc)
  target_link_libraries(turnkeep_precompiled PRIVATE turnkeep_settings
    absl::statusor absl::synchronization absl::flat_hash_map absl::time fmt::fmt)
  set(turnkeep_headers
    <algorithm> <cstdint> <functional> <map> <memory> <span> <string> <vector>
    <absl/container/flat_hash_map.h> <absl/status/statusor.h> <absl/synchronization/mutex.h>
    <absl/time/time.h> <fmt/format.h>)
  target_precompile_headers(turnkeep_precompiled PRIVATE ${turnkeep_headers})
  if(TURNKEEP_TESTS)
    add_library(turnkeep_precompiled_tests OBJECT ${PROJECT_BINARY_DIR}/empty.cc)
    target_link_libraries(turnkeep_precompiled_tests PRIVATE turnkeep_settings
      absl::statusor absl::synchronization absl::flat_hash_map absl::time fmt::fmt GTest::gmock)
    # As executables are compiled.
    set_target_properties(turnkeep_precompiled_tests PROPERTIES POSITION_INDEPENDENT_CODE OFF)
    target_compile_options(turnkeep_precompiled_tests PRIVATE ${turnkeep_test_options} -fPIE)
    target_precompile_headers(turnkeep_precompiled_tests PRIVATE ${turnkeep_headers}
      <gmock/gmock.h> <gtest/gtest.h>)
  endif()
endif()

# turnkeep_precompile(<target> <of>): `of` is turnkeep_precompiled or turnkeep_precompiled_tests.
function(turnkeep_precompile target of)
  if(TURNKEEP_PRECOMPILE)
    target_precompile_headers(${target} REUSE_FROM ${of})
  endif()
endfunction()
