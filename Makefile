# Each target does its own set-up: a virtual environment in .venv, brought up to date when pyproject.toml changes.
# `make reproduce LOCKED=1` has in it exactly the versions of requirements.lock, whose hashes are checked, and `make test LOCKED=1`
# those of requirements-all.lock, which has the extras as well.
PYTHON ?= python3
BIN = .venv/bin
PRESET ?= quick
JOBS ?= 2

.PHONY: reproduce test torture coverage lint lab docs sync bench lock clean

reproduce: .venv/installed$(if $(LOCKED),-locked)
	$(BIN)/paperlib reproduce --preset $(PRESET) --jobs $(JOBS)

test: .venv/installed-dev$(if $(LOCKED),-locked)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses=auto --maxprocesses=4 --dist=worksteal

# Of the lines and branches of paperlib/; what notebooks and commands run in processes of their own is not counted.
coverage: .venv/installed-dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses=auto --maxprocesses=4 --dist=worksteal --cov --cov-report=term:skip-covered

# Full disks, hanging cells and the like; ten thousand damaged inputs; a hundred kills at random moments.
torture: .venv/installed-dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m torture
	$(BIN)/python tests/fuzz.py
	$(BIN)/python tests/torture.py

lint: .venv/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

lab: .venv/installed-lab
	$(BIN)/jupyter lab notebooks

# The site, in build/site; its notebooks are as their newest runs left them. Search needs a server, the rest none.
docs: .venv/installed-docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict
	@echo 'build/site/index.html, or: $(BIN)/mkdocs serve'

# Bring each notebook and its paired script together, whichever was changed last.
sync: .venv/installed
	$(BIN)/jupytext --sync notebooks/*.py

bench: .venv/installed
	$(BIN)/python -m benchmarks

# What LOCKED=1 installs, from what pyproject.toml asks for today; needs uv.
lock:
	uv pip compile pyproject.toml --universal --generate-hashes --no-annotate --quiet --output-file requirements.lock
	uv pip compile pyproject.toml --all-extras --universal --generate-hashes --no-annotate --quiet --output-file requirements-all.lock

# Runs and builds; what was downloaded or rendered stays in data/.
clean:
	rm -rf .venv runs build *.egg-info .pytest_cache .hypothesis .mypy_cache .ruff_cache

.venv/bin/pip:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=…")'
	$(PYTHON) -m venv .venv

.venv/installed: .venv/bin/pip pyproject.toml
	$(BIN)/pip install --quiet --editable .
	touch $@

.venv/installed-locked: .venv/bin/pip pyproject.toml requirements.lock
	$(BIN)/pip install --quiet --require-hashes --requirement requirements.lock
	$(BIN)/pip install --quiet --no-deps --no-build-isolation --editable .
	touch $@

.venv/installed-dev: .venv/installed
	$(BIN)/pip install --quiet --editable '.[dev]'
	touch $@

.venv/installed-dev-locked: .venv/bin/pip pyproject.toml requirements-all.lock
	$(BIN)/pip install --quiet --require-hashes --requirement requirements-all.lock
	$(BIN)/pip install --quiet --no-deps --no-build-isolation --editable .
	touch $@

.venv/installed-docs: .venv/installed
	$(BIN)/pip install --quiet --editable '.[docs]'
	touch $@

.venv/installed-lab: .venv/installed
	$(BIN)/pip install --quiet --editable '.[lab]'
	touch $@
