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
# shellcheck source=scripts/aarch64/lib.sh
source "$(dirname "$0")/aarch64/lib.sh"

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

find_python_headers() {
  if [ "$ARCH" = "$HOST_ARCH" ]; then
    PYTHON_HEADERS=$(python -c 'import sysconfig; print(sysconfig.get_path("include"))')
    [ -e "$PYTHON_HEADERS/Python.h" ] || die "no headers of Python $VERSION in $PYTHON_HEADERS"
    return
  fi
  [ "$ARCH" = aarch64 ] || die "a wheel for $ARCH can only be built on $ARCH"
  [ -d "$SYSROOT" ] || die "no arm64 Python in .cache/aarch64/sysroot" "scripts/aarch64/prepare.sh fetches it"
  PYTHON_HEADERS=$SYSROOT/usr/include/python$VERSION
  [ -e "$PYTHON_HEADERS/Python.h" ] ||
    die ".venv has Python $VERSION, of which there are no arm64 headers: a wheel is for the Python it is built with" \
      "there are those of: $(cd "$SYSROOT/usr/include" && echo python3.*)" \
      "rm -rf .venv, then say make ... PYTHON=python3.N with that version, or build on an Arm machine"
}

# CMake takes note of its toolchain file and of another Python only in an empty folder.
start_afresh_if_changed() {
  local state
  state="$VERSION $PYTHON_HEADERS $(digest cmake scripts/wheel.sh pyproject.toml)"
  if [ "$(cat "$BUILD/state" 2>/dev/null)" != "$state" ]; then
    rm -rf "$BUILD"
    mkdir -p "$BUILD"
    printf '%s\n' "$state" >"$BUILD/state"
  fi
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
    CAPIBARA_ACL=OFF "CAPIBARA_ZIG=$zig" "CAPIBARA_ZIG_ARCH=$ARCH" "CAPIBARA_GLIBC=$GLIBC" "CAPIBARA_HEADERS=$HEADERS" \
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
  rm -f dist/capibara_axion-*-"$TAG"-*"_$ARCH.whl"
  # "auto" is the oldest platform that the wheel fits, and the only word for another architecture's.
  auditwheel repair --plat auto -w dist "$BUILD"/raw/*.whl
  WHEEL=$(echo dist/capibara_axion-*-"$TAG"-*"_$ARCH.whl")
  say "    $WHEEL, $(stat -c %s "$WHEEL") bytes"
}

site_packages() { "$1" -c 'import sysconfig; print(sysconfig.get_path("purelib"))'; }

# A fresh environment, into which pip takes the wheel as it would anywhere, with .venv's NumPy.
make_native_environment() {
  rm -rf "$BUILD/venv"
  python -m venv "$BUILD/venv"
  link_numpy "$(site_packages python)" "$(site_packages "$BUILD/venv/bin/python")"
  "$BUILD/venv/bin/python" -m pip install -q --no-index "$WHEEL"
}

link_numpy() { # link_numpy FROM TO
  local entry
  for entry in "$1"/numpy "$1"/numpy.libs "$1"/numpy-*.dist-info; do
    [ ! -e "$entry" ] || ln -s "$entry" "$2/"
  done
}

run_natively() {
  "$BUILD/venv/bin/python" tests/wheel/run_every_kernel.py
  "$BUILD/venv/bin/capibara-axion" info >/dev/null
}

run_natively_with_torch() {
  PYTHONPATH=$(site_packages "$BUILD/venv/bin/python"):$(site_packages python) \
    "$BUILD/venv/bin/python" tests/wheel/raise_in_torch.py
}

make_emulated_environment() {
  rm -rf "$BUILD/site"
  mkdir "$BUILD/site"
  python -m zipfile -e "$WHEEL" "$BUILD/site"
  link_numpy "$SITE_PACKAGES" "$BUILD/site"
}

run_emulated() { # run_emulated CPU PYTHONPATH PROGRAM
  PYTHONHOME=$SYSROOT/usr PYTHONNOUSERSITE=1 PYTHONPATH=$2 \
    qemu-aarch64 -cpu "$1" -L "$SYSROOT" "$SYSROOT/usr/bin/python$VERSION" "$3"
}

find_python_headers
start_afresh_if_changed
link_headers
run_step "Compiling the wheel for $ARCH" build_raw_wheel
run_step "Tagging it" tag_wheel

# Tests and benchmarks under QEMU use it from there.
[ "$ARCH" = "$HOST_ARCH" ] || run_step "Unpacking it" make_emulated_environment

if [ -n "$check" ]; then
  run_step "Looking at what is in it" python scripts/check_wheel.py "$WHEEL" --glibc "$GLIBC" --build "$BUILD"
  if [ "$ARCH" = "$HOST_ARCH" ]; then
    run_step "Installing it in an environment of its own" make_native_environment
    run_step "Running every kernel" run_natively
    run_step "Making a mistake beside torch" run_natively_with_torch
  else
    run_step "Running every kernel under QEMU" \
      run_emulated "$AARCH64_CPU" "$BUILD/site" tests/wheel/run_every_kernel.py
    # Has nothing beyond Armv8.0: code for newer cores, where it must not be, would end there.
    run_step "Running every kernel on an emulated Cortex-A53" \
      run_emulated cortex-a53 "$BUILD/site" tests/wheel/run_every_kernel.py
    run_step "Making a mistake beside torch" \
      run_emulated "$AARCH64_CPU" "$BUILD/site:$SITE_PACKAGES" tests/wheel/raise_in_torch.py
  fi
fi
