# make demo and make test do all the set-up; they need Python >= 3.11 with venv, nothing else.
PYTHON ?= python3
WORKERS ?= 2
SEED ?= 0
N ?= 20
KILLS ?= 200
PIP_ARGS ?=

VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check install $(PIP_ARGS)
REAL := $(PIP) --no-deps --require-hashes --only-binary :all:

.DEFAULT_GOAL := help
.PHONY: recipes help demo test test-slow test-e2e page gallery lint scope docs mutants peers clean

help:
	@echo "make demo              install, then ask a real model a question and draw its attention"
	@echo "make test              install, then run the tests (all but slow and gpu)"
	@echo "make test-slow         run the slow tests"
	@echo "make test-e2e          drive the Explorer and the views in Chromium (apt-get install chromium)"
	@echo "make page              hold the Explorer's page against its source (npm run build makes it)"
	@echo "make gallery           draw the pictures of docs/explorer.md anew, with Chromium"
	@echo "make torture           kill each kind of run KILLS times; each must end with the same weights"
	@echo "make recipes           fetch real data, train and tune on it, and hold the results to the table"
	@echo "make lint              style and types"
	@echo "make scope             which rows of the checklist work; WITHOUT=family hides one"
	@echo "make docs              write docs/families: a page for each family, from its file"
	@echo "make mutants           break core and families N times by SEED; the tests must notice"
	@echo "make peers             install the engines that benchmarks stand beside (compiles for minutes)"
	@echo "make clean             remove .venv and everything generated"
	@echo "Set PYTHON to choose an interpreter, WORKERS for the number of test processes (0: one), and"
	@echo "PIP_ARGS to pass options to pip, for example an index with CPU builds of torch."

demo: $(VENV)/demo.done
	@$(BIN)/mirada demo

test: $(VENV)/test.done
	$(BIN)/python -m pytest -q -n $(WORKERS) --dist worksteal

test-slow: $(VENV)/test.done
	$(BIN)/python -m pytest -q -m "slow and not gpu"

test-e2e: $(VENV)/test.done explorer/node_modules
	$(BIN)/python -m pytest -q -m e2e tests/e2e -n $(WORKERS) --dist worksteal

page: explorer/node_modules
	cd explorer && npm run check && npm run build -- --check

explorer/node_modules: explorer/package-lock.json
	cd explorer && npm ci
	@touch $@

gallery: $(VENV)/test.done
	$(BIN)/python tools/gallery.py

torture: $(VENV)/test.done
	MIRADA_KILLS=$(KILLS) $(BIN)/python -m pytest -q -m slow -k "killed or signals" tests/train

recipes: $(VENV)/test.done
	$(BIN)/python tools/recipes.py

lint: $(VENV)/test.done
	$(BIN)/ruff check .
	$(BIN)/mypy

scope: $(VENV)/test.done
	@$(BIN)/python tools/scope.py --workers $(WORKERS) $(if $(WITHOUT),--without $(WITHOUT))
	@$(if $(WITHOUT),,$(BIN)/python tools/docs.py)

docs: $(VENV)/test.done
	@$(BIN)/python tools/docs.py

mutants: $(VENV)/test.done
	@$(BIN)/python tools/mutants.py --seed $(SEED) --count $(N)

# -O2: gcc 12 at -O3 drops the stores that set up AMX tiles, and llama.cpp then crashes.
peers: $(VENV)/test.done
	$(PIP) -c constraints.txt ctranslate2==4.8.5 diskcache==5.6.3 openvino==2026.4.1 \
	  openvino-genai==2026.4.1.0 onnx==1.23.2 onnx-ir==1.1.0 onnxruntime==1.31.1 \
	  onnxruntime-genai==0.18.0
	CMAKE_ARGS="-DCMAKE_BUILD_TYPE=None -DCMAKE_C_FLAGS=-O2 -DCMAKE_CXX_FLAGS=-O2" \
	  $(PIP) --no-deps --no-binary llama-cpp-python llama-cpp-python==0.3.36

clean:
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis attention.png
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# A stamp is renewed when what it was installed from changes.
$(VENV)/demo.done: pyproject.toml constraints.txt demo-packages.txt | $(BIN)/python
	$(PIP) -c constraints.txt -e ".[look]"
	$(REAL) -r demo-packages.txt
	@touch $@

$(VENV)/test.done: pyproject.toml constraints.txt demo-packages.txt real-packages.txt \
    $(VENV)/archives.done | $(BIN)/python
	$(PIP) -c constraints.txt -e ".[dev]"
	$(REAL) -r real-packages.txt
	@touch $@

$(VENV)/archives.done: real-archives.txt tools/archives.py | $(BIN)/python
	$(BIN)/python tools/archives.py $(VENV)/real $(PIP_ARGS)
	@touch $@

$(BIN)/python:
	@command -v $(PYTHON) >/dev/null || \
	  { echo "$(PYTHON) was not found: install Python 3.11 or newer, or name one (make PYTHON=...)."; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "mirada needs Python 3.11 or newer: name one (make PYTHON=python3.12)."; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || \
	  { echo "Python's venv is missing: install it (Debian, Ubuntu: apt install python3-venv)."; exit 1; }
	$(PYTHON) -m venv $(VENV)
