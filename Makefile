PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# One stamp file says that set-up is done; it is older than pyproject.toml when that changes.
READY := $(VENV)/.ready
# Two workers, as many as the smallest machine has cores; each keeps to one thread.
WORKERS ?= 2

.PHONY: setup demo test test-gpu lint bench options clean

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

test-gpu: $(READY)
	$(BIN)/python -m pytest --device cuda

# How each open choice of the method measures on the small model: the table of docs/options.md.
options: $(READY)
	$(BIN)/python -m benchmarks.atp_options --out benchmarks/results/atp-options.json

bench: options

clean:
	rm -rf build dist out *.egg-info
