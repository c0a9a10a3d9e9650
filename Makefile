# make quickstart   from nothing to a trained model and runs/quickstart/report.html
# make test         lint, types, layers and every fast test
# make test-all     the slow tests too
# make test-journeys what a newcomer types, command by command (minutes)
# make coverage     the fast tests with coverage, and its floor
# make test-sandbox the sandbox as this user and as an ordinary one, with and without control groups
# make fuzz         damaged and hostile inputs, five minutes for each kind (SECONDS=300)
# make wheel        the wheel, in dist/
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

.PHONY: quickstart test test-all test-journeys test-sandbox coverage fuzz wheel lint bench constraints clean

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

quickstart: $(VENV)/.installed
	@$(BIN)/fathom train recipes/quickstart.toml --out $(RUN) --resume

test: lint
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses $(WORKERS)

test-all: lint $(VENV)/.installed-all
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses $(WORKERS) -m 'slow or not slow'

test-journeys: $(VENV)/.installed-dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses $(WORKERS) -m 'slow or not slow' tests/journeys

test-sandbox: $(VENV)/.installed-dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses $(WORKERS) -m 'slow or not slow' tests/posttrain/sandbox tests/posttrain/verdicts

coverage: $(VENV)/.installed-dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses $(WORKERS) --cov --cov-report=term:skip-covered

wheel: $(VENV)/.installed
	@$(BIN)/python -m pip --disable-pip-version-check wheel --quiet --no-deps --wheel-dir dist .
	@ls dist/*.whl

fuzz: $(VENV)/.installed-dev
	$(BIN)/python -m tests.fuzz --seconds $(SECONDS)

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check --quiet .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo

bench: $(VENV)/.installed-dev
	$(BIN)/python -m benchmarks

constraints:
	@rm -rf build/constraints && $(PYTHON) -m venv build/constraints
	@build/constraints/bin/python -m pip install --quiet torch==2.13.0
	@build/constraints/bin/python -m pip install --quiet '.[dev,evals,trackio,wandb]'
	@(head -1 constraints.txt; build/constraints/bin/python -m pip freeze --exclude fathom-lm | sed 's/^torch @.*/torch==2.13.0/') > build/constraints.txt
	@mv build/constraints.txt constraints.txt && rm -rf build/constraints

clean:
	rm -rf $(VENV) build dist *.egg-info
