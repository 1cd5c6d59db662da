#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Builds what counts, and what is counted, then runs benchmarks/aarch64/run.py with the arguments
# given here.
set -euo pipefail
# shellcheck source=scripts/aarch64/lib.sh
source "$(dirname "$0")/lib.sh"

cd "$ROOT"
scripts/aarch64/prepare.sh
scripts/wheel.sh aarch64
out=build/aarch64-bench
mkdir -p "$out"
${CC:-cc} -std=c11 -O2 -Wall -Wextra -fPIC -shared -fvisibility=hidden \
  -o "$out/libcount_plugin.so" benchmarks/aarch64/count_plugin.c
clang++-19 --target=aarch64-linux-gnu --sysroot="$SYSROOT" -fuse-ld=lld -std=c++17 -O2 -Wall -Wextra \
  -isystem "$SYSROOT/usr/include/aarch64-linux-gnu/half" -o "$out/acl_peers" \
  -Icsrc benchmarks/aarch64/acl_peers.cc csrc/backends/acl/scheduler.cc \
  -larm_compute -larm_compute_core
PYTHONPATH=benchmarks exec "$VENV/bin/python" benchmarks/aarch64/run.py "$@"
