# One command each: make demo, make test, make test-all, make check, make bench, make gpu-check, make clean.
# Every one of them sets up what it needs first; a stamp per set of requirements keeps later calls from installing again.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

PYTHON ?= python3
VENV   ?= .venv
ZOO    ?= .venv-zoo
BIN    := $(VENV)/bin
PIP    := $(BIN)/python -m pip --disable-pip-version-check
BUILD  := build/check
PYTEST_ARGS ?=

# Tests work on tiny tensors: more threads only wait for one another, above all on a busy machine.
test test-all doctest: export OMP_NUM_THREADS ?= 1

# What the compiled module is made of: a change here, or in what is required, installs (and so builds) again.
SOURCES := pyproject.toml constraints.txt $(wildcard setup.py CMakeLists.txt csrc/* csrc/*/* csrc/*/*/*)

.PHONY: help demo test test-all check lint types imports doctest build sanitize bench zoo real-models gpu-check clean distclean

help:
	@echo 'make demo       train three small networks, sweep them, write demo-output/'
	@echo 'make test       what a change needs: the tests of the engine, the kernels of this machine, files and commands'
	@echo 'make test-all   every test, with coverage: also the demo, examples, peers, interpreted and emulated GPU kernels'
	@echo 'make check      style, types, import layers, doctests'
	@echo 'make sanitize   random calls of every CPU kernel under the address, undefined-behaviour and thread sanitizers'
	@echo 'make bench      the measured comparison; writes benchmarks/results/'
	@echo 'make zoo        300 models of torch.nn, timm, transformers and peft against a plain loop, in $(ZOO)'
	@echo 'make real-models  fifteen of them timed against one, likewise; both write benchmarks/results/'
	@echo 'make gpu-check  build, tests and figures on a machine with an NVIDIA GPU, nvcc and torch; writes benchmarks/results/'
	@echo 'make clean      remove what was built and written; distclean removes $(VENV) too'

# torch goes in first and alone, under the constraint, so that nothing later can bring another one.
$(VENV)/.stamp-torch: constraints.txt
	$(PYTHON) -c 'import sys; ok = (3, 11) <= sys.version_info < (3, 14); sys.exit(None if ok else f"Python 3.11 to 3.13 is needed, $(PYTHON) is {sys.version}")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); echo 'No virtual environment could be made; on Debian: apt install python3-venv' >&2; exit 1; }
	$(PIP) install -c constraints.txt torch numpy
	touch $@

# The one compilation; what the commands need besides is added to it.
$(VENV)/.stamp-package: $(VENV)/.stamp-torch $(SOURCES)
	$(PIP) install -c constraints.txt -e .
	touch $@

$(VENV)/.stamp-%: $(VENV)/.stamp-package
	$(PIP) install -c constraints.txt 'mli-fast[$*]'
	touch $@

demo: $(VENV)/.stamp-demo
	$(BIN)/python -m mli_fast demo --out demo-output

test: $(VENV)/.stamp-dev
	$(BIN)/python $(COVERED) -m pytest -n auto -m 'not slow and not gpu' $(PYTEST_ARGS)

# Coverage of both parts; --fail-under would lose what the workers saw where it is given with the tests themselves.
test-all: COVERED = -m slipcover --json --out build/coverage-$@.json
test-all: build/. test
	$(BIN)/python $(COVERED) -m pytest -n auto -m 'slow or gpu' $(PYTEST_ARGS)
	$(BIN)/python -m slipcover --fail-under 90 --out build/coverage.json --merge build/coverage-test.json build/coverage-test-all.json

build/.:
	mkdir -p $@

check: lint types imports doctest

lint: $(VENV)/.stamp-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.stamp-dev
	$(BIN)/mypy

imports: $(VENV)/.stamp-dev
	$(BIN)/lint-imports

doctest: $(VENV)/.stamp-dev
	$(BIN)/python -m pytest -q --doctest-modules mli_fast

# From nothing, beside the module in use; MLI_FAST_NATIVE=1 makes a failing build an error, and the decision on CUDA is printed.
build: $(VENV)/.stamp-dev
	rm -rf $(BUILD)
	PATH="$(CURDIR)/$(BIN):$$PATH" MLI_FAST_NATIVE=1 MLI_FAST_CUDA=$${MLI_FAST_CUDA:-auto} $(BIN)/python setup.py -q build_ext --build-lib $(BUILD)/lib --build-temp $(BUILD)/temp
	ls $(BUILD)/lib/mli_fast/_native*.so

# In threads of the kernels' own: the thread sanitizer knows nothing of what OpenMP's runtime waits for.
SANITIZE_ROUNDS ?= 50
sanitize: $(VENV)/.stamp-dev build/.
	export PATH="$(CURDIR)/$(BIN):$$PATH"; for kind in address,undefined thread; do \
	  echo "== $$kind"; \
	  cmake -S . -B build/sanitize/$$kind -G Ninja -DMLI_SANITIZE=$$kind > build/sanitize.log || { cat build/sanitize.log; exit 1; }; \
	  cmake --build build/sanitize/$$kind; \
	  build/sanitize/$$kind/random_calls $(SANITIZE_ROUNDS); \
	done

bench: $(VENV)/.stamp-bench
	$(BIN)/python -m benchmarks.run

# An environment of its own: what the models need is nothing that the package or its tests may lean on.
$(ZOO)/.stamp: $(SOURCES)
	test -x $(ZOO)/bin/python || $(PYTHON) -m venv $(ZOO)
	$(ZOO)/bin/python -m pip --disable-pip-version-check install -c constraints.txt torch numpy
	$(ZOO)/bin/python -m pip --disable-pip-version-check install -c constraints.txt -e '.[zoo]'
	touch $@

zoo: $(ZOO)/.stamp
	$(ZOO)/bin/python -m benchmarks.zoo

real-models: $(ZOO)/.stamp
	$(ZOO)/bin/python -m benchmarks.real_models

# With what is installed there, in $(GPU_PYTHON): nothing is installed. OUT=folder gets the JSON too; GPU_CHECK_ARGS='--only build,tests'.
GPU_PYTHON ?= python3
gpu-check:
	$(GPU_PYTHON) -m benchmarks.gpu.run $(if $(OUT),--out '$(OUT)') $(GPU_CHECK_ARGS)

clean:
	rm -rf build dist demo-output .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache .benchmarks *.egg-info
	rm -f mli_fast/_native*.so $(VENV)/.stamp-package
	find mli_fast tests benchmarks examples -name __pycache__ -type d -prune -exec rm -rf {} +

distclean: clean
	rm -rf $(VENV) $(ZOO)
