# SPDX-License-Identifier: Apache-2.0
# Google Highway, headers only: the system's (Debian and Ubuntu: libhwy-dev), or, where there is
# none, a download with a pinned hash.
find_path(HWY_INCLUDE_DIR hwy/highway.h)
if(NOT HWY_INCLUDE_DIR)
  message(STATUS "No system Highway (hwy/highway.h): downloading 1.2.0")
  include(FetchContent)
  FetchContent_Declare(
    highway
    URL https://github.com/google/highway/archive/refs/tags/1.2.0.tar.gz
    URL_HASH SHA256=7e0be78b8318e8bdbf6fa545d2ecb4c90f947df03f7aadc42c1967f019e63343
    SOURCE_SUBDIR headers-only) # no such folder: nothing of it is built
  FetchContent_MakeAvailable(highway)
  set(HWY_INCLUDE_DIR ${highway_SOURCE_DIR})
endif()
add_library(capibara_highway INTERFACE)
target_include_directories(capibara_highway SYSTEM INTERFACE ${HWY_INCLUDE_DIR})
