# `cmake --install` and, from another project, find_package(drafthorse) with targets drafthorse::engine and so on.
include(CMakePackageConfigHelpers)

get_property(layers GLOBAL PROPERTY drafthorse_layers)
install(TARGETS ${layers} EXPORT drafthorse ARCHIVE DESTINATION ${CMAKE_INSTALL_LIBDIR})
install(TARGETS drafthorse drafthorse-widen RUNTIME DESTINATION ${CMAKE_INSTALL_BINDIR})
install(DIRECTORY src/ DESTINATION ${CMAKE_INSTALL_INCLUDEDIR}/drafthorse FILES_MATCHING PATTERN "*.h"
        PATTERN "testing" EXCLUDE)
install(EXPORT drafthorse NAMESPACE drafthorse:: DESTINATION ${CMAKE_INSTALL_LIBDIR}/cmake/drafthorse
        FILE drafthorse-targets.cmake)
configure_package_config_file(cmake/drafthorse-config.cmake.in drafthorse-config.cmake
                              INSTALL_DESTINATION ${CMAKE_INSTALL_LIBDIR}/cmake/drafthorse)
write_basic_package_version_file(drafthorse-config-version.cmake COMPATIBILITY SameMinorVersion)
install(FILES ${CMAKE_CURRENT_BINARY_DIR}/drafthorse-config.cmake
              ${CMAKE_CURRENT_BINARY_DIR}/drafthorse-config-version.cmake
        DESTINATION ${CMAKE_INSTALL_LIBDIR}/cmake/drafthorse)
# The programs find llama.cpp's libraries where they were at build time.
set_target_properties(drafthorse drafthorse-widen PROPERTIES INSTALL_RPATH_USE_LINK_PATH ON)
