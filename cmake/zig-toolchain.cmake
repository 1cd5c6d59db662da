# SPDX-License-Identifier: Apache-2.0
# Compiles wheels with zig's clang (the package `ziglang` of PyPI), which brings libc++ and every
# glibc's interface along: the result runs on any distribution with that glibc or a newer one, and
# on another architecture than the one it is built on. scripts/wheel.sh sets
#   CAPIBARA_ZIG       the executable
#   CAPIBARA_ZIG_ARCH  x86_64 or aarch64
#   CAPIBARA_GLIBC     oldest glibc to run with, such as 2.17
#   CAPIBARA_HEADERS   folder whose include/ has Highway and Python, and nothing of the system's libc
foreach(name ZIG ZIG_ARCH GLIBC HEADERS)
  if(NOT CAPIBARA_${name})
    message(FATAL_ERROR "zig-toolchain.cmake: CAPIBARA_${name} is not set; see scripts/wheel.sh")
  endif()
  list(APPEND CMAKE_TRY_COMPILE_PLATFORM_VARIABLES CAPIBARA_${name})
endforeach()

set(CMAKE_SYSTEM_NAME Linux)
set(CMAKE_SYSTEM_PROCESSOR ${CAPIBARA_ZIG_ARCH})
# A target that is spelled out also keeps zig from compiling for the CPU of this machine.
set(CMAKE_CXX_COMPILER ${CAPIBARA_ZIG} c++ -target ${CAPIBARA_ZIG_ARCH}-linux-gnu.${CAPIBARA_GLIBC})
# zig traps undefined behaviour in unoptimised code, and keeps frame pointers in all code. -O3 and -s
# are here because zig compiles a libc++ for each combination of them when it first links with it, in
# about a minute: so the link by which CMake identifies the compiler makes the one that is needed.
set(CMAKE_CXX_FLAGS_INIT "-O3 -s -fno-sanitize=undefined -fomit-frame-pointer")
# Across objects the optimiser would mix what scripts/check_wheel.py keeps apart: baseline and ISAs.
set(CMAKE_INTERPROCEDURAL_OPTIMIZATION OFF)
# libc++ and the unwinder are static, and stay private: a process that has torch also has libstdc++.
set(CMAKE_MODULE_LINKER_FLAGS_INIT "-Wl,--version-script=${CMAKE_CURRENT_LIST_DIR}/zig-exports.map")

# The system's binutils need not know the target; CMake wants ar to be an executable without arguments.
set(CMAKE_CXX_ARCHIVE_CREATE "\"${CAPIBARA_ZIG}\" ar qcs <TARGET> <OBJECTS>")
set(CMAKE_CXX_ARCHIVE_APPEND "\"${CAPIBARA_ZIG}\" ar qs <TARGET> <OBJECTS>")
set(CMAKE_CXX_ARCHIVE_FINISH "")
set(CMAKE_STRIP "" CACHE FILEPATH "The linker strips" FORCE)

# Else it asks the Python of this machine for the module's suffix.
set(PYBIND11_USE_CROSSCOMPILING ON)
set(CMAKE_CXX_STANDARD_INCLUDE_DIRECTORIES ${CAPIBARA_HEADERS}/include)
set(CMAKE_FIND_ROOT_PATH ${CAPIBARA_HEADERS})
set(CMAKE_FIND_ROOT_PATH_MODE_PROGRAM NEVER)
set(CMAKE_FIND_ROOT_PATH_MODE_LIBRARY ONLY)
set(CMAKE_FIND_ROOT_PATH_MODE_INCLUDE ONLY)
