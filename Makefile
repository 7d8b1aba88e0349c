# Each target first makes .venv, once: again only when pyproject.toml or constraints.txt change.
#   make speedrun                  train all four variants of nano and write the report
#   make speedrun ARGS=--smoke     the same in two minutes, to see that it works
#   make test-llama                exported GGUF files in llama.cpp itself, compiled first (minutes)
#   make test-vllm                 exported folders in vLLM, in a venv of its own
#   make test | lint | setup | clean

PYTHON ?= python3
RUN ?= runs/nano
ARGS ?=
# More arguments for every pip call: a mirror, a cache, a proxy.
PIP_ARGS ?=

# On Linux the torch of the default index brings gigabytes of CUDA libraries. Without an NVIDIA
# driver the CPU build is asked for as well; pip takes the other one if that index is out of reach.
ifeq ($(shell command -v nvidia-smi 2>/dev/null),)
TORCH_INDEX ?= https://download.pytorch.org/whl/cpu
endif

BIN := .venv/bin
PIP := $(BIN)/python -m pip install --quiet --constraint constraints.txt $(PIP_ARGS)
STAMP := .venv/installed
LLAMA := .venv-llama

# vLLM wants older packages than .venv has, and the CPU build of torch whatever the machine.
VLLM := .venv-vllm
VLLM_PIP := $(VLLM)/bin/python -m pip install --quiet --no-compile --no-deps $(PIP_ARGS)
CPU_TORCH := --retries 1 --extra-index-url https://download.pytorch.org/whl/cpu torch==2.13.0+cpu

.PHONY: speedrun test test-vllm test-llama lint setup clean

speedrun: $(STAMP)
	$(BIN)/mimo speedrun --out $(RUN) $(ARGS)

test: $(STAMP)
	$(BIN)/python -m pytest $(ARGS)

test-vllm: $(VLLM)/installed
	$(VLLM)/bin/python -m pytest tests_vllm $(ARGS)

test-llama: $(STAMP) $(LLAMA)/installed
	LLAMA_PYTHON=$(LLAMA)/bin/python $(BIN)/python -m pytest tests/interop/test_gguf_llama.py $(ARGS)

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

setup: $(STAMP)

define CHECK_PYTHON
$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
  { echo "openmimo needs Python 3.11 or newer, and $(PYTHON) is not: make PYTHON=python3.12 ..." >&2; exit 1; }; \
$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || \
  { echo "$(PYTHON) cannot make virtual environments: apt-get install python3-venv" >&2; exit 1; }
endef

# torch goes first and without its dependencies, so that only this one package is looked up in
# TORCH_INDEX.
$(STAMP): pyproject.toml constraints.txt
	@$(CHECK_PYTHON)
	@echo "Installing into .venv; the first time takes some minutes."
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@$(PIP) --no-deps $(if $(TORCH_INDEX),--retries 1 --extra-index-url $(TORCH_INDEX)) torch
	@$(PIP) --editable '.[plots,dev]'
	@touch $@

# No resolving: requirements-vllm.txt lists everything.
$(VLLM)/installed: pyproject.toml requirements-vllm.txt
	@$(CHECK_PYTHON)
	@echo "Installing into $(VLLM); the first time takes some minutes."
	@test -x $(VLLM)/bin/python || $(PYTHON) -m venv $(VLLM)
	@$(VLLM_PIP) $(CPU_TORCH)
	@$(VLLM_PIP) --requirement requirements-vllm.txt
	@$(VLLM_PIP) --editable .
	@touch $@

# llama.cpp's Python package has no wheel: pip compiles it, which needs a C++ compiler. It stays
# out of .venv, which shares nothing with it. What it would compile for images is left out.
$(LLAMA)/installed: constraints.txt
	@command -v c++ >/dev/null || \
	  { echo "llama.cpp has to be compiled, and there is no C++ compiler: apt-get install g++" >&2; exit 1; }
	@echo "Compiling llama.cpp into $(LLAMA); this takes some minutes."
	@test -x $(LLAMA)/bin/python || $(PYTHON) -m venv $(LLAMA)
	@CMAKE_ARGS="-DLLAVA_BUILD=OFF $$CMAKE_ARGS" $(LLAMA)/bin/python -m pip install --quiet \
	  --constraint constraints.txt $(PIP_ARGS) llama-cpp-python
	@touch $@

clean:
	rm -rf .venv $(VLLM) $(LLAMA) .pytest_cache .mypy_cache .ruff_cache .hypothesis dist
	find openmimo tests -name __pycache__ -prune -exec rm -rf {} +
