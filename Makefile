PYTHON ?= python3
OUTPUT ?= output
BIN := .venv/bin
STAMP := .venv/.ready

# PyTorch's CPU threads spin while they wait unless told otherwise; on a shared machine that slows everything many times over.
export OMP_WAIT_POLICY ?= PASSIVE

.PHONY: help env quickstart ablation tables test lint clean
help:
	@echo "make env         set up .venv (about two minutes; nothing to do when it is ready)"
	@echo "make quickstart  set up, train on synthetic data, compare trackers, draw a tracked video (output/quickstart)"
	@echo "make ablation    every row of projects/quickstart/README.md, three seeds (hours on two cores; resumes)"
	@echo "make tables      Tables 1 to 3 in miniature, three seeds (hours on two cores; resumes)"
	@echo "make test        set up and run the tests"
	@echo "make lint        ruff, lint and format"

env: $(STAMP)

$(STAMP): requirements/base.txt requirements/detectron2.txt requirements/trackeval.txt setup.py
	$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14) and "The pins of requirements/ are for Python 3.11 to 3.13: make env PYTHON=python3.12")'
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet -r requirements/base.txt
	$(BIN)/pip install --quiet --no-deps --only-binary=:all: --python-version 3.10 --require-hashes --upgrade \
	    --target "$$($(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')" -r requirements/detectron2.txt
	$(BIN)/pip install --quiet --no-deps -r requirements/trackeval.txt
	$(BIN)/pip install --quiet --no-deps --no-build-isolation --editable .
	@touch $@

quickstart: env
	$(BIN)/python tools/quickstart.py --output $(OUTPUT)/quickstart

ablation: env
	$(BIN)/python tools/reproduce.py ablation --output $(OUTPUT)/tables --seeds 0 1 2

tables: env
	for table in table1 table2 table3; do $(BIN)/python tools/reproduce.py $$table --output $(OUTPUT)/tables --seeds 0 1 2 || exit 1; done

test: env
	$(BIN)/python -m pytest -n 2 --dist worksteal

lint: env
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

clean:
	rm -rf .venv $(OUTPUT) build *.egg-info
