# SPDX-License-Identifier: Apache-2.0
# Every target makes what it needs first: see scripts/bootstrap.sh.

VENV   := .venv
PYTHON_IN_VENV := $(VENV)/bin/python
DEMO   := build/demo
# The experts to serve: make serve CONFIG=my_experts.json
CONFIG ?= $(DEMO)/config.json
SERVE  ?=
BENCH  ?= $(PYTHON_IN_VENV) benchmarks/run.py
CXX_FILES = $(shell find csrc tests/cpp -name '*.cc' -o -name '*.h')

.DEFAULT_GOAL := help
.PHONY: help bootstrap serve test test-cpp test-asan test-python test-vllm test-server bench lint format wheel clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-13s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
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

test: bootstrap ## run every test that CI runs; test-cpp, -asan, -python, -vllm, -server: a part
	@scripts/test.sh

test-cpp test-asan test-python test-vllm test-server: bootstrap
	@scripts/test.sh $(@:test-%=%)

bench: bootstrap ## time every operator against its peers
	$(BENCH)
	@PATH=$(VENV)/bin:$$PATH; cmake --preset dev >/dev/null && cmake --build --preset dev
	build/dev/tests/cpp/reference_bench | tee benchmarks/results/reference.json
	build/dev/tests/cpp/parallel_bench

lint: bootstrap ## ruff, mypy, clang-format and the layer rule
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy
	$(VENV)/bin/clang-format --dry-run -Werror $(CXX_FILES)
	$(PYTHON_IN_VENV) scripts/check_layers.py

format: bootstrap ## bring the sources into shape
	$(VENV)/bin/ruff check --fix .
	$(VENV)/bin/ruff format .
	$(VENV)/bin/clang-format -i $(CXX_FILES)

wheel: bootstrap ## build dist/*.whl for this machine's architecture
	$(PYTHON_IN_VENV) -m pip wheel . --no-deps --no-build-isolation -w dist

clean: ## remove what was built; .venv stays
	rm -rf build dist .mypy_cache .ruff_cache .pytest_cache
	rm -f $(VENV)/.stamps/native
