# Each target makes what it needs, on a fresh machine too: all it takes is make, bash and a network with a package index.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help

VENV ?= .venv
PYTHON := $(VENV)/bin/python
# A new file name when what is to be installed changes, or the directory: a virtual environment cannot be moved.
STAMP := $(VENV)/installed-$(shell { pwd; cat pyproject.toml requirements.lock .ci/venv; } | cksum | cut -d ' ' -f 1)

# Tryton has an environment of its own: it is driven as a source, and shares nothing with Towline.
TRYTON_VENV := .venv-tryton
TRYTON_STAMP := $(TRYTON_VENV)/installed-$(shell { pwd; cat tests/tryton/requirements.lock; } | cksum | cut -d ' ' -f 1)

# What only the benchmark needs is installed into the same environment when that is run.
BENCH_STAMP := $(VENV)/bench-$(shell { pwd; cat requirements.lock bench/requirements.lock; } | cksum | cut -d ' ' -f 1)

BENCH_ARGS ?=
DEMO_ARGS ?=
FAULTS_ARGS ?=
SOAK_ARGS ?=
TEST_ARGS ?=
# Tests start hundreds of daemons: what they import is compiled once.
unexport PYTHONDONTWRITEBYTECODE
# A worker for each core and one more, each with servers of its own: tests wait for a server a quarter of the time.
WORKERS ?= $(shell cores=$$(getconf _NPROCESSORS_ONLN); echo $$((cores < 4 ? cores + 1 : 4)))
PARALLEL ?= --numprocesses $(WORKERS) --dist worksteal
# PostgreSQL 15 with wal2json comes from Debian: elsewhere those tests are left out, by name.
ifeq ($(shell uname -s),Darwin)
SELECTION := -m 'not debian'
SELECTION_NOTE := @echo "On macOS the tests marked 'debian' are left out: they need Debian's PostgreSQL 15 with wal2json."
endif

.PHONY: help install demo test test-unit test-tryton faults huge soak bench lint lock clean

help:
	@echo "make demo       a source under load, a hub and the daemon, live (DEMO_ARGS=\"--seconds 20\" bounds it)"
	@echo "make test       all tests; as root on Debian it installs PostgreSQL 15 for them"
	@echo "make test-unit  only those without I/O"
	@echo "make test-tryton  a whole ERP as source, with the daemon killed while it works; some minutes"
	@echo "make faults     the fault matrix, about half an hour; writes docs/RELIABILITY.md (FAULTS_ARGS=\"--help\")"
	@echo "make huge       ten million rows in one transaction: some minutes, and how much memory they take"
	@echo "make soak       generated histories, the explored model and fuzzed decoders, less than half an hour (SOAK_ARGS=\"--help\")"
	@echo "make bench      Towline and others, measured side by side, about 40 minutes; writes docs/PERFORMANCE.md (BENCH_ARGS=\"--help\")"
	@echo "make lint       ruff and mypy --strict"
	@echo "make lock       write the lock files anew"
	@echo "make clean      remove the virtual environments and caches"

install: $(STAMP)

$(STAMP):
	@.ci/venv $(VENV)
	@touch $@

demo: $(STAMP)
	@$(VENV)/bin/towline demo $(DEMO_ARGS)

test: $(STAMP)
	@.ci/postgresql-15
	$(SELECTION_NOTE)
	@$(PYTHON) -m pytest -q -ra $(PARALLEL) $(SELECTION) $(TEST_ARGS)

test-unit: $(STAMP)
	@$(PYTHON) -m pytest -q -ra tests/unit $(TEST_ARGS)

test-tryton: $(STAMP) $(TRYTON_STAMP)
	@.ci/postgresql-15
	@$(PYTHON) -m pytest -q -ra tests/tryton $(TEST_ARGS)

faults: $(STAMP)
	@.ci/postgresql-15
	@$(PYTHON) -m tests.faults $(FAULTS_ARGS)

huge: $(STAMP)
	@$(PYTHON) -m pytest -q -rP tests/huge --timeout 3600 $(TEST_ARGS)

soak: $(STAMP)
	@.ci/postgresql-15
	@$(PYTHON) -m tests.soak $(SOAK_ARGS)

bench: $(BENCH_STAMP)
	@.ci/postgresql-15
	@$(PYTHON) -m bench $(BENCH_ARGS)

$(BENCH_STAMP): $(STAMP)
	@echo "Installing what the benchmark needs in $(VENV)"
	@$(PYTHON) -m pip --disable-pip-version-check --no-input install -qq --require-hashes \
		--requirement bench/requirements.lock </dev/null
	@touch $@

$(TRYTON_STAMP): $(STAMP)
	@echo "Installing Tryton in $(TRYTON_VENV)"
	@rm -rf $(TRYTON_VENV)
	@$(PYTHON) -m venv $(TRYTON_VENV)
	@$(TRYTON_VENV)/bin/python -m pip --disable-pip-version-check --no-input install -qq --require-hashes \
		--requirement tests/tryton/requirements.lock </dev/null
	@touch $@

lint: $(STAMP)
	@$(VENV)/bin/ruff check .
	@$(VENV)/bin/mypy

lock: $(STAMP)
	@.ci/lock $(PYTHON)

clean:
	rm -rf $(VENV) $(TRYTON_VENV) dist .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find daemon transforms tests bench -name __pycache__ -type d -prune -exec rm -rf {} +
