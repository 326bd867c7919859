# Each target does its own set-up: a virtual environment in .venv, made anew when pyproject.toml changes.
PYTHON ?= python3
BIN = .venv/bin
PRESET ?= quick
JOBS ?= 2

.PHONY: reproduce test lint lab sync bench clean

reproduce: .venv/installed
	$(BIN)/paperlib reproduce --preset $(PRESET) --jobs $(JOBS)

test: .venv/installed-dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses=auto --maxprocesses=4

lint: .venv/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

lab: .venv/installed-lab
	$(BIN)/jupyter lab notebooks

# Bring each notebook and its paired script together, whichever was changed last.
sync: .venv/installed
	$(BIN)/jupytext --sync notebooks/*.py

bench: .venv/installed
	$(BIN)/python -m benchmarks

# Runs and builds; what was downloaded or rendered stays in data/.
clean:
	rm -rf .venv runs build *.egg-info .pytest_cache .hypothesis .mypy_cache .ruff_cache

.venv/bin/pip:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=…")'
	$(PYTHON) -m venv .venv

.venv/installed: .venv/bin/pip pyproject.toml
	$(BIN)/pip install --quiet --editable .
	touch $@

.venv/installed-dev: .venv/installed
	$(BIN)/pip install --quiet --editable '.[dev]'
	touch $@

.venv/installed-lab: .venv/installed
	$(BIN)/pip install --quiet --editable '.[lab]'
	touch $@
