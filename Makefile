# `make` alone lists the targets.  Everything happens in .venv, which is made at first use from pinned
# and hashed requirements.

PYTHON ?= $(shell for p in python3 python3.14 python3.13 python3.12 python3.11; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && { echo $$p; break; }; done)
VENV := .venv
RUN := $(VENV)/bin/python
STAMP := $(VENV)/ready
REWRITTEN := .pytest_cache/rewritten
PYZ := dist/cipherbox.pyz
SOURCES := $(shell find cipherbox -type f -name '*.py' -o -type f -name '*.md' -o -type f -name '*.sql' -o -path '*/page/*/*') $(wildcard systemd/*)
JOBS ?= 5
SEEDS ?= 0:2000
MINUTES ?= 10

unexport PYTHONDONTWRITEBYTECODE

.PHONY: help demo test check fix generate coverage mutate pyz wheel everywhere bench screenshots seed sim soak fuzz clean lock
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help

help: ## List these targets
	@awk -F ' *:[^#]*## *' '/^[a-z]+:.*## / { printf "  make %-11s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

demo: $(PYZ) ## Build the one file and play the labs scenario with it
	$(RUN) $(PYZ) demo

test: $(STAMP) $(PYZ) $(REWRITTEN) ## Run all tests in JOBS=5 processes; COLD=1: without warm starts
	@$(RUN) -m compileall -q cipherbox tests
	$(RUN) -m pytest -rs -n $(JOBS) --dist worksteal

check: $(STAMP) ## Check style, types and the rules of tests/test_layers.py
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(RUN) -m mypy
	$(RUN) -m mypy packaging/build.py packaging/lock.py packaging/platforms.py packaging/sbom.py
	$(RUN) -m pytest tests/test_layers.py

fix: $(STAMP) ## Format the code and fix what ruff can
	$(RUN) -m ruff check --fix .
	$(RUN) -m ruff format .

generate: $(STAMP) ## Write manual pages, package maps and golden files (GOLDEN=envelopes: random ones)
	$(RUN) -m tests.generate $(GOLDEN)

coverage: $(STAMP) $(PYZ) ## Run all tests and print the branches they reach; TESTS=tests/wire for some
	@rm -f .coverage .coverage.*
	COLD=1 $(RUN) -m coverage run -m pytest -n $(JOBS) $(TESTS)
	@$(RUN) -m coverage combine --quiet
	$(RUN) -m coverage report

mutate: $(STAMP) ## Change the code for MINUTES=10, list what no test notices; MODULES=; SIM=50 mutants
ifdef SIM
	$(RUN) -m tests.mutate_sim --mutants $(SIM)
else
	$(RUN) -m pip install --quiet --no-build-isolation --editable '.[mutate]'
	$(RUN) -m tests.mutate --minutes $(MINUTES) $(MODULES)
endif

pyz: $(PYZ) ## Build dist/cipherbox.pyz: one file, for this system and Python

wheel: $(STAMP) ## Build a wheel for pip, pipx and programs of your own, and a source archive
	$(RUN) -m build --no-isolation --outdir dist .

everywhere: $(STAMP) ## Build dist/cipherbox-everywhere.pyz, for every system and Python
	$(RUN) packaging/build.py --platform all dist/cipherbox-everywhere.pyz

bench: $(STAMP) $(PYZ) ## Measure the speed of everything
	@$(RUN) $(PYZ) bench
	@for b in tests/bench/bench_*.py; do [ -e "$$b" ] || continue; echo "== $$b"; $(RUN) -m tests.bench.$$(basename $$b .py) || exit 1; done

screenshots: $(STAMP) ## Take pictures of the page in a browser, into build/screenshots
	$(RUN) -m tests.page.screenshots

seed: $(STAMP) ## Play the seeds of today, 10 that nobody played before
	$(MAKE) sim SEEDS=$$(( $$(date +%s) / 86400 * 10 )):10

sim: $(STAMP) ## Run the simulation alone and print which fault met which state; SEEDS=first:count
	@rm -rf build/sim && mkdir -p build/sim
	CIPHERBOX_SEEDS=$(SEEDS) CIPHERBOX_SIM_TABLE=build/sim $(RUN) -m pytest -n $(JOBS) tests/sim
	@CIPHERBOX_SIM_TABLE=build/sim $(RUN) -m tests.sim.faults

soak: $(STAMP) $(PYZ) ## Run the long tests, as before a release: all seeds, storms of kills
	$(RUN) -m pytest -rs --soak -n $(JOBS)

fuzz: $(STAMP) ## Fuzz the parsers for MINUTES=10, guided by coverage if atheris is installed; TARGETS=
	$(RUN) -m tests.fuzz.run --minutes $(MINUTES) $(TARGETS)

lock: $(STAMP) ## Pin newer versions; review the difference before you commit it
	$(RUN) packaging/lock.py

clean: ## Remove what the others made
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
	rm -f .coverage .coverage.*
	find cipherbox tests packaging -name __pycache__ -type d -prune -exec rm -rf {} +

$(STAMP): packaging/requirements-dev.txt pyproject.toml
	@test -n "$(PYTHON)" || { echo "CipherBox needs Python 3.11 or newer: install it, or say make PYTHON=/path/to/python3"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --quiet --no-deps --require-hashes -r packaging/requirements-dev.txt
	$(RUN) -m pip install --quiet --no-deps --no-build-isolation --editable .
	@touch $@

# pytest compiles the tests by itself: once, instead of in all processes at the same time
$(REWRITTEN): $(STAMP)
	@$(RUN) -m pytest --collect-only -qq >/dev/null && mkdir -p $(@D) && touch $@

$(PYZ): $(STAMP) packaging/build.py packaging/platforms.py packaging/sbom.py packaging/requirements.txt $(SOURCES)
	$(RUN) packaging/build.py $@
