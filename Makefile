# `make` lists the commands. Each runs from a fresh clone, needs Python >= 3.11 and nothing else unless the list says so, and
# writes nothing outside this folder.

PYTHON ?= python3
PORT ?= 8080
# Arguments of the cluster test: CLUSTER=--short, CLUSTER="--tasks 400 --seed 1".
CLUSTER ?=
# Arguments of the exploration: EXPLORE=--narrow, EXPLORE="--wait worker --scope 'a clear'".
EXPLORE ?=
VENV := .venv
BIN := $(VENV)/bin
CONSTRAINTS := constraints/airflow-3.3.txt
READY := $(VENV)/.ready

export PIP_CACHE_DIR := $(CURDIR)/.cache/pip
export UV_CACHE_DIR := $(CURDIR)/.cache/uv
export PIP_DISABLE_PIP_VERSION_CHECK := 1
export PORT

.DEFAULT_GOAL := help
# All that the list shows.
.PHONY: help $(shell sed -n 's/^\([a-z-]*\):.* \#\# .*/\1/p' Makefile)

help:
	@awk -F ':.*## ' '/^##@ / {printf "\n%s\n", substr($$0, 5)} \
		/^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

# $(call install,EXTRA): this package with an extra, at the versions that it was tried with.
define install
if command -v uv >/dev/null 2>&1; then \
	uv venv --quiet --allow-existing --python "$(PYTHON)" $(VENV) && \
	uv pip install --quiet --python $(BIN)/python -c $(CONSTRAINTS) -e '.[$(1)]'; \
else \
	$(PYTHON) -m venv $(VENV) && \
	{ $(BIN)/python -m pip install --quiet -c $(CONSTRAINTS) -e '.[$(1)]' 2>$(VENV)/pip.log || \
		{ cat $(VENV)/pip.log; exit 1; }; }; \
fi
endef

$(READY): pyproject.toml $(CONSTRAINTS) airflow_provider_agents/__init__.py
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Python 3.11 or newer is needed; name one with: make PYTHON=python3.12 ..."; exit 1; }
	@echo "Installing Airflow and the tools into $(VENV) (once, about a minute) ..."
	@$(call install,dev)
	@touch $(READY)

##@ Try it

demo: $(READY) ## run an agent from a DAG in a real Airflow, and print its final event
	@$(BIN)/python dev/demo.py

up: $(READY) ## Airflow's UI with the simulator and the example DAGs (PORT=8080)
	@$(BIN)/python dev/up.py

##@ Every day

check: lint ## while you work: lint, and the tests of the modules that you have changed
	@$(BIN)/python dev/changed_tests.py

lint: $(READY) ## formatter, linter, types, layers, spelling
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache
	$(BIN)/codespell

format: $(READY) ## write the code as the formatter wants it
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

unit: $(READY) ## the tests without a real Airflow, in about four minutes
	$(BIN)/python -m pytest -m "not system" --numprocesses 2

coverage: $(READY) ## the same, and which lines and branches of the package they do not reach (at least 98 % must be)
	@$(call install,coverage)
	$(BIN)/python -m pytest -m "not system" --numprocesses 2 --cov

system: $(READY) ## the tests with a real Airflow
	$(BIN)/python -m pytest -m "system and not trial"

# The system tests mostly wait, so the other tests run beside them, give way to them, and are printed after them.
UNIT ?= unit
test: lint ## every check and test, in about eight minutes (UNIT=coverage)
	@mkdir -p .cache; nice $(MAKE) --no-print-directory $(UNIT) >.cache/unit.log 2>&1 & unit=$$!; \
	trap 'kill $$unit 2>/dev/null; exit 130' INT TERM; \
	$(MAKE) --no-print-directory system; system=$$?; \
	wait $$unit; status=$$?; cat .cache/unit.log; exit $$((system | status))

clean: ## remove what these commands made
	rm -rf $(VENV) .cache .airflow-* .pytest_cache .mypy_cache .ruff_cache .hypothesis mutants dist site .coverage*

##@ Documentation

# Not with --quiet: mkdocs then counts no warnings, so that none is an error.
docs: $(READY) ## the documentation site, in site/
	@$(call install,docs)
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --clean
	@echo "Open site/index.html, or: make docs-serve"

docs-serve: docs ## the same, at http://127.0.0.1:8000 (Ctrl-C ends it)
	@$(BIN)/python -m http.server --bind 127.0.0.1 --directory site 8000

