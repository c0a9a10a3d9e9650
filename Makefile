# make quickstart   from nothing to a trained model and runs/quickstart/report.html
# make test         lint, types, layers and every fast test
# make test-all     the slow tests too
# make test-journeys what a newcomer types, command by command (minutes)
# make coverage     the fast tests with coverage, and its floor
# make test-sandbox the sandbox as this user and as an ordinary one, with and without control groups
# make test-parallel every plan of two and four processes against one (minutes)
# make fuzz         damaged and hostile inputs, five minutes for each kind (SECONDS=300)
# make test-sanitizers the tests of the native library, with checks of addresses and undefined behaviour
# make wheel        the wheel of this machine, in dist/
# make wheels       the wheels of Linux (x86-64, ARM) and macOS, in dist/, built with zig
# make native       the native CPU library, built again where its sources changed
# make gpu          on a machine with a GPU: the tests that it changes, and benchmarks/gpu.py, under nine minutes
# make lint | bench | constraints | clean

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
RUN ?= runs/quickstart
WORKERS ?= 2
SECONDS ?= 300
INSTALL := $(BIN)/python -m pip --disable-pip-version-check install --quiet --constraint constraints.txt \
	--config-settings editable_mode=compat --editable
# On Linux without a GPU, TORCH_INDEX=https://download.pytorch.org/whl/cpu saves some gigabytes.
TORCH_INDEX ?=

.PHONY: quickstart native test test-all test-journeys test-parallel test-sandbox test-sanitizers coverage fuzz wheel wheels lint bench gpu constraints clean

$(VENV)/.installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or newer is needed; try make PYTHON=python3.11" if sys.version_info < (3, 11) else 0)'
	@echo "Installing Fathom into $(VENV) (a minute or two)"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(if $(TORCH_INDEX),$(BIN)/python -m pip install --quiet --constraint constraints.txt --index-url $(TORCH_INDEX) torch,true)
	@$(INSTALL) '.[data,gguf,images,rl,serve,track]'
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	@echo "Installing the development tools"
	@$(INSTALL) '.[dev]'
	@touch $@

$(VENV)/.installed-all: $(VENV)/.installed-dev
	@echo "Installing lm-eval, Trackio and W&B (a minute or two)"
	@$(INSTALL) '.[evals,trackio,wandb]'
	@touch $@

# Built when Fathom is installed, and again once its sources changed; without a compiler everything runs without it.
native: $(VENV)/.installed
	@$(BIN)/python fathom/kernels/native/build.py --if-needed || true

quickstart: $(VENV)/.installed native
	@$(BIN)/fathom train recipes/quickstart.toml --out $(RUN) --resume

test: lint native
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses $(WORKERS)

test-all: lint native $(VENV)/.installed-all
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses $(WORKERS) -m 'slow or not slow'

test-journeys: $(VENV)/.installed-dev native
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses $(WORKERS) -m 'slow or not slow' tests/journeys

test-parallel: $(VENV)/.installed-dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n0 -s -m 'slow or not slow' tests/parallel tests/checkpoint/sharded

test-sandbox: $(VENV)/.installed-dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses $(WORKERS) -m 'slow or not slow' tests/posttrain/sandbox tests/posttrain/verdicts

coverage: $(VENV)/.installed-dev native
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses $(WORKERS) --cov --cov-report=term:skip-covered

wheel: $(VENV)/.installed
	@$(BIN)/python -m pip --disable-pip-version-check wheel --quiet --no-deps --wheel-dir dist .
	@ls dist/*.whl

wheels: $(VENV)/.installed
	@for platform in linux-x86_64 linux-aarch64 macos-arm64; do \
		FATHOM_WHEEL=$$platform $(BIN)/python -m pip --disable-pip-version-check wheel --quiet --no-deps --wheel-dir dist . || exit 1; \
	done
	@ls dist/*.whl

test-sanitizers: $(VENV)/.installed-dev
	@mkdir -p build
	@$(BIN)/python fathom/kernels/native/build.py --sanitize address,undefined --output build/libfathom_sanitized.so
	OMP_NUM_THREADS=1 FATHOM_NATIVE=$(CURDIR)/build/libfathom_sanitized.so LD_PRELOAD="$$(gcc -print-file-name=libasan.so)" \
		ASAN_OPTIONS=detect_leaks=0 UBSAN_OPTIONS=print_stacktrace=1 \
		$(BIN)/python -m pytest -n0 -p no:cacheprovider tests/kernels/native tests/engine/sampling/test_native.py

fuzz: $(VENV)/.installed-dev
	$(BIN)/python -m tests.fuzz --seconds $(SECONDS)

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check --quiet .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo

bench: $(VENV)/.installed-dev
	$(BIN)/python -m benchmarks

gpu: $(VENV)/.installed-dev
	$(BIN)/python -m pytest --numprocesses 0 -m gpu
	$(BIN)/python -m benchmarks.gpu

constraints:
	@rm -rf build/constraints && $(PYTHON) -m venv build/constraints
	@build/constraints/bin/python -m pip install --quiet torch==2.13.0
	@build/constraints/bin/python -m pip install --quiet '.[dev,evals,trackio,wandb]'
	@(head -1 constraints.txt; build/constraints/bin/python -m pip freeze --exclude fathom-lm | sed 's/^torch @.*/torch==2.13.0/') > build/constraints.txt
	@mv build/constraints.txt constraints.txt && rm -rf build/constraints

clean:
	rm -rf $(VENV) build dist *.egg-info
