# `cmake --install` and, from another project, find_package(drafthorse) with targets drafthorse::engine and so on.
include(CMakePackageConfigHelpers)

get_property(layers GLOBAL PROPERTY drafthorse_layers)
install(TARGETS ${layers} EXPORT drafthorse ARCHIVE DESTINATION ${CMAKE_INSTALL_LIBDIR})
install(TARGETS drafthorse drafthorse-widen RUNTIME DESTINATION ${CMAKE_INSTALL_BINDIR})
# Made by the program itself, from its flags.
install(CODE "
  set(prefix \"\$ENV{DESTDIR}\${CMAKE_INSTALL_PREFIX}/${CMAKE_INSTALL_DATAROOTDIR}\")
  foreach(made \"man|man/man1/drafthorse.1\" \"completion bash|bash-completion/completions/drafthorse\"
               \"completion zsh|zsh/site-functions/_drafthorse\")
    string(REGEX MATCH \"^(.*)[|](.*)$\" whole \"\${made}\")
    set(to \"\${prefix}/\${CMAKE_MATCH_2}\")
    string(REPLACE \" \" \";\" arguments \"\${CMAKE_MATCH_1}\")
    get_filename_component(folder \"\${to}\" DIRECTORY)
    file(MAKE_DIRECTORY \"\${folder}\")
    execute_process(COMMAND \"$<TARGET_FILE:drafthorse>\" --no-config \${arguments} OUTPUT_FILE \"\${to}\"
                    COMMAND_ERROR_IS_FATAL ANY)
    message(STATUS \"Installing: \${to}\")
  endforeach()")
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
