#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Builds what counts, and the ACL program that is counted, then runs benchmarks/aarch64/run.py with
# the given arguments on the package in $AARCH64_SITE.
set -euo pipefail
# shellcheck source=scripts/aarch64/lib.sh
source "$(dirname "$0")/lib.sh"

cd "$ROOT"
out=build/aarch64-bench
mkdir -p "$out"
${CC:-cc} -std=c11 -O2 -Wall -Wextra -fPIC -shared -fvisibility=hidden \
  -o "$out/libcount_plugin.so" benchmarks/aarch64/count_plugin.c
clang++-19 --target=aarch64-linux-gnu --sysroot="$SYSROOT" -fuse-ld=lld -std=c++17 -O2 -Wall -Wextra \
  -isystem "$SYSROOT/usr/include/aarch64-linux-gnu/half" -o "$out/acl_peers" \
  benchmarks/aarch64/acl_peers.cc -larm_compute -larm_compute_core
PYTHONPATH=$AARCH64_SITE exec "$VENV/bin/python" benchmarks/aarch64/run.py "$@"
