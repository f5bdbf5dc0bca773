# `make demo` and `make test` need Python 3.11 or later and make; everything else goes into .venv, in this checkout.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
TOOLS := .venv-tools
# Two processes; the one that comes to its end first takes over a part of what the other has left.
SHARED := -n 2 --dist worksteal

.PHONY: demo test check coverage mutants bench asyncapi lowest audit clean

demo: $(STAMP)
	@$(BIN)/python -m examples.users_orders demo

test: $(STAMP)
	@$(BIN)/python -m pytest $(SHARED)

check: $(STAMP)
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/python -m pytest tests/unit/test_layers.py tests/typing

# Of statements and branches, in the processes that tests start too. Give T= to run a part of the suite only; all of it
# must come to 90 % or more.
coverage: $(STAMP)
	@rm -f .coverage .coverage.*
	@$(BIN)/coverage run -m pytest $(SHARED) $(T)
	@$(BIN)/coverage combine --quiet
	@$(BIN)/coverage report --fail-under=$(if $(T),0,90)

# Breaks one law at a time in a copy of the checkout, and sees that a test fails: see docs/testing.md.
mutants: $(STAMP)
	@$(BIN)/python -m tests.mutations $(T)

bench: $(STAMP)
	@$(BIN)/python -m benchmarks --write

# Needs node and npm, and fetches the parser from npm's registry.
asyncapi: $(STAMP)
	@EVSYNC_TEST_NPM=1 $(BIN)/python -m pytest -rs tests/integration/test_asyncapi_parser.py

# The tests that meet what evsync is built on, with the lowest version of everything that pyproject.toml permits.
lowest: $(TOOLS)/.installed
	@test -x .venv-lowest/bin/python || $(PYTHON) -m venv .venv-lowest
	@$(TOOLS)/bin/uv pip install --quiet --python .venv-lowest/bin/python --resolution lowest-direct --editable '.[dev]'
	@.venv-lowest/bin/python -m pytest $(SHARED) tests/unit tests/contracts tests/interop tests/example \
		tests/integration/test_projection_runner.py tests/integration/test_relay.py tests/integration/test_consumer.py \
		tests/integration/test_cli_running.py tests/integration/test_archive_backup.py

# Known vulnerabilities of what is installed. Not to reach the service that knows them is a failure too: it says nothing.
audit: $(STAMP) $(TOOLS)/.installed
	@$(TOOLS)/bin/pip-audit $(AUDIT) --strict --progress-spinner off --skip-editable --path "$$($(BIN)/python -c \
		'import sysconfig; print(sysconfig.get_path("purelib"))')" || \
		{ echo "Not audited, or not clean: see above. (AUDIT='--vulnerability-service osv' asks another service.)"; exit 1; }

$(TOOLS)/.installed:
	@$(PYTHON) -m venv $(TOOLS)
	@$(TOOLS)/bin/python -m pip install --quiet --disable-pip-version-check 'uv>=0.5' 'pip-audit>=2.7'
	@touch $@

$(STAMP): pyproject.toml
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "Installing evsync and what it needs into $(VENV) ..."
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	@touch $(STAMP)

clean:
	rm -rf $(VENV) .venv-lowest $(TOOLS) .pytest_cache .mypy_cache .ruff_cache .hypothesis
