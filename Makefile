# One word each: what can be done with this repository. Nothing needs to be installed before: `make` makes a virtual
# environment in .venv from the lock file, with plain pip.
#
#   make run          start the emulator and a demo listener, relay one exchange (ONCE=1: end after it)
#   make test         unit, e2e and wire tests; the protocol core must be covered to 100 %
#   make test-slow    the tests that take longer
#   make lint         everything that is checked without running: style, types, import directions
#   make fix          let the formatter and linter change what they can
#   make fuzz         look for inputs that break a parser, for a minute (SECONDS=600: for ten)
#   make bench        measure beside other relays; prints numbers, checks nothing (PROFILE=1: profiles of the node)
#   make docs         write the pages of docs/ that are made from tables in the code
#   make lock         renew requirements.lock from pyproject.toml
#   make clean        remove what was made
#
# PYTHON=python3.13 chooses the interpreter, ARGS="-k name" is handed to pytest or to what else the target runs.

PYTHON ?= python3
BIN    := .venv/bin
READY  := .venv/.ready
ARGS   ?=

.PHONY: run test test-slow lint fix fuzz bench docs lock clean
.DEFAULT_GOAL := test

$(READY): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || \
	  { echo "Trunkline needs Python 3.11 or newer: install one, or name it with PYTHON=python3.x" >&2; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@

run: $(READY)
	@$(BIN)/trunkline emulator --demo $(if $(ONCE),--once) --data .cache/emulator $(ARGS)

# The protocol core is measured from its own tests alone: what only an e2e test reaches counts as not covered. The others
# wait for programs and clocks half of their time, so there are more of them at once than processors.
test: WORKERS = $(shell $(PYTHON) -c 'import os; print((os.cpu_count() or 1) * 3 // 2 + 1)')
test: $(READY)
	$(BIN)/python -m coverage run -m pytest -q tests/protocol
	$(BIN)/python -m coverage report --fail-under=100
	$(BIN)/python -m pytest -q -n $(WORKERS) -m "not slow" --ignore=tests/protocol $(ARGS)

test-slow: $(READY)
	$(BIN)/python -m pytest -q -m slow $(ARGS)

lint: $(READY)
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy $(wildcard src tests examples benchmarks docs)
	$(BIN)/lint-imports

fix: $(READY)
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

# What it finds it writes to tests/fuzz/corpus, where `make test` finds it from then on.
fuzz: SECONDS ?= 60
fuzz: $(READY)
	PYTHONPATH=tests $(BIN)/python -m fuzz --seconds $(SECONDS) $(ARGS)

bench: $(READY)
	@$(BIN)/python -m benchmarks $(if $(PROFILE),--profile) $(ARGS)

docs: $(READY)
	@$(BIN)/python docs/generate.py
	@PYTHONPATH=tests $(BIN)/python -m conformance.page

# The lock file holds versions and hashes and no address, so it installs from whatever index pip is set to use.
lock:
	@test -x .cache/lock/bin/uv || { $(PYTHON) -m venv .cache/lock && .cache/lock/bin/python -m pip install --quiet uv; }
	.cache/lock/bin/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-header --no-annotate \
	  --all-extras --group dev $(if $(UPGRADE),--upgrade) --output-file requirements.lock pyproject.toml
	@! grep -n '://' requirements.lock

clean:
	rm -rf .venv .cache .coverage .hypothesis .mypy_cache .pytest_cache .ruff_cache .import_linter_cache build dist
