# make run           the service on SQLite with a worker inside, at http://localhost:5000
# make demo          the same with a trickle of tasks of several kinds, to look at
# make test          all tests, several at a time, against a PostgreSQL and a RabbitMQ of their own
# make browser-test  the page, in a real Chromium
# make mutants       the tests of the tests: each of some lines, broken, makes its test fail
# make versions      the tests that need a database on PostgreSQL 12 and 18; PYTHON=python3.13 names a Python
# make chaos         everything that can break, broken; and an account of every task: SEED=17 SCENARIO=worker MINUTES=30
# make fuzz          what no client should send, at both doors; MINUTES=10 SEED=1 DOOR=http,amqp CASE=17
# make upgrade       the new version on old tables, in which an old program writes; ROWS=100000 ONLY=document
# make soak          very many tasks, and what the processes use meanwhile; TASKS=2000000 DATABASE=sqlite RETENTION=60
# make bench         speed, beside others and beside what the parts can do; ONLY=post,get ROUNDS=3 DURATION=2
# make bench-scale   each statement with 10,000 rows and with ROWS=10000000, and an hour's work with CHURN=100 a second
# make bench-memory  how soon a service on SQLite answers, and the memory that it keeps; TASKS=100000
# make lint          ruff, mypy, judges of openapi.yaml and asyncapi.yaml, and a fuzzer; needs Node.js

PYTHON ?= python3
VENV   ?= .venv
PIP     = $(VENV)/bin/python -m pip --disable-pip-version-check --quiet

run: $(VENV)/run.stamp
	@$(VENV)/bin/python -m taskmanager

demo: $(VENV)/run.stamp
	@$(VENV)/bin/python examples/demo.py

test: $(VENV)/test.stamp
	@$(VENV)/bin/python tests/servers.py
	$(VENV)/bin/python tests/run

mutants: $(VENV)/test.stamp
	@$(VENV)/bin/python tests/servers.py
	$(VENV)/bin/python tests/mutants

chaos: $(VENV)/test.stamp
	@PYTHONPATH=.:tests $(VENV)/bin/python -m chaos

fuzz upgrade soak: $(VENV)/test.stamp
	@PYTHONPATH=.:tests $(VENV)/bin/python chaos/$@.py

versions:
	@tests/versions/run $(PYTHON)

browser-test: $(VENV)/browser.stamp
	@$(VENV)/bin/python tests/browser/webdriver.py
	$(VENV)/bin/python -m pytest -q tests/browser/page.py tests/browser/finding.py tests/browser/hostile_places.py

lint: $(VENV)/run.stamp
	@lint/run $(VENV)/bin/python

# From its own environment, with the packages of all that it is compared with.
bench: bench/.venv/stamp
	@PYTHONPATH=.:tests:bench/apps bench/.venv/bin/python bench/run.py

bench-scale: $(VENV)/test.stamp
	@PYTHONPATH=.:tests:bench $(VENV)/bin/python bench/scale.py

bench-memory: $(VENV)/test.stamp
	@PYTHONPATH=.:tests:bench $(VENV)/bin/python bench/memory.py

export ONLY ROUNDS DURATION ROWS CHURN REPEATS TASKS SEED SCENARIO MINUTES JOBS DOOR CASE DATABASE RETENTION PAUSE

bench/.venv/stamp: bench/requirements.txt requirements.txt requirements-sqlite.txt
	@$(MAKE) --no-print-directory VENV=bench/.venv bench/.venv/bin/python
	@echo "installing bench/requirements.txt into bench/.venv"
	@bench/.venv/bin/python -m pip --disable-pip-version-check --quiet install --require-hashes -r bench/requirements.txt
	@touch $@

$(VENV)/run.stamp: requirements.txt requirements-sqlite.txt | $(VENV)/bin/python
	@echo "installing requirements.txt into $(VENV)"
	@$(PIP) install --require-hashes -r requirements.txt
	@touch $@

$(VENV)/test.stamp: requirements-test.txt requirements.txt requirements-sqlite.txt | $(VENV)/bin/python
	@echo "installing requirements-test.txt into $(VENV)"
	@$(PIP) install --require-hashes -r requirements-test.txt
	@touch $@

$(VENV)/browser.stamp: tests/browser/requirements.txt $(VENV)/test.stamp
	@echo "installing tests/browser/requirements.txt into $(VENV)"
	@$(PIP) install --require-hashes --no-deps -r tests/browser/requirements.txt
	@touch $@

# Debian keeps venv in a package of its own.
$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { echo "expected Python 3.10 or newer; PYTHON=… names another one than $$($(PYTHON) -V)"; exit 1; }
	@$(PYTHON) -c 'import ensurepip' 2>/dev/null || if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; \
	    then echo "installing the package python3-venv"; apt-get update -qq && apt-get install -y -qq python3-venv >/dev/null; \
	    else echo "expected the module venv; on Debian or Ubuntu: apt-get install python3-venv"; exit 1; fi
	@$(PYTHON) -m venv $(VENV)

clean:
	rm -rf $(VENV) bench/.venv lint/node_modules lint/.venv tests/versions/node_modules tests/versions/.venv .pytest_cache tests/__pycache__ tests/browser/__pycache__ chaos/__pycache__ __pycache__

.PHONY: run demo test mutants chaos fuzz upgrade soak versions browser-test bench bench-scale bench-memory lint clean
