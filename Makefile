# The commands the README and CI use. Each one sets up what it needs.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
RUN := JAX_PLATFORMS=cpu $(BIN)/python

.PHONY: study study-full notebooks test pods learn lint format bench clean

study: $(VENV)/run.stamp
	$(RUN) scripts/study.py --workdir runs/study

study-full: $(VENV)/run.stamp  # all axes, three seeds: hours
	$(RUN) scripts/study.py --workdir runs/study-full --scale full

notebooks: $(VENV)/notebooks.stamp  # all of them, from start to end, in a copy
	$(RUN) scripts/notebooks.py

test: $(VENV)/test.stamp
	$(RUN) -m pytest tests -n 2 --dist loadfile --no-loadscope-reorder

pods: $(VENV)/test.stamp  # what the TPU compiler makes of larger programs: minutes
	$(RUN) -m pytest tests/pods -m pods

learn: $(VENV)/test.stamp  # the curves of tests/objectives/test_it_learns.py, longer
	$(RUN) -m tests.objectives.test_it_learns 30

lint: $(VENV)/lint.stamp
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

format: $(VENV)/lint.stamp
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: $(VENV)/run.stamp
	$(RUN) benchmarks/bench.py

clean:
	rm -rf $(VENV) runs

$(BIN)/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "EasyLM needs Python 3.11 or newer: make PYTHON=python3.12 ...")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade pip

$(VENV)/run.stamp: setup.py constraints.txt | $(BIN)/python
	$(BIN)/pip install --quiet -c constraints.txt -e .
	touch $@

$(VENV)/test.stamp: $(VENV)/run.stamp
	$(BIN)/pip install --quiet -c constraints.txt -e ".[test]"
	touch $@

$(VENV)/notebooks.stamp: $(VENV)/run.stamp
	$(BIN)/pip install --quiet -c constraints.txt -e ".[notebooks]"
	touch $@

$(VENV)/lint.stamp: | $(BIN)/python
	$(BIN)/pip install --quiet -c constraints.txt ruff
	touch $@
