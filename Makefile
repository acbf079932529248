# `make demo` and `make test` need Python >= 3.10 and make; the rest is installed into .venv on first use.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
RUN ?= runs/five_senses/demo
NAME ?= five_senses_tiny.five_senses

.PHONY: help setup demo test test-slow parity e2e fmt lint types arch bench weights wheel check clean

help:
	@echo "make demo   install, train the embedded default, evaluate it, draw the picture and the report"
	@echo "make test   install, run all tests"
	@echo "make check  everything CI runs: lint, types, arch, test, wheel"
	@echo "also: setup fmt lint types arch parity e2e test-slow bench weights wheel clean"

$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[all,dev]"
	@touch $@

setup: $(VENV)/.installed

demo: setup
	$(BIN)/mmzoo train five_senses run_dir=$(RUN) overwrite=true
	$(BIN)/mmzoo eval $(RUN)
	@echo "picture: $(RUN)/plots/retrieval.png   report: $(RUN)/report.html"

test: setup
	$(BIN)/python -m pytest

test-slow: setup
	$(BIN)/python -m pytest -m slow

parity: setup
	$(BIN)/python -m pytest tests/parity

e2e: setup
	$(BIN)/python -m pytest tests/e2e

fmt: setup
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

lint: setup
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

types: setup
	$(BIN)/pyright --pythonpath $(BIN)/python

arch: setup
	$(BIN)/lint-imports

bench: setup
	$(BIN)/python benchmarks/startup.py
	$(BIN)/python benchmarks/trunk.py
	$(BIN)/python benchmarks/contrast.py
	$(BIN)/python benchmarks/data_loading.py
	$(BIN)/python benchmarks/loop.py
	$(BIN)/python benchmarks/pretraining_step.py

weights: setup  # the package's weights from a finished run: make weights RUN=… NAME=arch.tag
	$(BIN)/python -m mmzoo.cli.ship $(RUN) $(NAME)

wheel: setup
	rm -rf dist
	$(BIN)/python -m build --no-isolation --wheel --outdir dist .
	$(BIN)/python tests/meta/check_wheel.py dist

check: lint types arch test wheel

clean:
	rm -rf $(VENV) dist build .pytest_cache .ruff_cache
