# Two commands do everything on a fresh machine with Python 3.11, a C++ compiler, make and git:
#   make train   the main job on embedded data: install, build the kernels, train, evaluate, write pictures
#   make test    the test-suite
# Both create .venv and reuse it. TORCH chooses the build of PyTorch, e.g. TORCH="torch==2.13.0 --index-url URL".

PYTHON ?= python3
TORCH ?= torch==2.13.0
VENV := .venv
BIN := $(VENV)/bin
SOURCES := pyproject.toml setup.py $(shell find csrc -type f)

.DEFAULT_GOAL := help
.PHONY: help train test test-full sanitize lint format bench bench-quick clean

help:
	@sed -n 's/^#   //p' Makefile
	@echo 'also: make lint | format | test-full | sanitize | bench | bench-quick | clean'

train: $(VENV)/installed-train
	$(BIN)/fastmmd train ds-aae

test: $(VENV)/installed-test
	$(BIN)/python -m pytest tests -q
	$(TRITON_TESTS)

test-full: $(VENV)/installed-test
	FASTMMD_TEST_FULL=1 $(BIN)/python -m pytest tests -q
	FASTMMD_TEST_FULL=1 $(TRITON_TESTS)

# The operators' tests once more, with the Triton kernels interpreted on the CPU, which takes one core.
TRITON_TESTS = TRITON_INTERPRET=1 OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 2 --backends triton \
	$(addprefix tests/test_,$(addsuffix .py,mmd fourier parzen operators triton))

# The C++ tests of the kernels, once with AddressSanitizer and UndefinedBehaviorSanitizer, once with ThreadSanitizer.
# Fresh memory is filled with NaN, so that reading what nobody wrote shows in the results.
sanitize: sanitize-address,undefined sanitize-thread

sanitize-%: $(VENV)/build-tools
	$(BIN)/cmake -S csrc -B build/$@ -G Ninja -DCMAKE_MAKE_PROGRAM=$(abspath $(BIN)/ninja) \
		-DFASTMMD_TESTS=ON -DFASTMMD_SANITIZE=$*
	$(BIN)/cmake --build build/$@
	OMP_WAIT_POLICY=passive ASAN_OPTIONS=malloc_fill_byte=255:max_malloc_fill_size=1000000000 \
		UBSAN_OPTIONS=print_stacktrace=1 $(UNRANDOMISED) build/$@/native_tests

# Older ThreadSanitizers do not run where the kernel randomises addresses with 32 bits.
UNRANDOMISED := $(shell setarch -R true 2>/dev/null && echo setarch -R)

lint: $(VENV)/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	find csrc tests/native -name '*.[ch]pp' | xargs $(BIN)/clang-format --dry-run --Werror

format: $(VENV)/installed-dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	find csrc tests/native -name '*.[ch]pp' | xargs $(BIN)/clang-format -i

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
	rm -rf build dist *.egg-info runs .pytest_cache .mypy_cache .ruff_cache fastmmd/_native*.so
