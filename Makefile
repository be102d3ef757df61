# make demo    install, fetch the model, train it, show the result
# make test    install what tests need and run them
# make help    every target

PYTHON ?= python3
VENV := .venv
VLLM := .venv-vllm
CLIENTS := .venv-clients
CLIENT_PYTHONS := $(patsubst requirements/clients/%.in,$(CLIENTS)/%/bin/python,$(wildcard requirements/clients/*.in))
BIN := $(VENV)/bin
LOCKS := $(wildcard requirements/*.txt)
# Without dependencies: a lock has them all. Without isolation: what builds is locked and installed first.
INSTALL := -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation
LOCKED := $(INSTALL) --require-hashes -r requirements

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.NOTPARALLEL:
.PHONY: help demo test test-slow test-any-cpu test-any-cpu-quick chaos gpu clients client-environments wheel lint \
  format bench untuned replay distil-or-grpo curriculum r1-tiny specialists lora credit-rules planted-hack planted-faults vllm \
  lock clean

help:  ## This list
	@grep -E '^[a-z0-9-]+:.*##' Makefile | sed -E 's/:.*##/\t/' | expand -t 20

demo: $(VENV)/.demo  ## Install, fetch SmolLM2-135M-Instruct, teach it addition, write a report
	$(BIN)/interlock demo

test: $(VENV)/.test  ## Install what tests need and run them (about a quarter of an hour on two cores)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist loadfile -m "not slow and not gpu and not chaos and not clients"

test-slow: $(VENV)/.test  ## The tests that `make test` leaves out for their length
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist loadfile -m "slow and not gpu"

test-any-cpu: $(VENV)/.test  ## The numerical rooms under other CPUs' kernels, one and two threads (hours; arm64 is untried)
	$(BIN)/python tests/any_cpu.py

test-any-cpu-quick: $(VENV)/.test  ## A selection of these, in about a minute
	$(BIN)/python tests/any_cpu.py --quick

chaos: $(VENV)/.test  ## Long runs whose workers and learner are killed, stopped, slowed and corrupted
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m chaos

DEVICE ?= cuda:0

gpu: $(VENV)/.test  ## Try an accelerator in all that Interlock does on it (DEVICE=cuda:0, npu:0, …)
	$(BIN)/interlock preflight --device $(DEVICE)

clients: $(VENV)/.test  ## Real clients, each in an environment of its own, against a server (docs/clients.md; 3 GB)
	$(MAKE) --keep-going client-environments || echo "the clients that could not be installed are skipped"
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m clients tests/clients

client-environments: $(CLIENT_PYTHONS:/bin/python=/.installed) $(CLIENTS)/npm/.installed

wheel:  ## Build the wheel, install it in an environment of its own, and run two steps of the demo with it
	rm -rf build
	$(PYTHON) -m venv build/venv
	$(call installed,build/venv/bin/python,demo)
	build/venv/bin/python -m pip wheel --quiet --disable-pip-version-check --no-deps --no-build-isolation --wheel-dir build .
	build/venv/bin/python $(INSTALL) build/*.whl
	cd build && venv/bin/interlock demo --run demo stage.steps=2 stage.eval.problems=16

lint: $(VENV)/.lint  ## ruff, formatting and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(VENV)/.lint  ## Rewrite the sources in the house format
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# Each benchmark leaves its figures in a file, and what is younger than all it measures is not run again:
# an interrupted `make bench` goes on. vLLM takes part where `make vllm` has been run.
FIGURES := runs/bench
BENCHMARKS := time_to_half rollout rollout-bfloat16 decode decode-groups learner learner-long learner-bfloat16 \
  grpo_step grpo_step-bfloat16 demo_seeds sync coordinator recovery qualify prefix fusion
MEASURED := $(shell find src bench recipes -name '*.py' -o -name '*.toml')
VLLM_READY := $(if $(wildcard $(VLLM)/.installed),$(VLLM)/pyvenv.cfg)

bench: $(BENCHMARKS:%=$(FIGURES)/%.json)  ## Run the CPU benchmarks (about two hours); figures go to runs/bench
	@echo "$(if $(VLLM_READY),vLLM took part: $(VLLM),without vLLM: make vllm, then make bench again, adds it)"

$(FIGURES)/rollout.json $(FIGURES)/rollout-bfloat16.json: $(VLLM_READY)
$(FIGURES)/rollout%: FLAGS = $(if $(VLLM_READY),--vllm $(VLLM)/bin/python)
$(FIGURES)/%-bfloat16.json: FLAGS += --dtype bfloat16
$(FIGURES)/decode-groups.json: FLAGS = --rows 64 --group 1 8 --memory 14
$(FIGURES)/learner-long.json: FLAGS = --prompt 91
$(FIGURES)/demo_seeds.json: FLAGS = --runs $(FIGURES)/demo_seeds
$(FIGURES)/fusion.json: FLAGS = --runs $(FIGURES)/fusion
$(FIGURES)/recovery.json: FLAGS = --learner
$(FIGURES)/qualify.json: FLAGS = levels --threads 2

# decode-groups is bench/decode.py with other flags. What an interrupted one left behind goes first.
$(BENCHMARKS:%=$(FIGURES)/%.json): $(FIGURES)/%.json: $(VENV)/.bench $(MEASURED)
	mkdir -p $(FIGURES)
	rm -rf $(FIGURES)/$*
	$(BIN)/python bench/$(firstword $(subst -, ,$*)).py $(FLAGS) --json $@

replay: $(VENV)/.bench  ## Kept sets and routes: the mismatch before and after replay (bench/replay.py, about a minute)
	mkdir -p $(FIGURES)
	$(BIN)/python bench/replay.py --json $(FIGURES)/replay.json

untuned: $(VENV)/.bench  ## One recipe on five generators of reasoning-gym that it was not tuned on (bench/untuned.py)
	$(BIN)/python bench/untuned.py --runs runs/untuned --json runs/untuned/untuned.json

distil-or-grpo: $(VENV)/.bench  ## On-policy distillation against GRPO for equal compute; goes on where it stopped
	mkdir -p $(FIGURES)
	$(BIN)/python bench/distil_or_grpo.py --runs $(FIGURES)/distil-or-grpo --json $(FIGURES)/distil_or_grpo.json

curriculum: $(VENV)/.bench  ## Problems labelled, then drawn by pass rate against in order: groups that teach; goes on
	mkdir -p $(FIGURES)
	$(BIN)/python bench/curriculum.py --runs $(FIGURES)/curriculum --json $(FIGURES)/curriculum.json

r1-tiny: $(VENV)/.bench  ## R1's order of stages on a small model, every stage measured; goes on where it stopped
	mkdir -p $(FIGURES)
	$(BIN)/python bench/recipe_stages.py r1-tiny --seeds 0 1 2 --runs $(FIGURES)/r1-tiny --json $(FIGURES)/r1_tiny.json

lora: $(VENV)/.bench  ## Adapters against full training: bytes, swap, memory, step, and the gain on five seeds; goes on
	mkdir -p $(FIGURES)
	$(BIN)/python bench/lora.py --json $(FIGURES)/lora.json
	$(BIN)/python bench/lora_gain.py --runs $(FIGURES)/lora-gain --json $(FIGURES)/lora_gain.json

specialists: $(VENV)/.bench  ## Two specialists and the student that two teachers merge, every stage measured; goes on
	mkdir -p $(FIGURES)
	$(BIN)/python bench/recipe_stages.py specialists --seeds 0 1 2 --runs $(FIGURES)/specialists --json $(FIGURES)/specialists.json

credit-rules: $(VENV)/.bench  ## Each rule of credit and loss on the demo's task, three seeds; goes on where it stopped
	mkdir -p $(FIGURES)
	$(BIN)/python bench/credit_rules.py --runs $(FIGURES)/credit-rules --json $(FIGURES)/credit_rules.json

planted-hack: $(VENV)/.bench  ## Rewards that can be earned wrongly: when the alarm comes; goes on where it stopped
	mkdir -p $(FIGURES)
	$(BIN)/python bench/planted_hack.py --seeds 0 1 2 --runs $(FIGURES)/planted-hack --json $(FIGURES)/planted_hack.json

planted-faults: $(VENV)/.bench  ## A fifth of the verdicts fails for no fault of the policy: what accuracy it costs
	rm -rf $(FIGURES)/planted-faults
	mkdir -p $(FIGURES)
	$(BIN)/python bench/planted_faults.py --runs $(FIGURES)/planted-faults --json $(FIGURES)/planted_faults.json

vllm: $(VLLM)/.installed  ## An environment of its own with vLLM's CPU build (3.5 GB), for generators

lock:  ## Write requirements/ again after a change of pins (needs uv)
	$(PYTHON) requirements/lock.py

clean:  ## Remove the virtual environments and caches; runs/ stays
	rm -rf $(VENV) $(VLLM) $(CLIENTS) build .pytest_cache .ruff_cache .hypothesis

# $(call installed,PYTHON,EXTRA): on Linux, torch from PyPI asks for CUDA's packages; its CPU build does not.
define installed
$(1) $(LOCKED)/build.txt
$(1) $(LOCKED)/torch-cpu.txt 2>/dev/null || echo "pip finds no CPU build of torch; taking PyPI's"
$(1) $(LOCKED)/$(2).txt
! $(1) -m pip check | grep -q '^torch .* is not installed' || $(1) $(LOCKED)/cuda.txt
endef

# One stamp per extra: `make demo` installs no test tools.
$(VENV)/.%: pyproject.toml $(LOCKS) | $(BIN)/python
	$(call installed,$(BIN)/python,$*)
	$(BIN)/python $(INSTALL) -e .
	touch $@

$(VLLM)/.installed: pyproject.toml $(LOCKS) | $(VLLM)/bin/python
	$(VLLM)/bin/python $(LOCKED)/vllm.txt
	$(VLLM)/bin/python $(INSTALL) -e .
	touch $@

# One of them wants torch, any; PyPI's newest would bring gigabytes of CUDA.
$(CLIENTS)/guidellm/.installed: $(LOCKS) requirements/clients/guidellm.txt | $(CLIENTS)/guidellm/bin/python
	$(call installed,$(CLIENTS)/guidellm/bin/python,clients/guidellm)
	touch $@

$(CLIENTS)/npm/.installed: $(wildcard requirements/clients/npm/*.json)
	mkdir -p $(@D)
	cp $^ $(@D)
	npm ci --prefix $(@D) --silent --ignore-scripts
	touch $@

$(CLIENTS)/%/.installed: requirements/clients/%.txt | $(CLIENTS)/%/bin/python
	$(CLIENTS)/$*/bin/python $(LOCKED)/build.txt
	$(CLIENTS)/$*/bin/python $(LOCKED)/clients/$*.txt
	touch $@

$(BIN)/python $(VLLM)/bin/python $(CLIENT_PYTHONS):
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "Interlock needs Python 3.11 or newer; run: make PYTHON=/path/to/python3.11 $(MAKECMDGOALS)"; exit 2; }
	$(PYTHON) -m venv $(@:/bin/python=)
