# Every target sets up .venv by itself, once; nothing but Python 3.11 or newer and make is needed.
# Two of them are all a new machine needs: `make demo` and `make test`.
.DELETE_ON_ERROR:
.PHONY: help demo test test-fast lint types docs bench clean

PYTHON ?= python3
JOBS ?= 2
BIN := .venv/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
READY := .venv/.ready
LINT := .venv/.ready-lint
DOCS := .venv/.ready-docs
# One thread per worker: tests run side by side, and results must not hang on the number of cores.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest

help: ## list the targets
	@grep -E '^[a-z-]+:.*##' Makefile | sed -E 's/:[^#]*## /\t/'

demo: $(READY) ## fetch a real model, build, verify, chat; then train, export and check a small one
	@$(BIN)/python examples/demo.py $(if $(TEXT),--text $(TEXT))

test: $(READY) ## the whole suite
	$(PYTEST) -n $(JOBS) $(ARGS)

test-fast: $(READY) ## the tests that need neither torch nor more than a second each
	$(PYTEST) -n $(JOBS) -m "not slow and not weights" $(ARGS)

lint: $(LINT) ## style and format
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(LINT) ## strict types of the package, standard ones of what uses it, by two checkers
	$(BIN)/python .ci/linked.py out/typed
	$(BIN)/basedpyright
	$(BIN)/mypy

docs: $(DOCS) ## the documentation as a site, in out/site
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict
	@echo out/site/index.html

bench: $(READY) ## every table of README.md, measured on this machine (long)
	@$(BIN)/python benchmarks/all.py $(ARGS)

clean: ## remove the environment and everything that was made
	rm -rf .venv out .pytest_cache .ruff_cache .hypothesis *.egg-info

$(READY): pyproject.toml constraints.txt | .venv/bin/python
	$(PIP) install -q -c constraints.txt -e ".[test]"
	@touch $@

$(LINT): $(READY)
	$(PIP) install -q -c constraints.txt -e ".[lint]"
	@touch $@

$(DOCS): $(READY)
	$(PIP) install -q -c constraints.txt -e ".[docs]"
	@touch $@

.venv/bin/python:
	@command -v $(PYTHON) >/dev/null || { echo "$(PYTHON) is not there: install Python 3.11 or newer, or say make PYTHON=/path/to/python" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "$$($(PYTHON) --version) is too old: Monograph needs 3.11 or newer; say make PYTHON=/path/to/python" >&2; exit 1; }
	@$(PYTHON) -c 'import venv, ensurepip' 2>/dev/null || { echo "$(PYTHON) cannot make environments: install its venv module (Debian and Ubuntu: the package python3-venv)" >&2; exit 1; }
	@echo "setting up .venv (once)"
	@$(PYTHON) -m venv .venv
