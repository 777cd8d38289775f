# How libraries, tests and benches are declared. A layer is one static library, linking only layers below it.

add_library(drafthorse_options INTERFACE)
target_compile_options(drafthorse_options INTERFACE -Wall -Wextra -Wshadow -Wconversion -Wno-sign-conversion)
if(DRAFTHORSE_WERROR)
  target_compile_options(drafthorse_options INTERFACE -Werror)
endif()
if(CMAKE_SYSTEM_PROCESSOR MATCHES "x86_64|AMD64")
  # The baseline; whatever is wider is chosen at run time.
  target_compile_options(drafthorse_options INTERFACE -march=x86-64-v3)
endif()
if(DRAFTHORSE_SANITIZE)
  target_compile_options(drafthorse_options INTERFACE -fsanitize=${DRAFTHORSE_SANITIZE} -fno-omit-frame-pointer
                                                      -fno-sanitize-recover=all)
  target_link_options(drafthorse_options INTERFACE -fsanitize=${DRAFTHORSE_SANITIZE})
  if(CMAKE_CXX_COMPILER_ID STREQUAL "GNU")
    # It takes instrumented values for uninitialised ones; the release build looks for those that are.
    target_compile_options(drafthorse_options INTERFACE -Wno-maybe-uninitialized -Wno-uninitialized)
  endif()
endif()

# drafthorse_layer(NAME SOURCES a.cc ... DEPENDS other targets ...)
function(drafthorse_layer name)
  cmake_parse_arguments(ARG "" "" "SOURCES;DEPENDS;PRIVATE_DEPENDS" ${ARGN})
  add_library(drafthorse_${name} STATIC ${ARG_SOURCES})
  add_library(drafthorse::${name} ALIAS drafthorse_${name})
  target_include_directories(drafthorse_${name} PUBLIC $<BUILD_INTERFACE:${PROJECT_SOURCE_DIR}/src>
                                                       $<INSTALL_INTERFACE:${CMAKE_INSTALL_INCLUDEDIR}/drafthorse>)
  target_compile_features(drafthorse_${name} PUBLIC cxx_std_20)
  target_link_libraries(drafthorse_${name} PUBLIC ${ARG_DEPENDS} PRIVATE ${ARG_PRIVATE_DEPENDS}
                                           $<BUILD_INTERFACE:drafthorse_options>)
  set_target_properties(drafthorse_${name} PROPERTIES EXPORT_NAME ${name})
  set_property(GLOBAL APPEND PROPERTY drafthorse_layers drafthorse_${name})
endfunction()

# Tests labelled asan run under the address and undefined sanitizers too, those labelled tsan (they start threads, none
# of them ggml's) under all of them. With the label long they do so only where all are asked for: tools/sanitize --all.
add_custom_target(sanitized_tests_asan)
add_custom_target(sanitized_tests_tsan)
add_custom_target(sanitized_tests_asan_all DEPENDS sanitized_tests_asan)
add_custom_target(sanitized_tests_tsan_all DEPENDS sanitized_tests_tsan)

# drafthorse_test(NAME SOURCES a_test.cc ... DEPENDS ... [LABELS ...] [TIMEOUT s]): one executable, one ctest entry.
function(drafthorse_test name)
  if(NOT DRAFTHORSE_TESTS)
    return()
  endif()
  cmake_parse_arguments(ARG "" "TIMEOUT" "SOURCES;DEPENDS;LABELS" ${ARGN})
  add_executable(${name} ${ARG_SOURCES})
  target_link_libraries(${name} PRIVATE ${ARG_DEPENDS} GTest::gtest GTest::gtest_main drafthorse_options)
  # What is tested is optimised as in the library; of a test's own code half as much saves a third of its compiling.
  target_compile_options(${name} PRIVATE -O1)
  add_test(NAME ${name} COMMAND ${name})
  if(NOT ARG_TIMEOUT)
    set(ARG_TIMEOUT 300)
  endif()
  # What may take longest starts first, so that nothing long is left when all else is done.
  set_tests_properties(${name} PROPERTIES TIMEOUT ${ARG_TIMEOUT} COST ${ARG_TIMEOUT} LABELS "${ARG_LABELS}")
  set(all "")
  if("long" IN_LIST ARG_LABELS)
    set(all _all)
  endif()
  if("tsan" IN_LIST ARG_LABELS)
    add_dependencies(sanitized_tests_tsan${all} ${name})
  endif()
  if("tsan" IN_LIST ARG_LABELS OR "asan" IN_LIST ARG_LABELS)
    add_dependencies(sanitized_tests_asan${all} ${name})
  endif()
endfunction()

# drafthorse_bench(NAME SOURCES a_bench.cc ... DEPENDS ...): a Google Benchmark, run once with tiny sizes by ctest.
function(drafthorse_bench name)
  if(NOT DRAFTHORSE_BENCHES)
    return()
  endif()
  cmake_parse_arguments(ARG "" "SMOKE" "SOURCES;DEPENDS" ${ARGN})
  add_executable(${name} ${ARG_SOURCES})
  target_link_libraries(${name} PRIVATE ${ARG_DEPENDS} benchmark::benchmark drafthorse_options)
  add_test(NAME ${name}_smoke COMMAND ${name} --benchmark_min_time=0.001 --benchmark_filter=${ARG_SMOKE})
endfunction()
