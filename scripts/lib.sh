# SPDX-License-Identifier: Apache-2.0
# shellcheck shell=bash
# Shared by the scripts beside it: messages, timing, stamps. Sourced, never run.

ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
VENV=$ROOT/.venv
STAMPS=$VENV/.stamps

if [ -t 1 ] && [ -z "${NO_COLOR:-}" ]; then
  BOLD=$'\033[1m' RED=$'\033[31m' PLAIN=$'\033[0m'
else
  BOLD='' RED='' PLAIN=''
fi

say() { printf '%s\n' "$*"; }
heading() { printf '\n%s==> %s%s\n' "$BOLD" "$*" "$PLAIN"; }

die() {
  printf '%serror:%s %s\n' "$RED" "$PLAIN" "$1" >&2
  shift
  [ $# -eq 0 ] || printf '       %s\n' "$@" >&2
  exit 1
}

# run_step WHAT COMMAND...: runs the command under a heading and says how long it took. Where it fails,
# `set -e` ends the script, and the trap says in which step.
STEP=
report_failed_step() {
  local status=$?
  if [ $status -ne 0 ] && [ -n "$STEP" ]; then
    printf '%serror:%s failed: %s\n' "$RED" "$PLAIN" "$STEP" >&2
  fi
}
trap report_failed_step EXIT
run_step() {
  local start=$SECONDS
  STEP=$1
  shift
  heading "$STEP"
  "$@"
  STEP=
  say "    done in $((SECONDS - start)) s"
}

# once STAMP STATE WHAT COMMAND...: a step that is skipped while STATE is what it was last time.
once() {
  local stamp=$STAMPS/$1 state=$2
  shift 2
  [ "$(cat "$stamp" 2>/dev/null)" != "$state" ] || return 0
  run_step "$@"
  mkdir -p "$STAMPS"
  printf '%s\n' "$state" >"$stamp"
}

# digest FILE-OR-FOLDER...: one hash over the names and contents of all files below.
digest() {
  (cd "$ROOT" && find "$@" -type f -not -path '*/__pycache__/*' -print0 2>/dev/null |
    LC_ALL=C sort -z | xargs -0 sha256sum | sha256sum | cut -d' ' -f1)
}

jobs() { echo "${JOBS:-$(nproc)}"; }
