# Darkroom. On a machine with Python alone: `make demo`, `make test`. Everything lands in .venv and .darkroom.
# Another Python: make PYTHON=/path/to/python3.12 …   Newer versions in the locks: make lock LOCK_FLAGS=--upgrade

SHELL := /bin/sh
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help
.PHONY: help demo test test-long check bench lock clean

PYTHON ?= $(shell for p in python3.12 python3.11 python3 python3.13; do \
	"$$p" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1 \
	&& { command -v "$$p"; break; }; done)
BIN := .venv/bin
UV := $(BIN)/uv --no-config
PIP := $(BIN)/pip install -q --disable-pip-version-check
PYTEST := $(BIN)/python -m pytest
LOCK_FLAGS ?=

# Third-party models and pictures that may lie beside the project; tests that need them skip without.
ASSETS := $(wildcard ../shared/assets)
ifneq ($(ASSETS),)
export DARKROOM_TEST_ASSETS ?= $(abspath $(ASSETS))
endif

help:
	@echo 'make demo       real pictures through a real Kafka, and back as predictions'
	@echo 'make test       every test but the long ones and those for a GPU'
	@echo 'make test-long  the long ones: only there real workers reload, hold a pin, pause and drain'
	@echo 'make check      format, lint, types, architecture'
	@echo 'make bench      the benchmarks'
	@echo 'make lock       pin the dependencies again'
	@echo 'make clean      end the local stack; remove all that was made here'

demo: .venv/local.stamp
	$(BIN)/darkroom demo

test: .venv/dev.stamp
	$(PYTEST) -m 'not long and not gpu' --session-timeout=590

test-long: .venv/dev.stamp
	$(PYTEST) -m 'long and not gpu'
	$(PYTEST) --hypothesis-profile=long tests/unit tests/contract

check: .venv/dev.stamp
	$(BIN)/ruff format --check
	$(BIN)/ruff check
	$(BIN)/mypy
	$(PYTEST) -q tests/architecture

bench: .venv/dev.stamp
	$(BIN)/python benchmarks/throughput.py
	$(BIN)/python benchmarks/swap.py
	$(BIN)/python benchmarks/layouts.py

clean:
	test ! -x $(BIN)/darkroom || test ! -d .darkroom || $(BIN)/darkroom dev down
	rm -rf .venv .darkroom .pytest_cache .mypy_cache .ruff_cache .hypothesis build dist benchmarks/out
	find . -name __pycache__ -prune -exec rm -rf {} +

# uv installs in seconds what takes pip most of a minute. It does not read pip's settings: where only
# those lead to packages, pip installs the same from the same hashes.
define sync
	@echo 'installing $(1) into .venv'
	@$(UV) pip sync -q --python $(BIN)/python --require-hashes requirements/tools.lock $(1) \
		|| $(PIP) --require-hashes -r requirements/tools.lock -r $(1)
	@$(UV) pip install -q --python $(BIN)/python --no-deps --no-build-isolation -e .
endef

.venv/local.stamp: requirements/local.lock pyproject.toml .venv/tools.stamp
	$(call sync,requirements/local.lock)
	@rm -f .venv/dev.stamp
	@touch $@

.venv/dev.stamp: requirements/dev.lock pyproject.toml .venv/tools.stamp
	$(call sync,requirements/dev.lock)
	@touch .venv/local.stamp $@

.venv/tools.stamp: requirements/tools.lock
	@test -n "$(PYTHON)" || { echo 'Darkroom needs Python 3.11 or newer with its venv module, and found none.' \
		'Name one: make PYTHON=/path/to/python3.12' >&2; exit 1; }
	@"$(PYTHON)" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' || { \
		echo '$(PYTHON) is older than 3.11 or lacks its venv module (Debian: python3-venv).' \
		'Name another: make PYTHON=/path/to/python3.12' >&2; exit 1; }
	@echo 'making .venv with $(PYTHON)'
	@"$(PYTHON)" -m venv .venv
	@$(PIP) --require-hashes -r $<
	@touch $@

compile = $(UV) pip compile -q --universal --python-version 3.11 --generate-hashes \
	--custom-compile-command 'make lock' $(LOCK_FLAGS)

lock: .venv/tools.stamp
	$(compile) requirements/tools.in -o requirements/tools.lock
	$(compile) pyproject.toml --extra local --extra bench --extra dev -o requirements/dev.lock
	$(compile) pyproject.toml --extra local -c requirements/dev.lock -o requirements/local.lock
	$(compile) pyproject.toml -c requirements/dev.lock -o requirements/worker.lock
