# On a fresh machine with Python 3.11+: `make demo` runs the main job, `make test` the tests.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
JOBS ?= 2

ENGINES ?= llama.cpp mlx vllm

.PHONY: demo test engines check setup format clean
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
