# Two commands are enough on a fresh machine with Python 3.11 or newer, a C++ compiler, make and git:
#   make train   the main job on embedded data: install, build the kernels, train, evaluate, write figures
#   make test    the test suite
# Both create .venv and reuse it. TORCH selects the PyTorch build, e.g. TORCH="torch==2.13.0 --index-url URL".

PYTHON ?= python3
TORCH ?= torch==2.13.0
JOBS ?= 2
VENV := .venv
BIN := $(VENV)/bin
SOURCES := pyproject.toml setup.py $(shell find csrc -type f)

# CUDA kernels are built where a GPU is visible, unless FASTMMD_CUDA is set.
ifndef FASTMMD_CUDA
FASTMMD_CUDA := $(if $(shell nvidia-smi -L 2>/dev/null | grep ^GPU),auto,off)
endif
export FASTMMD_CUDA

.DEFAULT_GOAL := help
.PHONY: help train test test-full cuda-on-host sanitize lint format bench bench-quick clean

help:
	@sed -n 's/^#   //p' Makefile
	@echo 'also: make lint | format | test-full | sanitize | bench | bench-quick | clean'

train: $(VENV)/installed-train
	$(BIN)/fastmmd train ds-aae

test: $(VENV)/installed-test cuda-on-host
	$(PYTEST) --dist loadfile tests
	$(TRITON_TESTS) -k $(KERNELS_ONLY)
	$(CUDA_TESTS) -k $(KERNELS_ONLY)

test-full: export FASTMMD_TEST_FULL = 1
test-full: $(VENV)/installed-test cuda-on-host
	$(PYTEST) --dist loadfile tests
	$(TRITON_TESTS)
	$(CUDA_TESTS)

# A file stays with one worker: some compile kernels for all their tests.
PYTEST = $(BIN)/python -m pytest -q -n $(JOBS)
OPERATORS = $(addprefix tests/test_,$(addsuffix .py,mmd labels fourier discrepancy parzen operators dispatch))

# The operators' tests once more, with the Triton kernels interpreted on the CPU, which takes one core.
TRITON_TESTS = TRITON_INTERPRET=1 OMP_NUM_THREADS=1 $(PYTEST) --backends triton $(OPERATORS) tests/test_triton.py

# And with the CUDA kernels, compiled for the CPU (tests/native/cuda/on_host.hpp) with AddressSanitizer and
# UndefinedBehaviorSanitizer, whose library must be there before Python, with the one whose exceptions it watches.
CUDA_TESTS = LD_PRELOAD="$(foreach name,libasan.so libstdc++.so,$(shell $(CXX) -print-file-name=$(name)))" \
	ASAN_OPTIONS=detect_leaks=0 UBSAN_OPTIONS=print_stacktrace=1 OMP_NUM_THREADS=1 \
	FASTMMD_CUDA_ON_HOST=build/cuda-on-host $(PYTEST) --backends cuda $(OPERATORS) tests/test_cuda.py

# Emulated kernels are slow: without what asks the operators around them, which ran before, and what only a GPU shows.
KERNELS_ONLY = "not (gradcheck or second_derivatives or create_graph or compile or without_grad or precision or memory)"

cuda-on-host: $(VENV)/installed-test
	$(BIN)/cmake -S csrc -B build/$@ -G Ninja -DCMAKE_MAKE_PROGRAM=$(abspath $(BIN)/ninja) \
		-DCMAKE_CXX_COMPILER=$(CXX) -DFASTMMD_CUDA_ON_HOST=ON -DFASTMMD_SANITIZE=address,undefined \
		-Dpybind11_DIR=$$($(BIN)/python -m pybind11 --cmakedir) -DPYBIND11_FINDPYTHON=ON \
		-DPython_EXECUTABLE=$(abspath $(BIN)/python)
	$(BIN)/cmake --build build/$@

# The C++ tests of the kernels, once with AddressSanitizer and UndefinedBehaviorSanitizer, once with ThreadSanitizer.
# Fresh memory is filled with NaN, so that reading what nobody wrote shows in the results.
sanitize: sanitize-address,undefined sanitize-thread

sanitize-%: $(VENV)/build-tools
	$(BIN)/cmake -S csrc -B build/$@ -G Ninja -DCMAKE_MAKE_PROGRAM=$(abspath $(BIN)/ninja) \
		-DFASTMMD_TESTS=ON -DFASTMMD_SANITIZE=$*
	$(BIN)/cmake --build build/$@
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

bench: $(VENV)/installed-bench
	$(BIN)/python benchmarks/record.py

bench-quick: $(VENV)/installed-bench
	$(BIN)/python benchmarks/record.py --quick

# All that the C++ tests need besides a compiler.
$(VENV)/build-tools:
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check cmake ninja
	touch $@

# torch first and by itself: with it in place no dependency pulls another build.
$(VENV)/torch:
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check $(TORCH)
	touch $@

$(VENV)/installed-%: $(VENV)/torch $(SOURCES)
	$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[train,$*]'
	touch $@

clean:
	rm -rf build dist *.egg-info runs .pytest_cache .mypy_cache .ruff_cache fastmmd/_native*.so fastmmd/_cuda*.so
