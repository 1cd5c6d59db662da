#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Repeats the measurements of benchmarks/results/, one after the other, then writes the tables of
# README.md and docs/measured.md anew. Goes on after a failure, and fails at the end.
#   results.sh [NAME...]    all of them, or those named
set -euo pipefail
# shellcheck source=scripts/lib.sh
source "$(dirname "$0")/lib.sh"

cd "$ROOT"
export PATH=$VENV/bin:$PATH PYTHONPATH=$ROOT/benchmarks
# In this order: what needs a quiet machine most comes first. Hours are of two cores.
ALL=(ops linear attention call_overhead attention_memory sampling end_to_end profile_step server
  long_context quality routing mca aarch64)
ELEMENTWISE=(rms_norm fused_add_rms_norm layer_norm softmax rope_neox rope_interleaved
  silu_and_mul gelu_and_mul gelu_tanh_and_mul)

measure() {
  case $1 in
    ops)
      python benchmarks/run.py --op "${ELEMENTWISE[@]}" --output benchmarks/results/ops.json
      ;;
    linear)
      python benchmarks/run.py --op linear linear_int8 linear_int4 linear_int4_a16 --threads 1 \
        --output benchmarks/results/linear.json
      ;;
    attention)
      python benchmarks/run.py --op attention attention_fp8 kv_cache_append kv_cache_append_fp8 \
        --threads 1 --output benchmarks/results/attention.json
      ;;
    call_overhead | attention_memory | sampling | routing) python "benchmarks/$1.py" ;;
    long_context) python benchmarks/long_context.py --stock ;;
    # Of the choices that these have (--help), what the tables show: all of them take hours.
    end_to_end)
      python benchmarks/end_to_end/prepare.py && python benchmarks/end_to_end/run.py --threads 2
      ;;
    profile_step)
      python benchmarks/end_to_end/profile_step.py \
        --contenders vllm capibara capibara_int8 capibara_int4
      ;;
    server)
      python benchmarks/cold_start.py
      for one in gateway_overhead cold_phases profiles beside_a_load; do
        python "benchmarks/server/$one.py"
      done
      python benchmarks/server/captured_graph.py --models demo
      python benchmarks/server/on_demand.py --models demo --stock eager
      ;;
    quality) # trains the model first, where that has not been done
      [ -e .cache/kv_quality/model ] || python benchmarks/kv_quality/train.py
      python benchmarks/kv_quality/run.py && python benchmarks/int4_quality/run.py
      ;;
    mca)
      scripts/aarch64/prepare.sh && scripts/wheel.sh aarch64 && python benchmarks/aarch64/mca.py
      ;;
    aarch64) # under an emulator: hours
      scripts/aarch64/bench.sh --op "${ELEMENTWISE[@]}" \
        --output benchmarks/results/aarch64.json &&
        scripts/aarch64/bench.sh --op linear linear_int8 linear_int4 linear_int4_a16 \
          --output benchmarks/results/aarch64_linear.json &&
        scripts/aarch64/bench.sh --op attention attention_fp8 \
          --output benchmarks/results/aarch64_attention.json
      ;;
    *) die "unknown results: $1" "known: ${ALL[*]}" ;;
  esac
}

names=("$@") failed=()
[ $# -gt 0 ] || names=("${ALL[@]}")
for name in "${names[@]}"; do
  heading "$name"
  start=$SECONDS
  (measure "$name") || failed+=("$name")
  say "    $name took $((SECONDS - start)) s"
done
python benchmarks/tables/render.py
[ ${#failed[@]} -eq 0 ] || die "failed: ${failed[*]}"
