# On a fresh machine with Python 3.11+: `make demo` runs the main job, `make test` the tests and
# `make quick` the quick ones of them.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
JOBS ?= 2

ENGINES ?= llama.cpp mlx vllm

.PHONY: demo quick test engines check setup format clean
.DELETE_ON_ERROR:

setup: $(VENV)/.ready

$(VENV)/.ready: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "mqasearch needs Python 3.11 or newer; set PYTHON=/path/to/python3.11" >&2; exit 2; }
	$(PYTHON) -m venv $(VENV)
	PIP_CONSTRAINT= $(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

demo: setup
	$(BIN)/mqasearch demo

check: setup
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

# Under a minute on two cores (mypy alone takes more the first time, and seconds afterwards). It
# leaves out what has a mark of pyproject.toml: no real model, PostgreSQL, process of the command
# line or engine, nor long computing. Its slowest tests are listed: one of seconds wants a mark.
quick: check
	OMP_NUM_THREADS=1 $(BIN)/pytest -n $(JOBS) --durations=5 --durations-min=1 \
		-m "not (model or postgres or processes or engine or long)"

test: check
	OMP_NUM_THREADS=1 $(BIN)/pytest -n $(JOBS) --dist loadgroup

# Stock engines, each in an environment of its own; then whether they compute what transformers does.
engines: setup $(ENGINES:%=.engines/%/.ready)
	MQASEARCH_ENGINES=$(CURDIR)/.engines OMP_WAIT_POLICY=PASSIVE $(BIN)/python engines/equality.py --engine $(ENGINES)
	MQASEARCH_ENGINES=$(CURDIR)/.engines OMP_WAIT_POLICY=PASSIVE $(BIN)/python engines/commands.py --engine $(ENGINES)

.engines/%/.ready: engines/%.txt
	$(PYTHON) -m venv .engines/$*
	PIP_CONSTRAINT= .engines/$*/bin/python -m pip install --quiet --no-deps --require-hashes --requirement $<
	! test -d engines/$*-name || PIP_CONSTRAINT= .engines/$*/bin/python -m pip install --quiet --no-deps --no-build-isolation ./engines/$*-name
	touch $@

format: setup
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