ui: $(READY) ## the provider in Airflow's pages, in a real browser (needs Chromium); takes the docs' pictures
	@$(call install,ui)
	@$(BIN)/python dev/ui.py

##@ Proofs, longer than the tests

trials: $(READY) ## tasks that start one agent side by side, in a real Airflow with one and with two triggerers
	$(BIN)/python -m pytest -m trial

properties: $(READY) ## the tests with drawn examples, with ten times as many (TIMES=10)
	TEST_TIMES=$(or $(TIMES),10) $(BIN)/python -m pytest --numprocesses 2 tests/runs tests/polling

matrix: ## the tests and the examples on every Airflow and Python (CELLS="3.0-py3.11 newest next", TESTS=tests/ui, EXAMPLES=no)
	@$(PYTHON) dev/matrix.py $(CELLS) $(addprefix --python ,$(PYTHONS)) $(if $(TESTS),--tests $(TESTS)) \
		$(if $(filter no,$(EXAMPLES)),--no-examples)

# Both need the newest Airflow and the one that is coming beside each other.
both = test -d .cache/matrix || $(MAKE) --no-print-directory matrix CELLS="newest next" TESTS=tests/test_package.py EXAMPLES=no

upgrade: $(READY) ## upgrade a real Airflow from 3.3 to 3.4 while tasks wait, and count the runs that they start
	@$(both)
	@$(BIN)/python dev/upgrade.py

clears: $(READY) ## what each way to clear, mark or retry a task costs, on each Airflow (PYTHONS="/path/to/bin/python")
	@$(if $(PYTHONS),,$(both))
	@$(BIN)/python dev/clears.py $(addprefix --python ,$(PYTHONS))

faults: $(READY) ## kill everything at random moments in a real Airflow on PostgreSQL, and count
	@$(BIN)/python dev/faults.py

cluster-test: $(READY) ## two thousand tasks on a cluster (Celery, Redis, PostgreSQL) while it is killed part by part
	@$(call install,cluster)
	@$(BIN)/python dev/cluster.py $(CLUSTER)

explore: $(READY) ## every order of kills, lost answers, clears and other runs in a task's life, at a small scope
	@$(BIN)/python dev/explore.py $(EXPLORE)

fuzz: $(READY) ## a million hostile answers and inputs through all that reads them (ANSWERS=1000000, SEED=)
	@AIRFLOW__LOGGING__LOGGING_LEVEL=CRITICAL $(BIN)/python -u tests/support/fuzzing.py $(if $(ANSWERS),--answers $(ANSWERS)) $(if $(SEED),--seed $(SEED))

soak: $(READY) ## a month of waiting on virtual time: are the verdicts right, and does anything leak
	@$(BIN)/python benchmarks/soak.py

mutation: $(READY) ## change the rules of runs in many places, and count what the tests do not notice
	@$(call install,mutation)
	TEST_EXAMPLES=5 TEST_PROFILE=same $(BIN)/mutmut run --max-children 1
	@$(BIN)/mutmut results

##@ Measurements

soundness: $(READY) ## the documented polling loop and ours, side by side
	@$(call install,bench)
	@$(BIN)/python benchmarks/soundness.py

benchmark: $(READY) ## what waiting costs a triggerer, beside dbt Cloud's trigger
	@$(call install,bench)
	@$(BIN)/python benchmarks/triggerer.py

plots: $(READY) ## draw the plots and tables of the documentation again, from the figures in docs/evidence/data
	@$(call install,bench)
	@$(BIN)/python dev/plots.py

side-by-side: $(READY) ## what a thousand tasks that wait for one agent cost, and the longest step
	@$(BIN)/python benchmarks/side_by_side.py

deployment: $(READY) ## a thousand deferred tasks in a real triggerer, and five thousand in three
	@$(call install,bench)
	@$(BIN)/python benchmarks/deployment.py
	@$(BIN)/python benchmarks/deployment.py --tasks 5000 --triggerers 3

worker-time: $(READY) ## what each way of waiting takes from the workers, in a real Airflow
	@$(call install,bench)
	@$(BIN)/python benchmarks/worker_time.py

watcher: $(READY) ## a thousand finished runs, and a triggerer that is killed ten times
	@$(BIN)/python benchmarks/watcher.py

##@ Release

workflows: $(READY) ## check the workflows of the code host
	@$(call install,workflows)
	$(BIN)/actionlint

dist: $(READY) ## the sdist, the wheel and the SBOM; with TAG=v0.1.0, checked as a release
	@$(call install,release)
	@$(BIN)/python dev/distributions.py $(TAG)
