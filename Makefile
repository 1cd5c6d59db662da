# SPDX-License-Identifier: Apache-2.0
# Every target makes what it needs first: see scripts/bootstrap.sh.

VENV   := .venv
PYTHON_IN_VENV := $(VENV)/bin/python
DEMO   := build/demo
# The experts to serve: make serve CONFIG=my_experts.json
CONFIG ?= $(DEMO)/config.json
SERVE  ?=
SOAK_SECONDS ?= 3600
BENCH  ?= $(PYTHON_IN_VENV) benchmarks/run.py
CXX_FILES = $(shell find csrc tests/cpp benchmarks -name '*.cc' -o -name '*.c' -o -name '*.h')

.DEFAULT_GOAL := help
TESTS = cpp asan python vllm server wheel aarch64
.PHONY: help bootstrap serve test $(TESTS:%=test-%) soak bench bench-aarch64 results mca lint format wheel \
  wheel-aarch64 clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / {printf "  make %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
	@echo 'settings: CONFIG=FILE and SERVE="--port N" for serve; PYTHON, TORCH_INDEX_URL, JOBS for the installation'

bootstrap: ## install what is missing (system packages, .venv, torch, vLLM) and compile
	@scripts/bootstrap.sh

serve: bootstrap ## serve five demo experts on 127.0.0.1:8082 and 8083, or CONFIG=my.json
ifeq ($(CONFIG),$(DEMO)/config.json)
	@$(VENV)/bin/capibara-axion demo-models $(DEMO)
endif
	@exec $(VENV)/bin/capibara-axion serve --config $(CONFIG) $(SERVE)

# The C++ tests need one package more than the rest.
test test-cpp test-asan bench: export FOR_TESTS := 1
# And those of the server's page a browser.
test test-server: export FOR_PAGE_TESTS := 1

test: bootstrap ## run every test that CI runs; test-cpp, -asan, -python, -vllm, -server, -wheel: a part
	@scripts/test.sh

# test-aarch64 has a line of its own in `make help`.
$(TESTS:%=test-%): bootstrap
	@scripts/test.sh $(@:test-%=%)
test-aarch64: ## the part that cross-builds for aarch64 and runs under QEMU

soak: bootstrap ## five demo experts coming and going for SOAK_SECONDS (an hour): nothing may be lost
	$(PYTHON_IN_VENV) tests/server/soak.py churn --demo --seconds $(SOAK_SECONDS)

bench: bootstrap ## time every operator against its peers
	$(BENCH)
	@PATH=$(VENV)/bin:$$PATH; cmake --preset dev >/dev/null && cmake --build --preset dev
	build/dev/tests/cpp/reference_bench | tee benchmarks/results/reference.json
	build/dev/tests/cpp/parallel_bench

results: bootstrap ## measure everything in benchmarks/results anew (hours), or RESULTS="ops linear"
	@scripts/results.sh $(RESULTS)
	@git --no-pager diff --stat -- benchmarks/results README.md docs/measured.md

bench-aarch64: bootstrap ## count every operator's instructions on aarch64, beside its peers, under QEMU
	@scripts/aarch64/bench.sh $(BENCH_AARCH64)

mca: bootstrap ## simulate the inner loops on Neoverse V2, V1, N2 and N1 (llvm-mca)
	@scripts/aarch64/prepare.sh
	@scripts/wheel.sh aarch64
	$(PYTHON_IN_VENV) benchmarks/aarch64/mca.py $(MCA)

lint: bootstrap ## ruff, mypy, clang-format, the layer rule, the workflows' syntax and stale tables
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy
	$(VENV)/bin/clang-format --dry-run -Werror $(CXX_FILES)
	$(PYTHON_IN_VENV) scripts/check_layers.py
	$(PYTHON_IN_VENV) benchmarks/tables/render.py --check
	$(VENV)/bin/check-jsonschema --builtin-schema vendor.github-workflows .github/workflows/*.yml

format: bootstrap ## bring the sources into shape
	$(VENV)/bin/ruff check --fix .
	$(VENV)/bin/ruff format .
	$(VENV)/bin/clang-format -i $(CXX_FILES)

wheel: bootstrap ## build dist/*.whl for this machine's architecture
	@scripts/wheel.sh

wheel-aarch64: bootstrap ## cross-build dist/*.whl for aarch64
	@scripts/aarch64/prepare.sh
	@scripts/wheel.sh aarch64

clean: ## remove what was built; .venv and .cache stay
	rm -rf build dist .mypy_cache .ruff_cache .pytest_cache
	rm -f $(VENV)/.stamps/native
