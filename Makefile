# make demo    builds the one file and plays the labs scenario with it
# make test    all tests, with JOBS=3 processes; COLD=1 starts each program anew (tests/warm.py)
# make check   style, types, layers
# make pyz     dist/cipherbox.pyz    make bench   speed, with figures
# make wheel   a wheel, for pip install and programs of your own
# make everywhere   dist/cipherbox-everywhere.pyz: the same for every system and Python
# make sim     thousands of seeds of the simulation: SEEDS=first:count chooses them
# make soak    what takes long, before a release: 2,000 seeds of the simulation, 20,000 examples of a dishonest sender, the
#              other nine tenths of what make test samples, storms of kills; tests/soak.py says how a test goes there
# make fuzz    the parsers, for MINUTES=10: guided by coverage when atheris is installed; TARGETS chooses some
# make clean   removes what the others made
#
# Everything happens in .venv, which is made at first use from pinned and hashed requirements.

PYTHON ?= $(shell for p in python3 python3.14 python3.13 python3.12 python3.11; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && { echo $$p; break; }; done)
VENV := .venv
RUN := $(VENV)/bin/python
STAMP := $(VENV)/ready
PYZ := dist/cipherbox.pyz
SOURCES := $(shell find cipherbox -type f -name '*.py' -o -type f -name '*.md' -o -type f -name '*.sql')
JOBS ?= 3
SEEDS ?= 0:2000
MINUTES ?= 10

unexport PYTHONDONTWRITEBYTECODE

.PHONY: demo test check pyz wheel everywhere bench sim soak fuzz clean lock
.DELETE_ON_ERROR:

demo: $(PYZ)
	$(RUN) $(PYZ) demo

test: $(STAMP) $(PYZ)
	@$(RUN) -m compileall -q cipherbox tests
	$(RUN) -m pytest -n $(JOBS)

check: $(STAMP)
	$(RUN) -m ruff check .
	$(RUN) -m mypy
	$(RUN) -m mypy packaging/build.py packaging/lock.py packaging/platforms.py
	$(RUN) -m pytest tests/test_layers.py

pyz: $(PYZ)

wheel: $(STAMP)
	$(RUN) -m pip wheel --quiet --no-deps --no-build-isolation --wheel-dir dist .

everywhere: $(STAMP)
	$(RUN) packaging/build.py --platform all dist/cipherbox-everywhere.pyz

bench: $(STAMP) $(PYZ)
	@$(RUN) $(PYZ) bench
	@for b in tests/bench/bench_*.py; do [ -e "$$b" ] || continue; echo "== $$b"; $(RUN) -m tests.bench.$$(basename $$b .py) || exit 1; done

sim: $(STAMP)
	CIPHERBOX_SEEDS=$(SEEDS) $(RUN) -m pytest -n $(JOBS) tests/sim

soak: $(STAMP) $(PYZ)
	$(RUN) -m pytest --soak -n $(JOBS)

fuzz: $(STAMP)
	$(RUN) -m tests.fuzz.run --minutes $(MINUTES) $(TARGETS)

# Newer pinned versions: look at the difference before you commit it.
lock: $(STAMP)
	$(RUN) packaging/lock.py

clean:
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find cipherbox tests packaging -name __pycache__ -type d -prune -exec rm -rf {} +

$(STAMP): packaging/requirements-dev.txt pyproject.toml
	@test -n "$(PYTHON)" || { echo "CipherBox needs Python 3.11 or newer: install it, or say make PYTHON=/path/to/python3"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --quiet --require-hashes -r packaging/requirements-dev.txt
	$(RUN) -m pip install --quiet --no-deps --no-build-isolation --editable .
	@touch $@

$(PYZ): $(STAMP) packaging/build.py packaging/platforms.py packaging/requirements.txt systemd/* $(SOURCES)
	$(RUN) packaging/build.py $@
