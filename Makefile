# Two commands are enough: `make demo` and `make test`. Each sets up its own .venv the first time; see `make help`.

PYTHON ?= $(shell for each in python3.11 python3; do $$each -c '' 2>/dev/null && echo $$each && break; done)
UV     ?= $(shell command -v uv 2>/dev/null)
BIN    := .venv/bin
STAMP  := .venv/.ready
PYTEST := $(BIN)/python -m pytest
LOCK    = $(UV) pip compile --quiet --upgrade --universal --python-version 3.11 --generate-hashes --no-annotate \
          --no-emit-index-url --custom-compile-command "make lock"

# Test folders that exist; git keeps no empty ones.
UNIT   := $(wildcard tests/unit tests/typing)
MANY   := $(wildcard tests/adapters tests/integration tests/docs tests/conformance)
ALONE  := $(wildcard tests/crash tests/load)

.DEFAULT_GOAL := help
.PHONY: help setup demo test check crash load conformance docs lock clean

help: ## show this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-11s %s\n", $$1, $$2 }' Makefile

setup: $(STAMP) ## install everything into .venv (with uv when it is there, pip otherwise)

demo: $(STAMP) ## see it work: no key, no service, no network
	@$(BIN)/twolane demo

check: $(STAMP) ## format, lint, types, imports, unit tests: before every commit
	@$(BIN)/ruff format --check --quiet . || { echo "Not formatted; run: $(BIN)/ruff format ."; exit 1; }
	@$(BIN)/ruff check --quiet .
	@$(BIN)/mypy
	@$(BIN)/lint-imports --no-logo
	@$(PYTEST) $(UNIT)

test: check ## check, then every other test but the long ones: most wait, so four at a time
	@$(PYTEST) -m "not long" --numprocesses 4 --dist worksteal $(MANY)
	@$(PYTEST) -m "not long" $(ALONE)

crash: $(STAMP) ## kill -9 and injected faults at every write, the long ones too
	@$(PYTEST) tests/crash

load: $(STAMP) ## figures to compare with docs/benchmarks.md, the long ones too
	@$(PYTEST) -s tests/load

conformance: $(STAMP) ## further clients, and the SDKs' own tests (fetched from the package index)
	@$(if $(UV),$(UV) pip install --python $(BIN)/python,$(BIN)/python -m pip install --disable-pip-version-check) \
	    --quiet --require-hashes -r requirements/clients.txt
	@$(PYTEST) tests/conformance
	@PYTHONPATH=. $(BIN)/python tests/conformance/sdk_resources.py

docs: $(STAMP) ## make the generated pages again: command line, configuration, schema
	@if test -f docs/generate.py; then $(BIN)/python docs/generate.py; else echo "No page is generated yet."; fi

lock: ## resolve every lock anew (needs uv)
	@$(LOCK) pyproject.toml -o requirements/core.txt >/dev/null
	@$(LOCK) pyproject.toml --extra dev -c requirements/core.txt -o requirements/dev.txt >/dev/null
	@$(LOCK) pyproject.toml --extra clients -c requirements/dev.txt -o requirements/clients.txt >/dev/null
	@$(LOCK) pyproject.toml --extra tokens -c requirements/core.txt -o requirements/tokens.txt >/dev/null

clean: ## remove .venv and every cache
	@rm -rf .venv build dist .coverage .hypothesis .import_linter_cache .mypy_cache .pytest_cache .ruff_cache
	@find src tests -name __pycache__ -type d -prune -exec rm -rf {} +

# Set-up runs once, and again when a lock or the package's own definition changes. The stamp is written last, so that an
# interrupted set-up is simply done again. Where uv cannot reach an index, pip may still know a mirror: it tries too.
define with_uv
$(UV) venv --quiet --python "$$($(PYTHON) -c 'import sys; print(sys.executable)')" .venv && \
$(UV) pip install --quiet --python $(BIN)/python --require-hashes -r requirements/dev.txt && \
$(UV) pip install --quiet --python $(BIN)/python --no-deps --no-build-isolation --editable .
endef

define with_pip
{ $(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || \
    { echo "$(PYTHON) has no venv module. Debian: apt install python3-venv" >&2; false; }; } && \
$(PYTHON) -m venv --clear .venv && \
$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements/dev.txt && \
$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
endef

$(STAMP): requirements/dev.txt pyproject.toml
	@test -n "$(PYTHON)" || \
	    { echo "Python 3.11 or later is needed, and none was found. Debian: apt install python3 python3-venv" >&2; false; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	    echo "Python 3.11 or later is needed; $(PYTHON) is $$($(PYTHON) --version 2>&1)." >&2; \
	    echo "Choose another one: make PYTHON=/path/to/python3.11" >&2; false; }
	@echo "Setting up .venv with $(if $(UV),uv,pip). This happens once."
	@rm -rf .venv
	@if test -n "$(UV)"; then { $(with_uv); } || { rm -rf .venv; $(with_pip); }; else $(with_pip); fi
	@touch $@
