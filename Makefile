# fedround: everything that a developer does starts here. `make` alone lists the targets.

PYTHON ?= python3
NPM    ?= npm
# More words for the command that a target runs: make test ARGS='-k layers'
ARGS   ?=
# How many tests `make test` runs at the same time: more than there are cores, as some of them wait.
JOBS   ?= 3
# The sizes of `make chaos`, and the seed of its random choices: kills of servers by scripted clients, repeats of each
# race, fuzzed inputs, runs of the state machine, means in each type, random networks, kills of the worker, kills of a
# server in one training, kills of the parts of an installation with several replicas.
KILLS        ?= 300
RACES        ?= 20
FUZZ         ?= 50000
MACHINE      ?= 50
ELEMENTS     ?= 1000000
NETWORKS     ?= 3
WORKER_KILLS ?= 10
ROUND_KILLS  ?= 10
REPLICA_KILLS ?= 25
SEED         ?= 1
# `all` fails each call of the storage layer, instead of one of each kind.
FAULTS       ?=

SIZES := RACES FUZZ MACHINE ELEMENTS NETWORKS WORKER_KILLS ROUND_KILLS REPLICA_KILLS FAULTS SEED
QUICK := not chaos and not examples and not scale
# What `make chaos` runs: `attack` alone is also in `make test`, at a small size.
MARKS ?= attack or chaos

sizes = $(foreach name,$(SIZES),FEDROUND_CHAOS_$(name)=$($(name)))

VENV       := .venv
PROTO_VENV := .venv-proto
TOOLS      := .tools
BIN        := $(VENV)/bin
BIN_BUF    := $(TOOLS)/node_modules/.bin/buf
PIP        := -m pip install --quiet --disable-pip-version-check

# Generated code refuses runtimes older than its generator, so the generator is the oldest that the client supports. It
# lives in an environment of its own: it wants an older protobuf than the one that fedround runs on.
GRPCIO_TOOLS  := 1.76.0
MYPY_PROTOBUF := 5.1.0
BUF           := 1.75.0

