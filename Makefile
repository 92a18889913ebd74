PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# One stamp file says that set-up is done; it is older than pyproject.toml when that changes.
READY := $(VENV)/.ready
# Two workers, as many as the smallest machine has cores; each keeps to one thread.
WORKERS ?= 2

.PHONY: setup demo test test-oldest test-matrix test-gpu test-elsewhere lint bench options \
	families reproduce reproduce-methods reproduce-rest reproduce-quick clean

setup: $(READY)

$(READY): pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --upgrade pip
	$(BIN)/python -m pip install -e ".[test]"
	touch $(READY)

demo: $(READY)
	$(BIN)/python examples/quickstart.py --out out/demo

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

test: lint
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS)

# The oldest releases the library promises to run on, and the family suite in them.
OLDEST := .venv-oldest
OLDEST_READY := $(OLDEST)/.ready

$(OLDEST_READY): pyproject.toml
	test -x $(OLDEST)/bin/python || $(PYTHON) -m venv $(OLDEST)
	$(OLDEST)/bin/python -m pip install --upgrade pip
	$(OLDEST)/bin/python -m pip install -e ".[test]" "torch==2.6.*" "transformers==4.57.*"
	touch $(OLDEST_READY)

test-oldest: $(OLDEST_READY)
	OMP_NUM_THREADS=1 $(OLDEST)/bin/python -m pytest -n $(WORKERS) tests/test_families.py

test-matrix: test test-oldest

test-gpu: $(READY)
	$(BIN)/python -m pytest --device cuda

# The tests that take a device, on a pretended one: what lies on the wrong device fails. 11 min.
test-elsewhere: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --device elsewhere

# The paper's tables and figures on the small LLaVA: docs/reproduction.md. Resumable.
# Two processes of one thread are faster on such a model than one of two threads: about 2 h.
reproduce: $(READY)
	$(MAKE) -j2 reproduce-methods reproduce-rest
	$(BIN)/python -m benchmarks.reproduce --render docs/reproduction.md

reproduce-methods: $(READY)
	$(BIN)/python -m benchmarks.reproduce --threads 1 --only table1 figure2 table6 layers

reproduce-rest: $(READY)
	$(BIN)/python -m benchmarks.reproduce --threads 1 --only ablations table3 extensions table2

reproduce-quick: $(READY)
	$(BIN)/python -m benchmarks.reproduce --quick

# How each open choice of the method measures on the small model: the table of docs/options.md.
options: $(READY)
	$(BIN)/python -m benchmarks.atp_options --out benchmarks/results/atp-options.json

# Which families of transformers can be pruned: docs/families.md and adapters/verified.json.
families: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.families -n $(WORKERS)

# Time against an oracle on the same tokens: docs/performance.md.
bench: $(READY)
	$(BIN)/python -m benchmarks.speed --json benchmarks/results/speed-cpu.json
	$(BIN)/python -m benchmarks.speed --render docs/performance.md

clean:
	rm -rf build dist out *.egg-info
