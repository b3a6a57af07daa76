# `cmake --install` and the Debian packages.
#
# Component runtime: programs, documents, an example systemd unit; shell completion is installed by
# tools/turnkeep, which makes it.
# Component dev: static libraries, headers, and the CMake package, so that
#   find_package(turnkeep COMPONENTS client)  gives turnkeep::client
#   find_package(turnkeep COMPONENTS store)   gives turnkeep::store

include(CMakePackageConfigHelpers)

set(turnkeep_cmake_dir ${CMAKE_INSTALL_LIBDIR}/cmake/turnkeep)

# Programs.
foreach(program turnkeepd turnkeep turnkeep-llama)
  if(TARGET ${program})
    install(TARGETS ${program} RUNTIME COMPONENT runtime)
  endif()
endforeach()
install(FILES ${PROJECT_SOURCE_DIR}/README.md ${PROJECT_SOURCE_DIR}/CHANGELOG.md
  DESTINATION ${CMAKE_INSTALL_DOCDIR} COMPONENT runtime)
if(IS_DIRECTORY ${PROJECT_SOURCE_DIR}/docs)
  install(DIRECTORY ${PROJECT_SOURCE_DIR}/docs/ DESTINATION ${CMAKE_INSTALL_DOCDIR}
    COMPONENT runtime FILES_MATCHING PATTERN "*.md")
endif()
configure_file(${PROJECT_SOURCE_DIR}/packaging/turnkeepd.service.in
  ${PROJECT_BINARY_DIR}/turnkeepd.service @ONLY)
install(FILES ${PROJECT_BINARY_DIR}/turnkeepd.service
  DESTINATION ${CMAKE_INSTALL_DOCDIR}/examples COMPONENT runtime)

# Libraries and headers. Every layer is installed; turnkeep::client and turnkeep::store are the
# two that programs ask for.
get_property(turnkeep_libraries GLOBAL PROPERTY TURNKEEP_LIBRARIES)
install(TARGETS turnkeep_settings ${turnkeep_libraries} EXPORT turnkeepTargets
  ARCHIVE COMPONENT dev)
install(EXPORT turnkeepTargets NAMESPACE turnkeep:: DESTINATION ${turnkeep_cmake_dir}
  COMPONENT dev)
install(DIRECTORY ${PROJECT_SOURCE_DIR}/src/ ${PROJECT_BINARY_DIR}/src/
  DESTINATION ${CMAKE_INSTALL_INCLUDEDIR}/turnkeep COMPONENT dev
  FILES_MATCHING PATTERN "*.h" PATTERN CMakeFiles EXCLUDE)
configure_package_config_file(${PROJECT_SOURCE_DIR}/cmake/turnkeepConfig.cmake.in
  ${PROJECT_BINARY_DIR}/turnkeepConfig.cmake INSTALL_DESTINATION ${turnkeep_cmake_dir})
write_basic_package_version_file(${PROJECT_BINARY_DIR}/turnkeepConfigVersion.cmake
  COMPATIBILITY SameMinorVersion)
install(FILES ${PROJECT_BINARY_DIR}/turnkeepConfig.cmake
  ${PROJECT_BINARY_DIR}/turnkeepConfigVersion.cmake
  DESTINATION ${turnkeep_cmake_dir} COMPONENT dev)

# Debian packages: turnkeep and turnkeep-dev.
set(CPACK_GENERATOR DEB)
set(CPACK_PACKAGE_NAME turnkeep)
set(CPACK_PACKAGE_VERSION ${PROJECT_VERSION})
set(CPACK_PACKAGE_CONTACT "Turnkeep <turnkeep@localhost>")
set(CPACK_PACKAGE_DESCRIPTION_SUMMARY "multi-tier KV cache store for LLM inference")
set(CPACK_PACKAGING_INSTALL_PREFIX /usr)
set(CPACK_STRIP_FILES ON)
set(CPACK_COMPONENTS_ALL runtime dev)
set(CPACK_DEB_COMPONENT_INSTALL ON)
set(CPACK_DEBIAN_FILE_NAME DEB-DEFAULT)
set(CPACK_DEBIAN_PACKAGE_SHLIBDEPS ON)
set(CPACK_DEBIAN_RUNTIME_PACKAGE_NAME turnkeep)
set(CPACK_DEBIAN_RUNTIME_PACKAGE_SECTION database)
set(CPACK_DEBIAN_DEV_PACKAGE_NAME turnkeep-dev)
set(CPACK_DEBIAN_DEV_PACKAGE_SECTION libdevel)
set(CPACK_DEBIAN_DEV_PACKAGE_SHLIBDEPS OFF)
set(CPACK_DEBIAN_DEV_PACKAGE_DEPENDS
  "libabsl-dev, libfmt-dev, libspdlog-dev, nlohmann-json3-dev, libssl-dev, libxxhash-dev, \
libprotobuf-dev, libboost1.81-dev, pkg-config")
set(CPACK_DEBIAN_DEV_PACKAGE_RECOMMENDS "librocksdb-dev, liburing-dev")
include(CPack)
