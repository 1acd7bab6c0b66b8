PYTHON ?= python3
VENV   ?= .venv
EXTRAS ?= dev,fast,marl,rl,solvers,tensorboard
JOBS   ?= 2
ARGS   ?=

BIN   := $(VENV)/bin
STAMP := $(VENV)/.installed

.DEFAULT_GOAL := help
.PHONY: help install compare test lint format bench wheel check-wheel check-rllib clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  %-12s %s\n", $$1, $$2}' $(firstword $(MAKEFILE_LIST))
	@echo "  ARGS=... is passed on; PYTHON=... chooses the interpreter that makes $(VENV)."

install: $(STAMP) ## make the virtual environment (the other targets do this too)

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(STAMP): setup.cfg constraints.txt | $(BIN)/python
	@echo "installing into $(VENV) (once; again when setup.cfg or constraints.txt change)"
	$(BIN)/python -m pip install -q -c constraints.txt -e '.[$(EXTRAS)]'
	@touch $@

compare: $(STAMP) ## train and compare agents and baselines on one set of channels
	$(BIN)/isac-gym compare $(ARGS)

# One thread a process: test workers whose torch threads compete for the cores are many times slower.
# A module's tests go to one worker, for what they share is made in each that has one of them.
test: $(STAMP) ## run the tests
	OMP_NUM_THREADS=1 $(BIN)/pytest -n $(JOBS) --dist loadscope $(ARGS)

lint: $(STAMP) ## check style, types and layers
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(STAMP) ## rewrite the files in the project's style
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(STAMP) ## run the benchmarks, with the peers that they are measured beside
	$(BIN)/python -m pip install -q -c constraints.txt -e '.[bench]'
	$(BIN)/pytest benchmarks $(ARGS)

# A stale build/ would carry deleted modules into the wheel.
wheel: $(STAMP) ## build the source distribution and the wheel into dist/
	rm -rf build dist
	$(BIN)/python -m build --no-isolation

check-wheel: $(STAMP) ## install the wheel in a clean environment beside openai-agents
	PYTHON=$(BIN)/python scripts/check_wheel_install.sh

check-rllib: $(STAMP) ## run the tests of RLlib in an environment of its own
	PYTHON=$(BIN)/python scripts/check_rllib.sh

clean: ## remove what builds and checks leave behind; the virtual environment stays
	rm -rf build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .import_linter_cache \
	    .hypothesis .benchmarks
	find isac_gym agents baselines tests benchmarks -name __pycache__ -type d -prune \
	    -exec rm -rf {} + 2>/dev/null || true
