# make demo      install what the demo needs, then prune a classifier on data/qa and report
# make test      install what the tests need, then run them all
# make install   what demo, tests and lint need, the demo's weights too
# make results-tables   docs/results.md and its plots, from docs/results/*.json
# make cuda      compile the CUDA backend for all GPUs that it knows; needs nvcc, no GPU
# make lint · make bench · make test-sanitize · make test-amx · make test-scalar
# make test-gpu · make bench-gpu   on a machine with a GPU, with what its Python has: no network
# make test-cuda-on-cpu   the ops' tests on the CUDA kernels, run by the CPU thread by thread
# make clean · make distclean
PYTHON ?= python3
VENV ?= .venv
DEMO_RUN ?= demo-run
BENCH_ARGS ?=
DEMO_ARGS ?= --preset demo --model minilm --data data/qa --sparsity 0.5
PYTEST_ARGS ?=

BIN := $(VENV)/bin
STAMPS := $(VENV)/stamps
PIP := $(BIN)/python -m pip --disable-pip-version-check
CORE_SOURCES := $(shell find csrc -name '*.[ch]') CMakeLists.txt pyproject.toml constraints.txt
FORMATTED := $(filter csrc/%,$(CORE_SOURCES)) $(shell find cuda tests/cuda_on_cpu -name '*.cu' \
  -o -name '*.cuh' -o -name '*.h' -o -name '*.cc')

.NOTPARALLEL:
.DELETE_ON_ERROR:
.PHONY: demo test install lint format bench results-tables test-sanitize test-amx test-scalar cuda \
  test-cuda-on-cpu test-gpu bench-gpu clean distclean

# A demo that was stopped goes on; one that is through starts anew.
demo: $(STAMPS)/demo
	@[ ! -e $(DEMO_RUN)/report.json ] || rm -rf $(DEMO_RUN)
	@if [ -e $(DEMO_RUN)/run.json ]; then set -- --resume; else set -- $(DEMO_ARGS); fi; \
	  echo "spatile finetune $$* --out $(DEMO_RUN)"; $(BIN)/spatile finetune "$$@" --out $(DEMO_RUN)
	@echo; echo "Does the sentence answer the question?"
	@$(BIN)/spatile predict $(DEMO_RUN) \
	  "When was the tower finished?" "After two years of work the tower was completed in 1889." \
	  "When was the tower finished?" "Visitors reach the top by stairs or by lift."

test: $(STAMPS)/test
	$(BIN)/python -m pytest $(PYTEST_ARGS)

install: $(STAMPS)/test $(STAMPS)/lint

lint: $(STAMPS)/test $(STAMPS)/lint
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/clang-format --dry-run -Werror $(FORMATTED)

format: $(STAMPS)/lint
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(FORMATTED)

bench: $(STAMPS)/bench
	$(BIN)/spatile bench all $(BENCH_ARGS)

results-tables: $(STAMPS)/demo
	$(BIN)/spatile sweep --tables docs/results/*.json --out docs/results.md

# ---- the environment ---------------------------------------------------------------------------

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(STAMPS)/build-tools: constraints.txt | $(BIN)/python
	$(PIP) install -c constraints.txt scikit-build-core cmake ninja numpy
	@mkdir -p $(STAMPS) && touch $@

# Editable: a changed Python file is in force at once, a changed C file when make runs next.
$(STAMPS)/core: $(STAMPS)/build-tools $(CORE_SOURCES)
	PATH="$(abspath $(BIN)):$$PATH" $(PIP) install --no-build-isolation --no-deps -e .
	@touch $@

$(STAMPS)/demo $(STAMPS)/bench $(STAMPS)/test $(STAMPS)/lint $(STAMPS)/cuda: $(STAMPS)/%: pyproject.toml constraints.txt | $(STAMPS)/core
	PATH="$(abspath $(BIN)):$$PATH" $(PIP) install --no-build-isolation -c constraints.txt -e '.[$*]'
	@touch $@

# The order-only prerequisite above installs the core first; these also follow its changes.
demo test install lint bench results-tables cuda test-cuda-on-cpu: $(STAMPS)/core

# ---- the ops on other builds of the core -------------------------------------------------------
# Each has an environment of its own that sees .venv's packages but not its spatile (a path file
# adds a folder without reading the path files in it, and so without the editable install).

build/sanitize/stamp: DEFINES := -C cmake.define.SPATILE_SANITIZE=ON -C cmake.build-type=RelWithDebInfo \
  -C cmake.define.SPATILE_EMULATE_AMX=ON
build/scalar/stamp: DEFINES := -C cmake.define.SPATILE_SCALAR_ONLY=ON
build/sanitize/stamp build/scalar/stamp: build/%/stamp: $(STAMPS)/test $(CORE_SOURCES) $(shell find python -name '*.py')
	rm -rf build/$*/venv
	$(BIN)/python -m venv --without-pip build/$*/venv
	$(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))' \
	  > "$$(build/$*/venv/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/base.pth"
	PATH="$(abspath $(BIN)):$$PATH" $(PIP) install --no-build-isolation --no-deps --ignore-installed \
	  --prefix build/$*/venv -C build-dir=build/$*/cmake -C cmake.define.SPATILE_WERROR=ON $(DEFINES) .
	@touch $@

