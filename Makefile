# Every target does its own set-up: it finds a Python, makes a virtual environment and installs what it needs,
# once (stamp files remember). Override with `make test PYTHON=/path/to/python3.12 VENV=/tmp/venv`.

SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

VENV ?= .venv
VENV_LOWEST ?= .venv-lowest
PYTHON ?=
WORKERS ?= auto
PYTEST_ARGS ?=
NOTEBOOK ?= notebooks/01-flights.ipynb
export PIP_DISABLE_PIP_VERSION_CHECK = 1

BIN := $(VENV)/bin
# Several kernels at once need processors: more than eight workers only make each other wait.
PYTEST := $(BIN)/python -m pytest -n $(WORKERS) --maxprocesses 8 --dist loadfile
PIP := -m pip install --quiet
# What the lowest supported versions can break: everything that touches duckdb, pandas, pyarrow and the kernel.
LOWEST_TESTS ?= tests/values tests/store tests/runtime tests/board tests/notebook/test_kernel.py tests/test_cli.py tests/test_cli_store.py
# … and papermill, nbclient and IPython.
LOWEST_TESTS += tests/headless/test_engine.py tests/headless/test_same.py tests/headless/test_equal.py tests/headless/test_batch.py tests/test_cli_batch.py

# pyarrow before 24 cannot slice string_view arrays to bytes: they are refused there with CannotStore.
LOWEST_TESTS += --deselect 'tests/values/test_codec_arrays.py::test_arrow_data_comes_back[view]'

# What a forced mode can break: whatever runs, waits, or resumes.
MODES_TESTS ?= tests/runtime tests/e2e/test_scripts.py tests/e2e/test_four_processes.py

# The table of classes is that of the newest versions.
LOWEST_TESTS += --ignore tests/values/test_classes.py

.PHONY: help demo test test-modes test-lowest soak check format bench docs screenshots coverage clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "  make %-12s %s\n", $$1, $$2}' Makefile

demo: $(VENV)/.demo ## kill a real notebook in the middle, carry on, compare
	@$(BIN)/nbflow demo $(NOTEBOOK)

test: $(VENV)/.test ## the fast suite
	@$(PYTEST) -m "not soak" $(PYTEST_ARGS)

test-modes: $(VENV)/.test ## the functional suite with nothing kept in memory, with no timers, with one worker
	@for mode in evict timers one-worker; do \
	  echo "NBFLOW_FORCE=$$mode"; \
	  NBFLOW_FORCE=$$mode $(PYTEST) -m "not soak" $(PYTEST_ARGS) $(MODES_TESTS); \
	done

test-lowest: $(VENV_LOWEST)/.test ## values, store and runtime on the lowest supported versions of everything
	@$(VENV_LOWEST)/bin/python -m pytest -n $(WORKERS) --maxprocesses 8 --dist loadfile -m "not soak" $(PYTEST_ARGS) $(LOWEST_TESTS)

soak: $(VENV)/.test ## the long suite: kills at every write, random kills, big values
	@$(PYTEST) -m soak $(PYTEST_ARGS)

check: $(VENV)/.dev ## format, lint and types
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/mypy

format: $(VENV)/.dev ## mend what the formatter and the linter can mend
	@$(BIN)/ruff format .
	@$(BIN)/ruff check --fix .

bench: $(VENV)/.test ## speed as ratios to floors measured in the same run
	@$(BIN)/python -m benchmarks

docs: $(VENV)/.test ## write the generated pages again and run every code block
	@$(BIN)/python docs/generate.py
	@$(BIN)/python -m pytest -q tests/test_docs.py tests/test_readme.py tests/test_primitives_page.py tests/test_machines_page.py tests/test_testing.py

screenshots: $(VENV)/.test ## take the pictures of docs/images in a real JupyterLab
	@NBFLOW_IMAGES=docs/images $(BIN)/python -m pytest -q tests/browser/test_pictures.py -m soak

coverage: $(VENV)/.dev ## the fast suite with branch coverage, kernels included
	@$(BIN)/coverage erase
	@$(BIN)/coverage run -m pytest -m "not soak" $(PYTEST_ARGS)
	@$(BIN)/coverage combine --quiet
	@$(BIN)/coverage report

clean: ## remove environments, caches and what the demo left
	@rm -rf $(VENV) $(VENV_LOWEST) build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis .coverage .coverage.*
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +

# --- set-up ---

$(VENV)/.made:
	@.ci/venv "$(VENV)" "$(PYTHON)"

$(VENV_LOWEST)/.made:
	@.ci/venv "$(VENV_LOWEST)" "$(PYTHON)"

$(VENV)/.demo: $(VENV)/.made pyproject.toml
	@echo "Installing nbflow and what the demo needs into $(VENV) …"
	@$(BIN)/python $(PIP) --editable '.[demo]'
	@touch $@

$(VENV)/.test: $(VENV)/.made pyproject.toml .ci/browser
	@echo "Installing nbflow and what the tests need into $(VENV) …"
	@$(BIN)/python $(PIP) --editable '.[test]'
	@.ci/browser "$(VENV)"
	@touch $@ $(VENV)/.demo

$(VENV)/.dev: $(VENV)/.made pyproject.toml .ci/browser
	@echo "Installing nbflow and the developers' tools into $(VENV) …"
	@$(BIN)/python $(PIP) --editable '.[dev]'
	@.ci/browser "$(VENV)"
	@touch $@ $(VENV)/.test $(VENV)/.demo

$(VENV_LOWEST)/.test: $(VENV_LOWEST)/.made pyproject.toml .ci/lowest
	@echo "Installing the lowest supported versions into $(VENV_LOWEST) …"
	@$(VENV_LOWEST)/bin/python .ci/lowest pyproject.toml > $(VENV_LOWEST)/lowest.txt
	@$(VENV_LOWEST)/bin/python $(PIP) --constraint $(VENV_LOWEST)/lowest.txt --editable '.[test]'
	@touch $@
