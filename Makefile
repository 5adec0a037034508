# make demo       trains a small network on digits, from nothing: makes .venv, installs, runs
# make compare    every method on digits with two seeds, side by side, and the report of them; goes on where it stopped
# make test       the tests (MLLT_DATA=folder also runs those that need real data)
# make test-all   the slow ones, too
# make bench      how fast everything is, beside the plain way: a table, and runs/bench.json (MLLT_DATA=folder: on real CIFAR-100)
# make notebooks  runs every notebook
# make lint       style, types, and who imports whom
# make clean      removes .venv and all caches; runs/ stays
#
# PYTHON=python3.12 picks the Python that .venv is made with; ARGS='...' goes to the command that is run.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt

# Stamps, written last: an install that was interrupted leaves none, and is done again.
CREATED := $(VENV)/.created
INSTALLED := $(VENV)/.installed
INSTALLED_SWEEP := $(VENV)/.installed-sweep
INSTALLED_DEV := $(VENV)/.installed-dev
INPUTS := setup.cfg pyproject.toml constraints.txt

COMPARE ?= runs/compare

.PHONY: help demo compare test test-all bench notebooks lint clean

help:
	@sed -n '/^#/!q; s/^# \{0,1\}//p' Makefile

demo: $(INSTALLED)
	$(BIN)/python -m mllt.train $(ARGS)

compare: $(INSTALLED_SWEEP)
	$(BIN)/python -m mllt.train launcher=joblib 'method=glob(*)' seed=0,1 resume=auto output_dir=$(COMPARE) $(ARGS)
	$(BIN)/python -m mllt.report $(COMPARE)

# Side by side, each on one thread: the networks of the tests are too small for more.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --maxprocesses 8

test: $(INSTALLED_DEV)
	$(PYTEST) $(ARGS)

test-all: $(INSTALLED_DEV)
	$(PYTEST) -m "slow or not slow" $(ARGS)

bench: $(INSTALLED_DEV)
	$(BIN)/python -m benchmarks $(ARGS)

notebooks: $(INSTALLED_DEV)
	$(BIN)/python -m pytest --nbmake notebooks $(ARGS)

lint: $(INSTALLED_DEV)
	$(BIN)/python -m ruff check .
	$(BIN)/python -m ruff format --check .
	$(BIN)/python -m mypy
	$(BIN)/lint-imports

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
	find src conf tests -name __pycache__ -type d -prune -exec rm -rf {} +

$(CREATED):
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { \
		echo "mllt needs Python 3.10 or newer, but PYTHON=$(PYTHON) is: $$("$(PYTHON)" --version 2>&1)."; \
		echo "Name another: make $(MAKECMDGOALS) PYTHON=/path/to/python3"; exit 1; }
	@"$(PYTHON)" -m venv $(VENV)
	@touch $@

$(INSTALLED): $(CREATED) $(INPUTS)
	@echo "Installing mllt and what it needs into $(VENV) (the first time: a few minutes, about 6 GB) ..."
	@$(PIP) -e .
	@touch $@

$(INSTALLED_SWEEP): $(CREATED) $(INPUTS)
	@echo "Installing mllt and what it needs into $(VENV) (the first time: a few minutes, about 6 GB) ..."
	@$(PIP) -e '.[sweep]'
	@touch $(INSTALLED) $@

$(INSTALLED_DEV): $(CREATED) $(INPUTS)
	@echo "Installing mllt, what it needs and its tools into $(VENV) (the first time: a few minutes, about 6 GB) ..."
	@$(PIP) -e '.[dev]'
	@touch $(INSTALLED) $(INSTALLED_SWEEP) $@
