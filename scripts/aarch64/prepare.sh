#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Makes the aarch64 lane ready on a Debian host of another architecture: host tools (clang, QEMU),
# and in .cache/aarch64/ a sysroot of Debian's arm64 packages and a folder of aarch64 Python wheels.
#
# The host's package configuration is left alone: apt works on folders of its own, and what it
# downloads is unpacked, never installed. Steps are skipped while their stamps match.
set -euo pipefail
# shellcheck source=scripts/aarch64/lib.sh
source "$(dirname "$0")/lib.sh"
# shellcheck source=scripts/system_packages.sh
source "$ROOT/scripts/system_packages.sh"
STAMPS=$AARCH64/.stamps

HOST_TOOLS=(
  "clang-19: compiles for aarch64, and knows Neoverse V2"
  "lld-19: links for aarch64"
  "llvm-19: llvm-mca, llvm-nm"
  "qemu-user: runs aarch64 programs"
)
provided() {
  case $1 in
    clang-19) command -v clang++-19 ;;
    lld-19) command -v ld.lld-19 ;;
    llvm-19) command -v llvm-mca-19 ;;
    qemu-user) command -v qemu-aarch64 ;;
  esac >/dev/null
}

find_missing_tools() {
  local tool
  MISSING=()
  for tool in "${HOST_TOOLS[@]}"; do provided "${tool%%:*}" || MISSING+=("$tool"); done
}

# Runtime and headers: Python, libstdc++, Highway, doctest, Arm Compute Library, libgomp, and what
# they depend on, as apt resolves it for a machine that has nothing.
SYSROOT_PACKAGES=(python3.11-dev libstdc++-12-dev libhwy-dev doctest-dev libarm-compute-dev libgomp1)

# apt for another architecture and an empty machine, in a folder of its own.
foreign_apt() {
  APT_CONFIG=$AARCH64/apt/apt.conf apt-get -q "$@"
}

make_sysroot() {
  local apt=$AARCH64/apt package
  rm -rf "$apt" "$SYSROOT"
  mkdir -p "$apt/lists/partial" "$apt/archives/partial" "$SYSROOT"
  : >"$apt/status"
  cat >"$apt/apt.conf" <<CONFIG
APT::Architecture "arm64";
APT::Architectures "arm64";
APT::Install-Recommends "false";
APT::Sandbox::User "";
Dir::State::lists "$apt/lists";
Dir::State::status "$apt/status";
Dir::State::extended_states "$apt/extended_states";
Dir::Cache "$apt";
Dir::Log "$apt";
CONFIG
  foreign_apt update
  foreign_apt install -y --download-only "${SYSROOT_PACKAGES[@]}"
  for package in "$apt"/archives/*.deb; do dpkg -x "$package" "$SYSROOT"; done
  # Absolute links, libm.so's among them, would lead out of the sysroot.
  find "$SYSROOT" -type l -lname '/*' -printf '%l\t%p\n' | while IFS=$'\t' read -r target link; do
    ln -sfrT "$SYSROOT$target" "$link"
  done
  rm -rf "$apt"
}

make_site_packages() {
  rm -rf "$SITE_PACKAGES"
  "$VENV/bin/python" -m pip install --disable-pip-version-check --root-user-action=ignore \
    --target "$SITE_PACKAGES" --no-deps --only-binary=:all: --python-version 3.11 \
    --platform manylinux_2_28_aarch64 --platform manylinux_2_27_aarch64 \
    --platform manylinux_2_17_aarch64 --platform manylinux2014_aarch64 \
    -r scripts/aarch64/requirements.txt
}

cd "$ROOT"
[ "$(uname -m)" != aarch64 ] || die "this machine is aarch64: make test runs everything natively"
find_missing_tools
install_missing find_missing_tools
mkdir -p "$AARCH64"
once sysroot "${SYSROOT_PACKAGES[*]}" "Unpacking Debian's arm64 packages into a sysroot" make_sysroot
once python "$(digest scripts/aarch64/requirements.txt)" \
  "Fetching aarch64 wheels: NumPy, torch, pytest" make_site_packages