SANITIZED := ASAN_OPTIONS=detect_leaks=0:allocator_may_return_null=1 UBSAN_OPTIONS=print_stacktrace=1 \
  LD_PRELOAD="$$($${CC:-cc} -print-file-name=libasan.so)"

# Python keeps memory until it exits and the sanitizer keeps what is freed: growth, leaks and how much
# memory suffices are for the plain build's tests.
test-sanitize: build/sanitize/stamp
	$(SANITIZED) build/sanitize/venv/bin/python -m pytest tests/ops tests/inference \
	  --ignore tests/inference/test_memory.py \
	  --deselect tests/ops/test_memory.py::test_thousands_of_calls_leak_nothing \
	  --deselect tests/ops/test_limits.py::test_workspaces_that_were_kept_are_given_up_before_memory_lacks \
	  $(PYTEST_ARGS)

# Products in bfloat16 on the emulated AMX tier, each tile's bounds watched. It needs AVX-512.
test-amx: build/sanitize/stamp
	@if grep -q avx512bw /proc/cpuinfo; then set -x; \
	  SPATILE_CPU_TIER=amx_bf16_emulated $(SANITIZED) build/sanitize/venv/bin/python -m pytest \
	    tests/inference/test_bf16.py $(wildcard tests/ops/test_linear*.py) $(PYTEST_ARGS); \
	else echo "not run: this processor lacks AVX-512, on which the emulated tier is built"; fi

test-scalar: build/scalar/stamp
	build/scalar/venv/bin/python -m pytest tests/ops tests/inference $(PYTEST_ARGS)

# ---- the CUDA backend --------------------------------------------------------------------------
# Copied beside the core, where it is looked for. CUDA_ARCHITECTURES=80-real, say, compiles for that alone.
CUDA_ARCHITECTURES ?=

cuda: $(STAMPS)/cuda
	@$(BIN)/cmake -S cuda -B build/cuda -G Ninja -DCMAKE_MAKE_PROGRAM=$(abspath $(BIN))/ninja \
	  -DPython_EXECUTABLE=$(abspath $(BIN))/python \
	  $(if $(CUDA_ARCHITECTURES),-DCMAKE_CUDA_ARCHITECTURES="$(CUDA_ARCHITECTURES)")
	$(BIN)/cmake --build build/cuda
	cp build/cuda/libspatile_cuda.so \
	  "$$($(BIN)/python -c 'import os, spatile._core as core; print(os.path.dirname(core.__file__))')"

# ON_CPU_ARGS=--watch finds races and reads outside of everything, at a fraction of the speed.
# spatile.torch on CUDA tensors has a run of its own, in which host arrays are computed on the CPU.
# Left out is what is the CPU backend's alone: second-order pruning, its threads, how much memory suffices
# it, and that rows of heads which all inputs drop are not computed; and growth, for the emulation keeps
# what is freed, to watch it.
ON_CPU_ARGS ?=
NONE_CHOSEN = || [ $$? = 5 ] # pytest's word that PYTEST_ARGS choose none of these tests
ON_CPU_TORCH := tests/torch/test_attention.py tests/torch/test_layers.py \
  $(addprefix tests/torch/test_sparse_linear.py::,\
    test_values_and_gradients_are_those_of_the_masked_layer \
    test_gradients_of_inputs_in_bfloat16 test_half_precision_weights)
