# make demo: the main job on the embedded models. make test: the whole suite. Both from nothing.
PYTHON ?= python3
DEMO ?= runs/demo
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.DEFAULT_GOAL := help
.PHONY: help .venv demo test lint types contracts check docs format notebooks clean

help:
	@echo "make demo     install, then compare varieties on organism/base and organism/aligned"
	@echo "make test     install, then run the whole test suite"
	@echo "make check    lint, types and import contracts"
	@echo "make docs     the documentation site, into build/site"
	@echo "make notebooks   run the notebooks again, keep what they show"
	@echo "make format   let ruff rewrite what it can"
	@echo "make clean    remove the environment, the demo's runs and the caches"

.venv: $(READY)

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(None if sys.version_info >= (3, 11) else "Isogloss needs Python 3.11 or newer: make PYTHON=python3.12")'
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "Installing into $(VENV) (once; about a minute or two)"
	@$(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt -e ".[dev]"
	@touch $@

demo: $(READY)
	@$(BIN)/isogloss run compare --model organism/base --out $(DEMO)/base
	@$(BIN)/isogloss run compare --model organism/aligned --out $(DEMO)/aligned
	@echo
	@echo "Reports:   $(DEMO)/base/report.html"
	@echo "           $(DEMO)/aligned/report.html"
	@echo "Figures:   $(DEMO)/aligned/figures"
	@echo "Explorer:  $(BIN)/isogloss explore $(DEMO)/aligned"

# A process a core: every test keeps to one thread. Files stay whole, since their fixtures are dear,
# and in the order of tests/conftest.py, not the file of most tests first.
test: $(READY)
	@$(BIN)/python -m pytest -n auto --maxprocesses 4 --dist loadfile \
		--no-loadscope-reorder

notebooks: $(READY)
	@$(BIN)/jupyter execute --inplace notebooks/*.ipynb

lint: $(READY)
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .

types: $(READY)
	@$(BIN)/basedpyright --warnings

contracts: $(READY)
	@$(BIN)/lint-imports --no-cache

check: lint types contracts

# Any warning, such as a dead link, fails. The variable silences the theme's notice of its successor.
docs: $(READY)
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet
	@echo "build/site/index.html"

format: $(READY)
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

clean:
	rm -rf $(VENV) $(DEMO) .pytest_cache .ruff_cache .hypothesis
