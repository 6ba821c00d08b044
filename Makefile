# Everything starts here: `make demo` and `make test` need nothing but Python 3.11 or newer and make.
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
MAKEFLAGS += --no-print-directory

VENV := .venv
BIN := $(VENV)/bin
MANAGE := $(BIN)/python manage.py
CODE := manage.py mlserve features predictions warmup benchmarks tests

export UV_COMPILE_BYTECODE := 1
# The Python of the machine is good enough, and a download of another one would need another index.
export UV_PYTHON_DOWNLOADS := never

.PHONY: help setup demo test lint types format bench torture down clean lock

help: ## show this list
	@grep -hE '^[a-z]+:.*## ' Makefile | sed -E 's/^([a-z]+):.*## (.*)/  \1\t\2/' | expand -t 12

setup: $(VENV)/.dev ## make .venv with all that developing needs
	@$(BIN)/python -m tests.cache.django_suite.source

demo: $(VENV)/.serve ## run all of it here: servers, data, model, web, workers, traffic (PORT= API_KEY= DATA=)
	@$(if $(API_KEY),MLSERVE_API_KEY='$(API_KEY)') $(MANAGE) demo $(if $(PORT),--port '$(PORT)') $(if $(DATA),--data '$(DATA)')

WORKERS ?= auto
# Tests go to the processes in two halves; who has done with one takes from the other's end. A process that dies is
# replaced, but not for ever: where it dies while it starts, so would the next one.
test: setup lint types ## lint, types and all tests (WORKERS= processes, 0 for none beside pytest's own)
	@$(BIN)/python -m pytest -n '$(WORKERS)' --dist worksteal --max-worker-restart 2

lint: $(VENV)/.dev ## style, formatting and the direction of imports
	@$(BIN)/ruff check $(CODE)
	@$(BIN)/ruff format --check $(CODE)
	@$(BIN)/lint-imports

types: $(VENV)/.dev ## mypy
	@$(BIN)/mypy

format: $(VENV)/.dev ## mend style and formatting where that can be done by machine
	@$(BIN)/ruff check --fix $(CODE)
	@$(BIN)/ruff format $(CODE)

bench: $(VENV)/.serve ## measure the numbers that the docs promise (ARGS=)
	@$(MANAGE) bench $(ARGS)

torture: $(VENV)/.dev ## the long tests: servers killed, clients that mean harm (TORTURE_MINUTES= BAD_DAY_MINUTES= BAD_DAY_SEED=)
	@$(if $(TORTURE_MINUTES),TORTURE_MINUTES='$(TORTURE_MINUTES)') \
		$(if $(BAD_DAY_MINUTES),BAD_DAY_MINUTES='$(BAD_DAY_MINUTES)') $(if $(BAD_DAY_SEED),BAD_DAY_SEED='$(BAD_DAY_SEED)') \
		$(BIN)/python -m pytest -m torture

down: ## stop the embedded servers; the data stay
	@if [ -x $(BIN)/python ]; then $(MANAGE) services down; fi

clean: ## stop the servers; delete .venv, var (the data too) and caches
	@if [ -x $(BIN)/python ]; then $(MANAGE) services down --delete-data || true; fi
	@rm -rf $(VENV) var .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +

COMPILE = $(BIN)/uv pip compile --quiet --universal --generate-hashes --no-header --python-version 3.11

lock: $(VENV)/.dev ## renew requirements/*.lock from pyproject.toml
	@$(COMPILE) --upgrade pyproject.toml -o requirements/serve.lock
	@$(COMPILE) --upgrade pyproject.toml --group dev -c requirements/serve.lock -o requirements/dev.lock
	@$(COMPILE) --upgrade --no-annotate --group pyproject.toml:peer-feast -o requirements/peer-feast.lock
	@$(COMPILE) --upgrade --no-annotate --group pyproject.toml:peer-mlserver -c requirements/serve.lock -o requirements/peer-mlserver.lock
	@echo uv | $(COMPILE) --upgrade --no-annotate -c requirements/dev.lock -o requirements/bootstrap.lock -

# --- the environment: stamp files, so that a second run is instant ---

SUPPORTED = import sys; sys.exit(sys.version_info < (3, 11))
PYTHON ?= $(shell for name in python3 python3.13 python3.12 python3.11; do \
	if $$name -c '$(SUPPORTED)' 2>/dev/null; then echo $$name; break; fi; done)

$(VENV)/.uv: requirements/bootstrap.lock
	@test -n '$(PYTHON)' || { echo 'make: Python 3.11 or newer is needed and was not found as python3, python3.13,' \
		'python3.12 or python3.11; install it, or name it: make PYTHON=/path/to/python' >&2; exit 1; }
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear $(VENV) || { \
		echo 'make: no virtual environment could be made (on Debian: apt-get install python3-venv)' >&2; exit 1; }
	@$(BIN)/python -c '$(SUPPORTED)' || { echo 'make: $(VENV) has a Python older than 3.11; delete it' >&2; exit 1; }
	@echo 'make: installing uv'
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r $< \
		|| echo 'make: uv is not to be had here, pip will do' >&2
	@touch $@

$(VENV)/.serve $(VENV)/.dev: $(VENV)/.%: requirements/%.lock $(VENV)/.uv
	@echo 'make: installing $<'
	@$(BIN)/uv pip install --python $(BIN)/python --require-hashes -r $< || { \
		echo 'make: uv cannot install these here (it does not read pip.conf); trying pip' >&2; \
		$(BIN)/python -m pip install --disable-pip-version-check --require-hashes -r $<; }
	@touch $@
