#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Runs the named groups of tests, all of them by default; goes on after a failure, and fails at the end.
#   test.sh [cpp] [asan] [python] [vllm] [server]
set -euo pipefail
# shellcheck source=scripts/lib.sh
source "$(dirname "$0")/lib.sh"

cd "$ROOT"
export PATH=$VENV/bin:$PATH
ALL=(cpp asan python vllm server)

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
    server) echo "server, with the official OpenAI client" ;;
    *) die "unknown group of tests: $1" "known: ${ALL[*]}" ;;
  esac
}

run_group() {
  case $1 in
    cpp) preset dev ;;
    asan) preset asan-ubsan ;;
    python) run_pytest tests/python tests/torch ;;
    vllm) run_pytest tests/vllm ;;
    server) run_pytest tests/server ;;
  esac
}

groups=("$@")
[ $# -gt 0 ] || groups=("${ALL[@]}")
for group in "${groups[@]}"; do describe "$group" >/dev/null; done

summary=() failed=0
for group in "${groups[@]}"; do
  heading "$group: $(describe "$group")"
  start=$SECONDS
  if run_group "$group"; then
    outcome=passed
  else
    outcome=FAILED
    failed=$((failed + 1))
  fi
  summary+=("$(printf '%-8s %s in %d s' "$group" "$outcome" $((SECONDS - start)))")
done

heading "summary, $SECONDS s"
printf '    %s\n' "${summary[@]}"
say "groups: $((${#groups[@]} - failed)) passed, $failed failed"
[ "$failed" -eq 0 ]
