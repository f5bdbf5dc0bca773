# `make demo` and `make test` need Python 3.11 or later and make; everything else goes into .venv, in this checkout.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: demo test check coverage bench asyncapi clean

demo: $(STAMP)
	@$(BIN)/python -m examples.users_orders demo

test: $(STAMP)
	@$(BIN)/python -m pytest -n 2

check: $(STAMP)
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/python -m pytest tests/unit/test_layers.py tests/typing

# Of statements and branches, in the processes that tests start too. Give T= to run a part of the suite only.
coverage: $(STAMP)
	@rm -f .coverage .coverage.*
	@$(BIN)/coverage run -m pytest -n 2 $(T)
	@$(BIN)/coverage combine --quiet
	@$(BIN)/coverage report

bench: $(STAMP)
	@$(BIN)/python -m benchmarks --write

# Needs node and npm, and fetches the parser from npm's registry.
asyncapi: $(STAMP)
	@EVSYNC_TEST_NPM=1 $(BIN)/python -m pytest -rs tests/integration/test_asyncapi_parser.py

$(STAMP): pyproject.toml
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "Installing evsync and what it needs into $(VENV) ..."
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	@touch $(STAMP)

clean:
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis
