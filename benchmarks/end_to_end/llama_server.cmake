# SPDX-License-Identifier: Apache-2.0
# llama.cpp's server alone, against the libraries that llama-cpp-python has installed (LIBRARIES):
# they are the larger part of llama.cpp, compiled already, and the ones that run.py measures.
# llama_server.py puts this file in the place of CMakeLists.txt of the same version's sources.
cmake_minimum_required(VERSION 3.18)
project(llama_server LANGUAGES C CXX)

# As llama-cpp-python has them: they decide what the libraries' headers declare.
set(LLAMA_BUILD_COMMON ON)
set(LLAMA_OPENSSL ON)
set(LLAMA_SUBPROCESS ON)
# No page for a browser, which would be fetched.
set(LLAMA_BUILD_UI OFF)
set(LLAMA_USE_PREBUILT_UI OFF)
# Of a library that is linked statically here; properties want some value.
set(LLAMA_VERSION_BASE 0)
set(LLAMA_VERSION_MAJOR 0)
set(BUILD_SHARED_LIBS OFF)
set(MTMD_VIDEO OFF CACHE BOOL "")

# What is compiled here does no arithmetic: it is not worth the time of -O3.
add_compile_options(-O1)

include(cmake/license.cmake)
include(cmake/common.cmake)
find_package(Threads REQUIRED)
add_subdirectory(vendor)

foreach(name ggml-base ggml llama llama-common)
  add_library(${name} SHARED IMPORTED GLOBAL)
  set_target_properties(${name} PROPERTIES IMPORTED_LOCATION ${LIBRARIES}/lib${name}.so)
endforeach()
target_include_directories(ggml INTERFACE ggml/include)
target_compile_definitions(ggml INTERFACE GGML_SHARED GGML_BACKEND_SHARED)
target_link_libraries(ggml INTERFACE ggml-base)
target_include_directories(llama INTERFACE include)
target_compile_definitions(llama INTERFACE LLAMA_SHARED)
target_link_libraries(llama INTERFACE ggml)
target_include_directories(llama-common INTERFACE common)
target_compile_definitions(llama-common INTERFACE LLAMA_SUBPROCESS)
target_link_libraries(
  llama-common INTERFACE llama vendor::nlohmann vendor::sheredom Threads::Threads)

add_subdirectory(tools/mtmd)
add_subdirectory(tools/ui)
add_subdirectory(tools/server)
# The libraries look for each other where the program looks for them: RPATH, not RUNPATH. The program
# is copied out of the build.
target_link_options(llama-server PRIVATE -Wl,--disable-new-dtags)
set_target_properties(
  llama-server PROPERTIES BUILD_WITH_INSTALL_RPATH ON INSTALL_RPATH ${LIBRARIES})