ON_CPU := build/cuda_on_cpu/libspatile_cuda_on_cpu.so
test-cuda-on-cpu: $(STAMPS)/test
	$(BIN)/python tests/cuda_on_cpu/build.py build/cuda_on_cpu $(ON_CPU_ARGS)
	SPATILE_DEVICE=cuda-on-cpu SPATILE_CUDA_LIBRARY=$(abspath $(ON_CPU)) \
	  $(BIN)/python -m pytest tests/ops tests/inference $(ON_CPU_TORCH) \
	  $(patsubst %,--ignore %,$(wildcard tests/ops/test_second_order*.py)) \
	  --ignore tests/ops/test_threads.py --ignore tests/ops/test_limits.py \
	  --ignore tests/inference/test_memory.py \
	  --deselect tests/ops/test_memory.py::test_thousands_of_calls_leak_nothing \
	  --deselect tests/inference/test_run_cost.py::test_the_cost_is_what_ran $(PYTEST_ARGS)
	SPATILE_CUDA_LIBRARY=$(abspath $(ON_CPU)) $(BIN)/python -m pytest tests/torch_cuda $(PYTEST_ARGS) \
	  $(NONE_CHOSEN)

# ---- on a machine with a GPU -------------------------------------------------------------------
# With GPU_PYTHON's own NumPy, torch, pytest, cmake and ninja: nothing is installed. Core and backend, for
# the GPU at hand alone, are built into build/gpu/site, which comes before any other spatile.
GPU_PYTHON ?= python3
GPU_ARCHITECTURES ?= native
GPU_RESULTS ?= build/gpu
BENCH_GPU_ARGS ?=
ON_GPU := PYTHONPATH=$(abspath build/gpu/site):$$PYTHONPATH PYTHONUNBUFFERED=1 $(GPU_PYTHON)

.PHONY: build-gpu
build-gpu:
	cmake -S . -B build/gpu/cmake -G Ninja -DSPATILE_CUDA=ON \
	  -DCMAKE_CUDA_ARCHITECTURES=$(GPU_ARCHITECTURES) -DPython_EXECUTABLE="$$(command -v $(GPU_PYTHON))"
	cmake --build build/gpu/cmake
	rm -rf build/gpu/site && mkdir -p build/gpu/site && cp -r python/spatile build/gpu/site
	rm -f build/gpu/site/spatile/*.so
	cmake --install build/gpu/cmake --prefix build/gpu/site

# In parallel where pytest-xdist is there. Both runs go to their end, whatever came of the first.
GPU_PYTEST = -q -p no:cacheprovider $$($(GPU_PYTHON) -c "import xdist; print('-n 8')" 2>/dev/null) \
  $(PYTEST_ARGS)

test-gpu: build-gpu
	failed=0; \
	SPATILE_DEVICE=cuda $(ON_GPU) tests/gpu_report.py $(GPU_RESULTS)/test-gpu.json tests/ops tests/device \
	  $(GPU_PYTEST) || failed=1; \
	$(ON_GPU) tests/gpu_report.py $(GPU_RESULTS)/test-gpu-torch.json tests/torch_cuda $(GPU_PYTEST) \
	  $(NONE_CHOSEN) || failed=1; \
	exit $$failed

bench-gpu: build-gpu
	@mkdir -p $(GPU_RESULTS)
	$(ON_GPU) -m spatile.benchmarks.gpu --json $(GPU_RESULTS)/bench-gpu.json $(BENCH_GPU_ARGS)

clean:
	rm -rf build dist $(DEMO_RUN) .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -not -path './.git/*' -not -path './$(VENV)/*' -prune -exec rm -rf {} +

distclean: clean
	rm -rf $(VENV)
