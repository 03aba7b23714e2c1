# Two commands are enough on a fresh machine with Python 3.11 or newer, a C++ compiler, make and git:
#   make train        the main job on embedded data: install, build the kernels, train, evaluate, write figures
#   make test         the test suite
#   make test-quick   what a change may have broken, in about a minute
# They create .venv and reuse it. TORCH selects the PyTorch build, e.g. TORCH="torch==2.13.0 --index-url URL".

PYTHON ?= python3
TORCH ?= torch==2.13.0
TRITON ?= 3.7.1
JOBS ?= 2
VENV := .venv
BIN := $(VENV)/bin
# Modules are compiled when they are first imported, which most of torch never is.
PIP := $(BIN)/pip --disable-pip-version-check install --quiet --no-compile
SOURCES := pyproject.toml setup.py $(shell find csrc -type f)

# What does not depend on each other is made at a time, by Ninja too, which would ask for a share of these jobs.
MAKEFLAGS += --jobs=$(JOBS)
unexport MAKEFLAGS

# What the first process compiles of torch is kept for all others.
unexport PYTHONDONTWRITEBYTECODE

# CUDA kernels are built where a GPU is visible, unless FASTMMD_CUDA is set.
ifndef FASTMMD_CUDA
FASTMMD_CUDA := $(if $(shell nvidia-smi -L 2>/dev/null | grep ^GPU),auto,off)
endif
export FASTMMD_CUDA

.DEFAULT_GOAL := help
.PHONY: help train test test-quick test-full test-triton mutants cuda-on-host sanitize lint format audit bench bench-quick clean

help:
	@sed -n 's/^#   //p' Makefile
	@echo 'also: make lint | format | audit | mutants | test-full | test-triton TRITON=3.7.1 | sanitize | bench | bench-quick | clean'

train: $(VENV)/installed
	$(BIN)/fastmmd train ds-aae

test: all-tests emulated-triton emulated-cuda
.PHONY: all-tests emulated-triton emulated-cuda

test-full: all-tests emulated-triton emulated-cuda
test-full: export FASTMMD_TEST_FULL = 1
test-full: CUDA_DIMS := 16
test-full: HOST_FLAGS = $(FUSED)  # products and sums in one rounding, as a GPU does them
test-full: CHOSEN = $(AROUND)

all-tests: $(VENV)/installed-test
	$(PYTEST) $(BY_FILE) tests

# In one process each, beside the others: what they say is kept until they end.
emulated-triton: $(VENV)/installed-test
	$(INTERPRETED) $(ALONE) $(TRITON_TESTS) $(CHOSEN) $(REPORT)

emulated-cuda: $(VENV)/installed-test cuda-on-host
	$(ON_HOST) $(ALONE) $(CUDA_TESTS) $(CHOSEN) $(REPORT)

ALONE = $(BIN)/python -m pytest -q $(if $(FASTMMD_TEST_FULL),-n $(JOBS))
REPORT = >build/$@.log 2>&1 && tail -n 1 build/$@.log || { cat build/$@.log; exit 1; }

# Every operation and kernel once. The CUDA kernels where `make cuda-on-host` has built them.
test-quick: $(VENV)/installed-test
	$(PYTEST) $(BY_FILE) $(QUICK)
	$(INTERPRETED) $(PYTEST) --backends triton $(SUITE)
	test ! -d build/cuda-on-host || $(ON_HOST) $(PYTEST) --backends cuda $(SUITE)

# Plants faults, one at a time, and shows that the quick suite catches each; goes on where it was interrupted.
mutants: $(VENV)/installed-test
	$(BIN)/python tests/mutants/plant.py --jobs $(JOBS) $(QUICK) $(PROCESSES)

# The Triton kernels with another version of Triton, by default the one that torch 2.13 requires, which lies before that
# of .venv and stays out of it.
test-triton: $(VENV)/installed-test
	test -d build/triton-$(TRITON) || $(PIP) --no-deps --target build/triton-$(TRITON) triton==$(TRITON)
	PYTHONPATH="$(CURDIR)/build/triton-$(TRITON)" $(INTERPRETED) $(PYTEST) $(TRITON_TESTS) $(AROUND)

PYTEST = $(BIN)/python -m pytest -q -n $(JOBS)
# A file stays with one worker: some compile kernels for all their tests. conftest.py puts long files first.
BY_FILE := --dist loadfile --no-loadscope-reorder
SUITE := tests/test_quick.py
QUICK := $(SUITE) $(patsubst %,tests/test_%.py,mutants architecture errors backends regularizers nn labels_nn evaluation gmmn \
	labels_absent loops checkpoint inputs training_inputs)
PROCESSES := tests/test_shards.py tests/test_distributed_training.py
OPERATORS := $(patsubst %,tests/test_%.py,quick mmd labels fourier parzen extremes)
AROUND := $(patsubst %,tests/test_%.py,discrepancy operators dispatch)

# The operators' tests once more, with the Triton kernels interpreted on the CPU, which takes one core.
INTERPRETED := TRITON_INTERPRET=1 OMP_NUM_THREADS=1
TRITON_TESTS := --backends triton $(OPERATORS) tests/test_triton.py

