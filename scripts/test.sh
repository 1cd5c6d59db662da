#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Runs the named groups of tests, all of them by default; goes on after a failure, and fails at the end.
#   test.sh [cpp] [asan] [python] [vllm] [server] [wheel] [aarch64]
set -euo pipefail
# shellcheck source=scripts/lib.sh
source "$(dirname "$0")/lib.sh"

cd "$ROOT"
export PATH=$VENV/bin:$PATH
ALL=(cpp asan python vllm server wheel aarch64)

preset() { # preset NAME: configure, build, ctest
  cmake --preset "$1" && cmake --build --preset "$1" -j "$(jobs)" && ctest --preset "$1"
}

run_pytest() { "$VENV/bin/python" -m pytest "$@"; }

describe() {
  case $1 in
    cpp) echo "C++ kernels and drivers (preset dev)" ;;
    asan) echo "the same under AddressSanitizer and UndefinedBehaviorSanitizer (preset asan-ubsan)" ;;
    python) echo "Python and torch interfaces" ;;
    vllm) echo "vLLM plugin, one test per architecture" ;;
    server) echo "server, with the official OpenAI client, its page in a browser, bench, and what the documentation tells to run" ;;
    wheel) echo "wheel of this architecture: what is in it, and every kernel with NumPy alone" ;;
    aarch64) echo "all of it but vLLM and the server for aarch64, cross-built and under QEMU" ;;
    *) die "unknown group of tests: $1" "known: ${ALL[*]}" ;;
  esac
}

run_group() {
  case $1 in
    cpp) preset dev ;;
    asan) preset asan-ubsan ;;
    python) run_pytest tests/python tests/torch ;;
    # Engines of tiny models are Python on one core for the most part.
    vllm) run_pytest -n 2 --dist loadfile tests/vllm ;;
    # Two runs: both tests/server and tests/bench have helpers in a module named conftest.
    # Two calls: tests of both import from a conftest.py of their own.
    server) run_pytest tests/server tests/ui tests/docs && run_pytest tests/bench ;;
    wheel) scripts/wheel.sh --check ;;
    aarch64) scripts/aarch64/test.sh ;;
  esac
}

# Why a group cannot run on this machine; nothing if it can.
obstacle() {
  local system
  [ "$1" = aarch64 ] || return 0
  if [ "$(uname -m)" = aarch64 ]; then
    echo "this machine is aarch64, where the other groups test the same natively"
    return
  fi
  system=$(. /etc/os-release && echo "$ID $VERSION_ID, Python $("$VENV/bin/python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')")
  [ "$system" = "debian 12, Python 3.11" ] ||
    echo "its sysroot comes from Debian 12 with Python 3.11, and this is $system; a container of Debian 12 runs it"
}

groups=("$@")
[ $# -gt 0 ] || groups=("${ALL[@]}")
for group in "${groups[@]}"; do describe "$group" >/dev/null; done

summary=() passed=0 failed=0
for group in "${groups[@]}"; do
  heading "$group: $(describe "$group")"
  start=$SECONDS
  why=$(obstacle "$group")
  if [ -n "$why" ] && [ $# -eq 0 ]; then
    summary+=("$(printf '%-8s skipped: %s' "$group" "$why")")
    continue
  fi
  if run_group "$group"; then
    outcome=passed
    passed=$((passed + 1))
  else
    outcome=FAILED
    failed=$((failed + 1))
  fi
  summary+=("$(printf '%-8s %s in %d s' "$group" "$outcome" $((SECONDS - start)))")
done

heading "summary, $SECONDS s"
printf '    %s\n' "${summary[@]}"
say "groups: $passed passed, $failed failed, $((${#groups[@]} - passed - failed)) skipped"
[ "$failed" -eq 0 ]
