PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready
# Two workers, as many as the smallest machine has cores; each keeps to one thread.
WORKERS ?= 2

.PHONY: setup demo test test-oldest test-newest test-newest-core newest update-lock test-gpu \
	test-elsewhere lint bench bench-gpu options families reproduce reproduce-methods \
	reproduce-rest reproduce-quick fuzz soak reliability compatibility docs serve site-pictures \
	notebooks release-check clean

setup: $(READY)

# Three environments. What was tested and the oldest releases are locked, and installed again when
# the lock or pyproject.toml has changed: any pip can do that. The newest is looked for every time,
# by a pip that knows dependency groups.
.venv/.ready: requirements/tested.txt
.venv/.ready: PACKAGES = -r requirements/tested.txt
.venv-oldest/.ready: requirements/oldest.txt
.venv-oldest/.ready: PACKAGES = -r requirements/oldest.txt
.venv-newest/.ready: newest
.venv-newest/.ready: PACKAGES = --upgrade --upgrade-strategy eager -e ".[demo]" --group test --group docs
.venv-newest/.ready: FIRST = .venv-newest/bin/python -m pip install --upgrade pip

.venv/.ready .venv-oldest/.ready .venv-newest/.ready: %/.ready: pyproject.toml
	test -x $*/bin/python || $(PYTHON) -m venv $*
	$(FIRST)
	$*/bin/python -m pip install $(PACKAGES)
	$*/bin/python -m pip install --no-deps --no-build-isolation -e .
	touch $@

# Both locks anew: the newest releases that requirements/*.in allow, for every platform.
update-lock:
	test -x .venv-lock/bin/python || $(PYTHON) -m venv .venv-lock
	.venv-lock/bin/python -m pip install --upgrade uv
	for lock in tested oldest; do .venv-lock/bin/uv pip compile pyproject.toml --extra demo \
		--group test --group docs --constraints requirements/$$lock.in --universal \
		--python-version 3.10 --upgrade --no-annotate --custom-compile-command "make update-lock" \
		--output-file requirements/$$lock.txt || exit; done

demo: $(READY)
	$(BIN)/python -m examples.quickstart --out out/demo

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

test: lint
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS)

# The family suite on the oldest releases.
test-oldest: .venv-oldest/.ready
	OMP_NUM_THREADS=1 .venv-oldest/bin/python -m pytest -n $(WORKERS) tests/test_families.py

test-newest: .venv-newest/.ready
	OMP_NUM_THREADS=1 .venv-newest/bin/python -m pytest -n $(WORKERS)

# What a release of transformers breaks first.
CORE := families generate cache changed_cache renamed_arguments
test-newest-core: .venv-newest/.ready
	OMP_NUM_THREADS=1 .venv-newest/bin/python -m pytest -n $(WORKERS) $(CORE:%=tests/test_%.py)

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
	OMP_NUM_THREADS=1 $(BIN)/python -m scripts.verify_families -n $(WORKERS)

# Time against an oracle on the same tokens: docs/performance.md.
bench: $(READY)
	$(BIN)/python -m benchmarks.speed --json benchmarks/results/speed-cpu.json
	$(BIN)/python -m benchmarks.speed --render docs/performance.md

# What only CUDA can show, in under nine minutes: run it from a checkout, with nothing to install.
bench-gpu:
	$(PYTHON) -m benchmarks.gpu --out benchmarks/results/gpu

# Long runs that try to break the library. A failure of `make fuzz` prints what repeats it; the same
# SEED draws the same examples. FUZZ_EXAMPLES=100 for a shorter one.
SEED ?= $(shell date +%s)
FUZZ_EXAMPLES ?= 1000
PASSES ?= 10000

fuzz: $(READY)
	@echo "make fuzz SEED=$(SEED) FUZZ_EXAMPLES=$(FUZZ_EXAMPLES)"
	OMP_NUM_THREADS=1 HYPOTHESIS_PROFILE=fuzz FUZZ_EXAMPLES=$(FUZZ_EXAMPLES) \
		$(BIN)/python -m pytest -n $(WORKERS) --hypothesis-seed=$(SEED) \
		tests/test_state_machine.py tests/test_ragged_fuzz.py

soak: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.support.soak --count $(PASSES)

# docs/reliability.md: everything above and more, hours.
reliability: $(READY)
	$(BIN)/python -m benchmarks.reliability --workers $(WORKERS) \
		--out benchmarks/results/reliability.json --render docs/reliability.md

# The site, into out/site, every link checked: open out/site/index.html, or `make serve` to search it.
# With `make notebooks` before it, the notebooks' pages have what they printed and drew.
docs: $(READY)
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build

serve: docs
	$(BIN)/python -m http.server --directory out/site

# docs/site.png and docs/site_api.png, by a Chromium that is installed.
CHROMIUM ?= chromium
site-pictures: docs
	for page in how_it_works:site api/training:site_api; do \
		$(CHROMIUM) --headless --no-sandbox --hide-scrollbars --window-size=1360,1000 \
			--screenshot=docs/$${page#*:}.png file://$(CURDIR)/out/site/$${page%:*}.html || exit; \
	done

# The notebooks as .ipynb, run: minutes.
notebooks: $(READY)
	mkdir -p out/notebooks
	for name in $(notdir $(basename $(wildcard examples/notebooks/*.py))); do \
		$(BIN)/jupytext --to ipynb --output out/notebooks/$$name.ipynb \
			examples/notebooks/$$name.py || exit; \
		PYTHONPATH=$(CURDIR) $(BIN)/jupyter execute --inplace out/notebooks/$$name.ipynb || exit; \
	done

# What works with a wrapped model and what is refused: docs/compatibility.md.
compatibility: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python -m scripts.write_compatibility

# What the release workflow builds, built from the last commit and tried here; nothing is uploaded.
release-check: $(READY)
	test -x .venv-release/bin/python || $(PYTHON) -m venv .venv-release
	.venv-release/bin/python -m pip install --quiet build twine
	rm -rf out/dist
	DEPENDENCIES=$$($(BIN)/python -c "import sysconfig; print(sysconfig.get_path('purelib'))") \
		PYTHON=$(CURDIR)/.venv-release/bin/python scripts/release.sh out/dist

clean:
	rm -rf build dist out *.egg-info
