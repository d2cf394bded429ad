# On a fresh machine with Python 3.11+: `make demo` runs the main job, `make test` the tests and
# `make quick` the quick ones of them.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
JOBS ?= 2

ENGINES ?= llama.cpp mlx vllm

QUICK := not (model or postgres or processes or engine or long)

.PHONY: demo quick test bounds bounds-oldest bounds-newest engines check setup format clean
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

# Under a minute on two cores (the first time, mypy alone takes more, and the benchmarks are
# downloaded: 86 MB). It leaves out what has a mark of pyproject.toml: no real model, PostgreSQL, process of the command
# line or engine, nor long computing. Its slowest tests are listed: one of seconds wants a mark.
quick: check
	$(BIN)/python -c 'from mqasearch.assets import benchmark_data; benchmark_data()'
	OMP_NUM_THREADS=1 $(BIN)/pytest -n $(JOBS) --durations=5 --durations-min=1 \
		-m "$(QUICK)"

test: check
	OMP_NUM_THREADS=1 $(BIN)/pytest -n $(JOBS) --dist loadgroup

# Whether the oldest and the newest packages that pyproject.toml admits install together, search with
# the fake model and pass tests, each time in a new environment: first as `pip install .` makes it,
# then with what the tests need. After the quick tests come those that reach what these leave out:
# PostgreSQL, Ray, llama.cpp, all of Optuna's storage and of transformers' caches.
# CONSTRAINTS=FILE holds some of the newest back.
REACHING := tests/test_api.py tests/database tests/scores tests/record/test_storage_conformance.py \
	tests/launch/test_embedded_postgres.py tests/launch/test_ray_workers.py \
	tests/checkpoint/test_convert.py tests/formats/test_gguf_served.py tests/formats/test_hf_folder.py

bounds: bounds-oldest bounds-newest

bounds-oldest: override CONSTRAINTS := constraints-oldest.txt

bounds-oldest bounds-newest: bounds-%:
	rm -rf build
	$(PYTHON) -m venv --clear .bounds/$*
	PIP_CONSTRAINT= .bounds/$*/bin/pip install --quiet $(CONSTRAINTS:%=--constraint %) .
	.bounds/$*/bin/pip check
	.bounds/$*/bin/mqasearch --help
	cd .bounds/$* && bin/mqasearch run fake:6 --budget 2 --output-dir run
	PIP_CONSTRAINT= .bounds/$*/bin/pip install --quiet $(CONSTRAINTS:%=--constraint %) '.[dev]'
	.bounds/$*/bin/pip check
	.bounds/$*/bin/pip freeze > .bounds/$*/installed.txt
	.bounds/$*/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))' > .bounds/$*/packages.txt
	echo '$(CURDIR)' > "$$(cat .bounds/$*/packages.txt)/tests.pth"    # after what is installed
	OMP_NUM_THREADS=1 .bounds/$*/bin/pytest -n $(JOBS) -m "$(QUICK)"
	OMP_NUM_THREADS=1 .bounds/$*/bin/pytest -n $(JOBS) --dist loadgroup $(REACHING)

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
	rm -rf $(VENV) .bounds build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