# And with the CUDA kernels, compiled for the CPU (tests/native/cuda/on_host.hpp) with AddressSanitizer and
# UndefinedBehaviorSanitizer, whose library must be there before Python, with the one whose exceptions it watches.
ON_HOST = LD_PRELOAD="$(foreach name,libasan.so libstdc++.so,$(shell $(CXX) -print-file-name=$(name)))" \
	ASAN_OPTIONS=detect_leaks=0 UBSAN_OPTIONS=print_stacktrace=1 OMP_NUM_THREADS=1 \
	FASTMMD_CUDA_ON_HOST=build/cuda-on-host
CUDA_TESTS := --backends cuda $(OPERATORS) tests/test_cuda.py

# Emulated kernels are slow: each of them and each of their flags once, and what is difficult for a kernel.
CHOSEN = -k "test_quick or test_extremes or test_triton or test_cuda or far_ or very_different or with_zeros or strided \
	or many_samples or any_finite or large_arguments or members or no_labeled $(BY_DIMENSION)"
emulated-cuda: BY_DIMENSION := or every_dimension

# Up to how many dimensions mmd2 has CUDA kernels of its own: fewer than users have compile in a third of the time.
CUDA_DIMS := 5
HOST_FLAGS := -O0
FUSED := -O2 $(shell grep -qw fma /proc/cpuinfo 2>/dev/null && echo -mfma)

cuda-on-host: $(VENV)/build-tools
	$(CMAKE) -S csrc -B build/$@ -G Ninja -DCMAKE_CXX_COMPILER=$(CXX) \
		-DFASTMMD_CUDA_ON_HOST=ON -DFASTMMD_SANITIZE=address,undefined -DFASTMMD_CUDA_DIMS=$(CUDA_DIMS) \
		-DFASTMMD_HOST_FLAGS="$(HOST_FLAGS)" \
		-Dpybind11_DIR="$$($(BIN)/python -m pybind11 --cmakedir)" -DPYBIND11_FINDPYTHON=ON \
		-DPython_EXECUTABLE="$(abspath $(BIN))/python"
	$(CMAKE) --build build/$@

# With the tools beside it; the path of this folder may contain spaces.
BESIDE := PATH="$(abspath $(BIN)):$$PATH"
CMAKE := $(BESIDE) cmake

# The C++ tests of the kernels, once with AddressSanitizer and UndefinedBehaviorSanitizer, once with ThreadSanitizer.
# Fresh memory is filled with NaN, so that reading what nobody wrote shows in the results.
sanitize: sanitize-address,undefined sanitize-thread

sanitize-%: $(VENV)/build-tools
	$(CMAKE) -S csrc -B build/$@ -G Ninja -DFASTMMD_TESTS=ON -DFASTMMD_SANITIZE=$*
	$(CMAKE) --build build/$@
	OMP_WAIT_POLICY=passive ASAN_OPTIONS=malloc_fill_byte=255:max_malloc_fill_size=1000000000 \
		UBSAN_OPTIONS=print_stacktrace=1 $(UNRANDOMIZED) build/$@/native_tests

# Older ThreadSanitizers do not run where the kernel randomizes addresses with 32 bits.
UNRANDOMIZED := $(shell setarch -R true 2>/dev/null && echo setarch -R)

CPP_FILES := find csrc tests/native -name '*.[ch]pp' -o -name '*.cu' -o -name '*.cuh'

lint: $(VENV)/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(CPP_FILES) | xargs $(BIN)/clang-format --dry-run --Werror

format: $(VENV)/installed-dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(CPP_FILES) | xargs $(BIN)/clang-format -i

# pip-audit has an environment of its own: it is no dependency of what it looks at.
audit: $(VENV)/installed-dev
	test -x build/audit/bin/pip-audit || { $(PYTHON) -m venv build/audit && build/audit/bin/pip install -q pip-audit; }
	$(BIN)/python tests/audit.py build/audit/bin/pip-audit

bench: $(VENV)/installed-bench
	$(BIN)/python benchmarks/record.py

bench-quick: $(VENV)/installed-bench
	$(BIN)/python benchmarks/record.py --quick

# All that a build of C++ needs besides a compiler, which torch is not: it runs while torch is fetched.
$(VENV)/build-tools:
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) cmake ninja pybind11 "setuptools>=77"
	touch $@

# torch by itself and before the others: with it in place no dependency pulls another build.
$(VENV)/torch: $(VENV)/build-tools
	$(PIP) $(TORCH)
	touch $@

$(VENV)/installed: $(VENV)/torch $(SOURCES)
	$(BESIDE) $(PIP) --no-build-isolation --editable '.[train]'
	touch $@

# Extras add to the installed package, which is built once; one pip at a time.
$(VENV)/installed-%: $(VENV)/installed
	$(PIP) 'fastmmd[$*]'
	touch $@

$(VENV)/installed-dev: | $(VENV)/installed-test

clean:
	rm -rf build dist *.egg-info runs .pytest_cache .mypy_cache .ruff_cache fastmmd/_native*.so fastmmd/_cuda*.so