PROTOS   := $(sort $(wildcard protos/fedround/v1/*.proto))
# Files without a service would get an empty _pb2_grpc.py.
SERVICES := $(shell grep -l '^service ' $(PROTOS))

# The tests start hundreds of Python processes, and each would compile fedround anew.
unexport PYTHONDONTWRITEBYTECODE

SHELL         := bash
.SHELLFLAGS   := -euo pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help install demo test chaos scale examples check lint types proto errors errors-check settings settings-check reference \
	reference-check site compat proto-check proto-lint buf bench bench-peers bench-small bench-scale screenshots clean

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-14s %s\n", $$1, $$2}' Makefile

install: $(VENV)/.installed ## Set up the environment in .venv

demo: install ## Watch five clients train one model through a real server; writes demo/
	@$(BIN)/fedround demo --output demo $(ARGS)

# pytest exits with 5 when ARGS select no test.
test: install buf ## Run the tests, JOBS at a time: every promise, at a small size (12 minutes on two cores)
	@$(BIN)/python -m pytest -n $(JOBS) --dist loadfile --no-loadscope-reorder -m '$(QUICK) and not serial' $(ARGS) || [ $$? = 5 ]
	@$(BIN)/python -m pytest -m '$(QUICK) and serial' $(ARGS) || [ $$? = 5 ]

chaos: install ## Kill, race, fuzz and cut at the sizes KILLS, RACES, FUZZ, ... (15 minutes); writes chaos.json
	@PYTHONPATH=tests $(BIN)/python -m chaos --kills $(KILLS) --seed $(SEED) $(ARGS)
	@$(sizes) $(BIN)/python -m pytest -n $(JOBS) --dist loadfile -rfEP -m '($(MARKS)) and not serial'
	@$(sizes) $(BIN)/python -m pytest -rfEP -m '($(MARKS)) and serial'

scale: KILLS = 1000
scale: install ## Kill replicas, PostgreSQL, an object store (KILLS times) and Ray, compare bits, measure (2 hours)
	@PYTHONPATH=tests $(BIN)/python -m chaos.scale --kills $(KILLS) --seed $(SEED) $(ARGS)
	@$(BIN)/python -m pytest -rfEP -m scale
	@$(BIN)/python -m pytest -rfEP -m 'not scale' tests/e2e/test_same_bits.py
	@$(MAKE) --no-print-directory bench-scale

bench-scale: install ## Measure updates to several replicas, 100 x 100 MB in an object store, and 100,000 clients of relays
	@$(BIN)/python benchmarks/replicas.py
	@$(BIN)/python benchmarks/objects.py --clients 100 --cache-mb 1000 --turns 1
	@$(BIN)/python benchmarks/fleet.py --full

examples: install ## Run the whole demo and the examples, and check what comes out (3 minutes)
	@$(BIN)/python -m pytest -n 2 --dist loadfile -m examples $(ARGS)

check: lint types errors-check settings-check reference-check proto-check proto-lint site ## Check style, types, protos, generated code and docs

lint: install
	@$(BIN)/ruff check
	@$(BIN)/ruff format --check

types: install
	@$(BIN)/mypy

proto: $(PROTO_VENV)/.installed ## Write generated/ from protos/
	@$(generate); rm -f generated/fedround/v1/*_pb2* && cp -R "$$fresh"/. generated/
	@echo "generated/ is written"

proto-check: $(PROTO_VENV)/.installed ## Fail when generated/ is not what protos/ say
	@$(generate); diff -rq -x __pycache__ -x py.typed "$$fresh" generated >&2 || \
	{ echo "generated/ is stale: run 'make proto' and commit what it writes." >&2; exit 1; }
	@echo "generated/ is up to date"

errors: install ## Write the SDK's exceptions and docs/errors.md from the server's error classes
	@$(BIN)/python scripts/generate_errors.py

errors-check: install ## Fail when they are not what the classes say
	@$(BIN)/python scripts/generate_errors.py --check && echo "the SDK's exceptions and docs/errors.md are up to date"

settings: install ## Write docs/configuration.md from the settings of the server
	@$(BIN)/python scripts/generate_settings.py

settings-check: install ## Fail when it is not what the settings are
	@$(BIN)/python scripts/generate_settings.py --check && echo "docs/configuration.md is up to date"

reference: install ## Write docs/reference from the protos and from the command
	@$(BIN)/python scripts/generate_reference.py

reference-check: install ## Fail when it is not what they say
	@$(BIN)/python scripts/generate_reference.py --check && echo "docs/reference is up to date"

site: install ## Build the documentation site into build/site; a warning is an error
	@$(BIN)/python scripts/build_site.py

proto-lint: buf
	@if [ -x $(BIN_BUF) ]; then $(BIN_BUF) lint protos && echo "buf lint: no findings"; \
	else echo "buf lint: SKIPPED, buf is not here"; fi

# buf comes with npm, in the package itself, so no install script has to run. Without npm or its registry, what needs buf
# is skipped, and says so.
buf:
	@if ! command -v $(NPM) >/dev/null || ! $(MAKE) -s $(TOOLS)/.installed; then \
	echo "buf could not be installed with npm: what needs it is skipped" >&2; fi

compat: install ## Test the wheel with other Pythons and the oldest dependencies; ARGS=--short: some of them
	@$(BIN)/python scripts/compat.py $(ARGS)

bench: install ## Measure all but the peers (about 20 minutes); writes benchmarks/results.json
	@for one in limits streams profile_streams rounds subscribers growth start saving sdk aggregation; do \
	echo "== benchmarks/$$one.py" && $(BIN)/python benchmarks/$$one.py || exit 1; done
	@$(BIN)/python benchmarks/report.py

bench-peers: install ## Measure rounds of fedround and of its peers in turn; installs these into .peers
	@$(BIN)/python benchmarks/install_peers.py
	@$(BIN)/python benchmarks/rounds.py --systems contenders $(ARGS)
	@$(BIN)/python benchmarks/simulation.py
	@$(BIN)/python benchmarks/report.py

# BEFORE=/path/to/another/checkout has its server take turns with this one where syncs are slow.
bench-small: install ## Measure rounds next to the peers five times, small updates and pushes (about 2 hours)
	@$(BIN)/python benchmarks/install_peers.py
	@$(BIN)/python benchmarks/rounds.py --systems contenders --alternations 5
	@$(BIN)/python benchmarks/rounds.py --systems fedround_slow $(if $(BEFORE),fedround_slow_before --before $(BEFORE)) \
		--workloads 32x1 100x0.01 --alternations 5
	@$(BIN)/python benchmarks/updates.py $(if $(BEFORE),--before $(BEFORE))
	@$(BIN)/python benchmarks/update_parts.py
	@$(BIN)/python benchmarks/growth.py
	@$(BIN)/python benchmarks/growth.py --database postgresql --only-cohorts
	@$(BIN)/python benchmarks/subscribers.py
	@$(BIN)/python benchmarks/report.py --sections rounds rounds_slow_syncs updates update_parts growth \
		growth_cohorts_postgresql subscribers

screenshots: install ## Take the pictures of docs/dashboard.md; needs Chromium
	@$(BIN)/python scripts/screenshots.py

clean: ## Remove environments, caches and what was built; never fedround-data
	@rm -rf $(VENV) $(PROTO_VENV) $(TOOLS) .peers .cache build demo dist chaos.json scale.json examples/node/node_modules
	@rm -rf .coverage .hypothesis .mypy_cache .pytest_cache .ruff_cache
	@find benchmarks client examples generated server tests wire -name __pycache__ -prune -exec rm -rf {} +

# The stubs of all protos and their descriptors, in a new folder $$fresh that goes with the shell.
define generate
fresh=$$(mktemp -d) && trap 'rm -rf "$$fresh"' EXIT && export PATH="$(CURDIR)/$(PROTO_VENV)/bin:$$PATH" && \
python -m grpc_tools.protoc -Iprotos --python_out="$$fresh" --mypy_out=quiet:"$$fresh" $(PROTOS) && \
python -m grpc_tools.protoc -Iprotos --include_imports --include_source_info \
	--descriptor_set_out="$$fresh/fedround/v1/fedround.protoset" $(PROTOS) && \
python -m grpc_tools.protoc -Iprotos --grpc_python_out="$$fresh" --mypy_grpc_out=quiet:"$$fresh" $(SERVICES) || exit 1
endef

# Stamps: an environment is made again when what it is made from has changed.
$(VENV)/.installed: pyproject.toml constraints.txt
	$(need_python)
	@echo "Installing fedround into $(VENV); this takes a few minutes the first time"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python $(PIP) -c constraints.txt -e '.[dev]'
	@touch $@

$(PROTO_VENV)/.installed: Makefile
	$(need_python)
	@echo "Installing the code generator into $(PROTO_VENV)"
	@test -x $(PROTO_VENV)/bin/python || $(PYTHON) -m venv $(PROTO_VENV)
	@$(PROTO_VENV)/bin/python $(PIP) grpcio-tools==$(GRPCIO_TOOLS) mypy-protobuf==$(MYPY_PROTOBUF)
	@touch $@

$(TOOLS)/.installed: Makefile
	@echo "Installing buf into $(TOOLS)"
	@mkdir -p $(TOOLS)
	@$(NPM) install --prefix $(TOOLS) --ignore-scripts --no-audit --no-fund --loglevel=error @bufbuild/buf@$(BUF)
	@touch $@

define need_python
@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || \
{ echo "fedround needs Python 3.11 or newer. Name one: make $(MAKECMDGOALS) PYTHON=/path/to/python3.11" >&2; exit 1; }
@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || \
{ echo "$(PYTHON) has no venv module. On Debian and Ubuntu: apt install python3-venv" >&2; exit 1; }
endef
