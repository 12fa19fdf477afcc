# make demo     the main job on real input, end to end
# make test     linter, types and all tests
# make native   the compiled engine, again after a change in csrc; the others do this by themselves
# Both set up what they need by themselves, in .venv inside this folder; nothing else is touched.
# Another Python: make PYTHON=python3.12 test

PYTHON ?= python3
VENV := .venv
PY := $(VENV)/bin/python
PIP := $(PY) -m pip --disable-pip-version-check -qq
TORCH := $(VENV)/torch
READY := $(VENV)/ready
NATIVE := $(VENV)/native
PEERS := $(VENV)/peers
SANITIZER ?= compute-sanitizer

# A small batch of small matrices is not worth a thread; pytest runs two processes instead.
export OMP_NUM_THREADS ?= 1
# Real problems for the demo and the tests, which do without where there are none.
export OPTLAYER_TEST_DATA ?= ../shared/data

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-sanitize cuda test-cuda test-cuda-sanitize bench-cuda native lint format peers clean

help:
	@sed -n '1,5s/^# //p' Makefile

setup:
	@$(MAKE) -s --no-print-directory -j 2 $(READY) $(NATIVE)

native: $(NATIVE)

demo: setup
	@$(PY) -m optlayer demo

# The engine is compiled while everything else is installed and read.
test:
	@$(MAKE) -s --no-print-directory -j 2 lint $(NATIVE)
	@$(PY) -m pytest -q -n 2 --dist worksteal

# The compiled engine with the address and undefined-behaviour sanitizers, uninitialised memory poisoned.
test-sanitize: $(READY)
	@OPTLAYER_SANITIZE=1 OPTLAYER_REQUIRE_NATIVE=1 $(PY) setup.py -q build_ext --build-lib build/sanitized
	@LD_PRELOAD="$$($(CXX) -print-file-name=libasan.so) $$($(CXX) -print-file-name=libstdc++.so)" \
	    ASAN_OPTIONS=detect_leaks=0 OPTLAYER_LIBRARY=build/sanitized/optlayer/_native.abi3.so \
	    $(PY) -m pytest -q tests/native

# Needs a GPU and a torch with CUDA: PY may name the Python that has it. For the GPU of this machine only, both engines
# at once; nothing is compiled twice.
cuda:
	@OPTLAYER_REQUIRE_NATIVE=1 OPTLAYER_CUDA=1 $(PY) setup.py -q build_ext --inplace -j 2

# What is most likely to fail comes first: every kernel once, then their tests, then everything else that needs a GPU.
test-cuda: cuda
	@OPTLAYER_REQUIRE_CUDA=1 $(PY) -m pytest -q -x -m cuda tests/cuda/test_sanitized.py
	@OPTLAYER_REQUIRE_CUDA=1 $(PY) -m pytest -q -m cuda tests/cuda
	@OPTLAYER_REQUIRE_CUDA=1 $(PY) -m pytest -q -m cuda tests --ignore=tests/cuda
	@$(MAKE) --no-print-directory test-cuda-sanitize PY=$(PY)

# The kernels under the checkers of CUDA's memory and of races in shared memory, on small batches; only this library's.
test-cuda-sanitize:
	@if ! command -v $(SANITIZER) >/dev/null; then \
	    echo "skipped: there is no $(SANITIZER), which comes with CUDA (or PyPI's nvidia-cuda-sanitizer-api)"; exit 0; fi; \
	for tool in memcheck racecheck synccheck; do \
	    OPTLAYER_REQUIRE_CUDA=1 PYTORCH_NO_CUDA_MEMORY_CACHING=1 $(SANITIZER) --tool $$tool --error-exitcode 1 \
	        --kernel-name kns=optlayer $(PY) -m pytest -q -x -m cuda tests/cuda/test_sanitized.py || exit 1; done

# BENCH="--quick --within 300" where time is short.
bench-cuda: cuda
	@$(PY) -m benchmarks.cuda $(BENCH)

lint: $(READY)
	@$(PY) -m ruff check
	@$(PY) -m ruff format --check
	@$(PY) -m mypy

format: $(READY)
	@$(PY) -m ruff check --fix
	@$(PY) -m ruff format

# Some systems ship Python without the pip that a new environment needs; there the system's pip, of any age, fills it.
$(PY):
	@echo "making the environment $(VENV)"
	@$(PYTHON) -m venv $(VENV) || \
	    (rm -rf $(VENV) && $(PYTHON) -m venv --without-pip $(VENV) && $(PYTHON) -m pip install --quiet --target \
	        "$$($(PY) -c 'import sysconfig; print(sysconfig.get_path("purelib"))')" pip)

# Python compiles the modules that it meets, which are few of all those of torch.
$(TORCH): constraints.txt | $(PY)
	@echo "installing torch (minutes the first time, then never again)"
	@$(PIP) install --no-compile -c constraints.txt setuptools torch
	@touch $@

$(READY): pyproject.toml setup.py setup.cfg constraints.txt $(TORCH)
	@echo "installing optlayer and what its tests and examples need"
	@OPTLAYER_NATIVE=0 OPTLAYER_REQUIRE_NATIVE= $(PIP) install --no-compile -c constraints.txt --no-build-isolation -e ".[tests,examples,io]"
	@touch $@

# It needs torch and nothing else. The objects are kept in build/native: only what changed is compiled.
$(NATIVE): setup.py $(shell find csrc -type f) | $(TORCH)
	@OPTLAYER_REQUIRE_NATIVE=$$(command -v $(CXX) >/dev/null && echo 1) $(PY) setup.py -q build_ext --inplace
	@touch $@

# qpth declares numpy < 2 but runs with the numpy of the others: it is installed without its declared dependencies.
peers: $(PEERS)

$(PEERS): $(READY) | $(NATIVE)
	@$(PIP) install -c constraints.txt --no-build-isolation -e ".[peers]"
	@$(PIP) install --no-deps qpth==0.0.18
	@touch $@

clean:
	rm -rf $(VENV) build dist out *.egg-info optlayer/_native* optlayer/_cuda* .pytest_cache .mypy_cache .ruff_cache .hypothesis
