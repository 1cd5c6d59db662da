#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Cross-builds for aarch64 and runs under QEMU: the C++ tests and the Python kernel tests on a core
# with bf16 and i8mm and on one with neither, the torch operators, the wheel with NumPy alone; and
# looks for the inner loops of make mca.
set -euo pipefail
# shellcheck source=scripts/aarch64/lib.sh
source "$(dirname "$0")/lib.sh"

cd "$ROOT"
export PATH=$VENV/bin:$PATH
LOGS=$ROOT/build/aarch64-logs
CORE=$AARCH64_CPU
OLD_CORE=neoverse-n1 # neither bf16 nor i8mm: kernels that need them must not be chosen

build_cpp() { cmake --preset aarch64 && cmake --build --preset aarch64 -j "$(jobs)"; }

emulated_pytest() {
  PYTHONPATH=$ROOT/build/wheel-aarch64/site scripts/aarch64/python.sh -m pytest -q \
    -p no:cacheprovider -W 'ignore:Unknown config option' "$@"
}

run_tests() { # run_tests cpp|python|torch|mca
  case $1 in
    cpp) ctest --preset aarch64 ;;
    # Left out: the tests of this repository's scripts, and the scalar reference as the forced ISA,
    # which is the same on every architecture.
    python)
      emulated_pytest tests/python --ignore tests/python/test_check_layers.py \
        --ignore tests/python/test_mca_loops.py --ignore tests/python/test_a64_decode.py \
        --deselect 'tests/python/test_environment.py::test_every_isa_passes_the_same_tests[scalar]'
      ;;
    # inductor would have this machine's compiler make code for this machine.
    torch) TEST_TORCH_BACKEND=aot_eager emulated_pytest tests/torch ;;
    # Natively: a marked loop that is not found fails, and llvm-mca is there by now.
    mca)
      "$VENV/bin/python" benchmarks/aarch64/mca.py --cpu neoverse-v2 --output "$LOGS/mca.json" &&
        "$VENV/bin/python" -m pytest -q tests/python/test_mca_loops.py
      ;;
  esac
}

# The output goes to a file, which is shown if something fails.
lane() { # lane cpp|python|torch|mca CPU
  local log=$LOGS/$1-${2%%,*} start=$SECONDS outcome=passed
  AARCH64_CPU=$2 run_tests "$1" >"$log" 2>&1 || outcome=FAILED
  [ $outcome = passed ] || cat "$log"
  say "    $1 on $2: $outcome in $((SECONDS - start)) s; $(grep -E '(passed|failed).* in |tests passed' "$log" | tail -n 1)"
  [ $outcome = passed ]
}

scripts/aarch64/prepare.sh
run_step "Cross-compiling the C++ tests" build_cpp
scripts/wheel.sh --check aarch64

heading "Running the tests under QEMU, $(jobs) at a time (output: build/aarch64-logs/)"
mkdir -p "$LOGS"
running=0 failed=0
finish_one() {
  wait -n || failed=1
  running=$((running - 1))
}
# The longest first.
for run in "torch $CORE" "python $CORE" "cpp $CORE" "cpp $OLD_CORE" "python $OLD_CORE" "mca neoverse-v2"; do
  [ "$running" -lt "$(jobs)" ] || finish_one
  # shellcheck disable=SC2086 # two words
  lane $run &
  running=$((running + 1))
done
while [ "$running" -gt 0 ]; do finish_one; done
[ "$failed" -eq 0 ]
