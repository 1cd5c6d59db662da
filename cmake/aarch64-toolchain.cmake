# SPDX-License-Identifier: Apache-2.0
# Cross-compiles for aarch64 Linux with clang and Debian's g++-aarch64-linux-gnu libraries; tests run
# under QEMU's user mode. SVE is off: QEMU 7.2 computes wrong results with it.
set(CMAKE_SYSTEM_NAME Linux)
set(CMAKE_SYSTEM_PROCESSOR aarch64)
find_program(CAPIBARA_CLANGXX NAMES clang++-19 clang++ REQUIRED)
set(CMAKE_CXX_COMPILER ${CAPIBARA_CLANGXX})
set(CMAKE_CXX_COMPILER_TARGET aarch64-linux-gnu)
set(CMAKE_FIND_ROOT_PATH /usr/aarch64-linux-gnu)
set(CMAKE_FIND_ROOT_PATH_MODE_PROGRAM NEVER)
set(CMAKE_FIND_ROOT_PATH_MODE_LIBRARY ONLY)
# Highway is headers only: the host's serve.
set(CMAKE_FIND_ROOT_PATH_MODE_INCLUDE BOTH)
find_program(CAPIBARA_QEMU NAMES qemu-aarch64 qemu-aarch64-static)
if(CAPIBARA_QEMU)
  set(CMAKE_CROSSCOMPILING_EMULATOR ${CAPIBARA_QEMU} -cpu max,sve=off -L /usr/aarch64-linux-gnu)
endif()
