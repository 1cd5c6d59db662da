#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Builds a wheel into dist/ that runs on any Linux with glibc 2.17 or newer.
#   wheel.sh [--check] [x86_64|aarch64]     default: this machine's architecture
# --check also looks at what is in it, and runs every kernel with NumPy as the only other package.
#
# zig compiles, for both architectures alike (cmake/zig-toolchain.cmake). CMake's folder is
# build/wheel-ARCH, with compile_commands.json. The other architecture's Python comes from
# .cache/aarch64, which scripts/aarch64/prepare.sh makes.
set -euo pipefail
# shellcheck source=scripts/lib.sh
source "$(dirname "$0")/lib.sh"

GLIBC=2.17
cd "$ROOT"
export PATH=$VENV/bin:$PATH PIP_DISABLE_PIP_VERSION_CHECK=1
export CMAKE_BUILD_PARALLEL_LEVEL=${CMAKE_BUILD_PARALLEL_LEVEL:-$(jobs)}

check=
if [ "${1:-}" = --check ]; then
  check=1
  shift
fi
HOST_ARCH=$(uname -m)
ARCH=${1:-$HOST_ARCH}
case $ARCH in x86_64 | aarch64) ;; *) die "no such architecture: $ARCH" "known: x86_64, aarch64" ;; esac
BUILD=$ROOT/build/wheel-$ARCH
HEADERS=$BUILD/headers
VERSION=$(python -c 'import sys; print("%d.%d" % sys.version_info[:2])')
TAG=cp${VERSION/./}

CROSS=$ROOT/.cache/aarch64
find_python_headers() {
  if [ "$ARCH" = "$HOST_ARCH" ]; then
    PYTHON_HEADERS=$(python -c 'import sysconfig; print(sysconfig.get_path("include"))')
    [ -e "$PYTHON_HEADERS/Python.h" ] || die "no headers of Python $VERSION in $PYTHON_HEADERS"
    return
  fi
  [ "$ARCH" = aarch64 ] || die "a wheel for $ARCH can only be built on $ARCH"
  [ -d "$CROSS/sysroot" ] || die "no arm64 Python in .cache/aarch64/sysroot" "scripts/aarch64/prepare.sh fetches it"
  PYTHON_HEADERS=$CROSS/sysroot/usr/include/python$VERSION
  [ -e "$PYTHON_HEADERS/Python.h" ] ||
    die ".venv has Python $VERSION, of which there are no arm64 headers: a wheel is for the Python it is built with" \
      "there are those of: $(cd "$CROSS/sysroot/usr/include" && echo python3.*)" \
      "rm -rf .venv, then say make ... PYTHON=python3.N with that version, or build on an Arm machine"
}

# All that the compiler shall see beside its own libc. Debian's pyconfig.h looks for another one in a
# folder that is named after the architecture.
link_headers() {
  local folder include=$HEADERS/include
  rm -rf "$HEADERS"
  mkdir -p "$include"
  ln -s "$PYTHON_HEADERS" "$include/python$VERSION"
  folder=$(dirname "$PYTHON_HEADERS")/$ARCH-linux-gnu/python$VERSION
  if [ -d "$folder" ]; then
    mkdir "$include/$ARCH-linux-gnu"
    ln -s "$folder" "$include/$ARCH-linux-gnu/"
  fi
  # Where Highway is elsewhere, cmake/highway.cmake downloads it.
  for folder in /usr/local/include /usr/include; do
    if [ -e "$folder/hwy/highway.h" ]; then
      ln -s "$folder/hwy" "$include/"
      return
    fi
  done
}

# Raw, that is with the tag linux_ARCH, which says nothing of the glibc that is needed.
build_raw_wheel() {
  local zig define settings=()
  zig=$(python -c 'import pathlib, ziglang; print(pathlib.Path(ziglang.__file__).with_name("zig"))')
  for define in "CMAKE_TOOLCHAIN_FILE=$ROOT/cmake/zig-toolchain.cmake" CMAKE_EXPORT_COMPILE_COMMANDS=ON \
    "CAPIBARA_ZIG=$zig" "CAPIBARA_ZIG_ARCH=$ARCH" "CAPIBARA_GLIBC=$GLIBC" "CAPIBARA_HEADERS=$HEADERS" \
    "Python_INCLUDE_DIR=$HEADERS/include/python$VERSION"; do
    settings+=("--config-settings=cmake.define.$define")
  done
  rm -rf "$BUILD/raw"
  _PYTHON_HOST_PLATFORM=linux-$ARCH SETUPTOOLS_EXT_SUFFIX=.cpython-${VERSION/./}-$ARCH-linux-gnu.so \
    python -m pip wheel . --no-deps --no-build-isolation -w "$BUILD/raw" \
    --config-settings=build-dir="build/wheel-$ARCH" "${settings[@]}"
}

tag_wheel() {
  mkdir -p dist
  rm -f dist/capibara_axion-*"_$ARCH.whl"
  auditwheel repair --plat "manylinux_${GLIBC/./_}_$ARCH" -w dist "$BUILD"/raw/*.whl
  ls dist
}

find_python_headers
link_headers
run_step "Compiling the wheel for $ARCH" build_raw_wheel
run_step "Tagging it" tag_wheel
