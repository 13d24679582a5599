# Everything runs in an environment of the project's own. Targets call the command line and nothing else.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
OLDEST := .venv-oldest
PEERS := .venv-peers
CALIBRATION := .venv-calibration
CONFORMANCE := .venv-conformance
# The package with its engines compiled: whoever finds it first (PYTHONPATH) runs those.
COMPILED := build/compiled
HARDWARE := .venv-hardware
# The version that runs whole beside this torch.
VLLM_VERSION ?= 0.32.0
VLLM := $(CONFORMANCE)/$(VLLM_VERSION)
DEVICE ?= cuda
PROFILE ?= $(if $(filter cpu,$(DEVICE)),quick,full)
FIDELITY_DATA ?= data/fidelity
FIDELITY_TIMELINES ?= $(wildcard $(FIDELITY_DATA)-ispass26)
RESULTS ?= results
JOBS ?= $(shell $(PYTHON) -c 'import os; print(os.cpu_count() or 1)')
# With LATENCY=file, a latency file for all runs but those of sweep files that name one of their own.
LATENCY ?=
# Of `batchsim sweep`, e.g. OPTIONS=--extrapolate.
OPTIONS ?=
EXPERIMENTS ?= $(if $(LATENCY),$(shell grep -L 'latency\.file' experiments/*.toml),$(wildcard experiments/*.toml))
# What `make sweep-full` runs, unless EXPERIMENTS are named.
PAPER := $(patsubst %,experiments/%.toml,scheduler_comparison bin_sensitivity scaling)
# Results of a latency file have a folder, and a report, of their own.
SMALL := $(RESULTS)/small$(if $(LATENCY),-$(basename $(notdir $(LATENCY))))
SWEEP = sweep $(EXPERIMENTS) --jobs $(JOBS) $(if $(LATENCY),--latency $(LATENCY)) $(OPTIONS)
ROOFLINE_DATA ?= data/roofline
# What runs say that they could be off by.
ERRORS := src/batchsim/latency/data/expected_errors.json
# What AIConfigurator predicts; without it (make fidelity-peers) the page of ours stands alone.
PEERS_CSV := $(RESULTS)/fidelity-peers.csv

.DEFAULT_GOAL := help
.PHONY: help setup sweep sweep-full docs figures report data calibrate validate validate-vllm fidelity fidelity-hardware fidelity-peers roofline-error test test-compiled test-oldest test-hardware test-calibration lint lint-calibration fuzz faults conformance compiled bench bench-peers clean

help:  ## Say what there is to make
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  %-16s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: setup.cfg pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[report]'
	@touch $@

$(VENV)/.installed-dev: setup.cfg pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[dev]'
	@touch $(VENV)/.installed $@

setup: $(VENV)/.installed-dev  ## Make the environment, with all that development needs

# A page that cannot be made, as without plotly, says why, and the sweep is none the worse for it.
sweep: $(VENV)/.installed  ## Run all experiments (865 runs) and draw the figures; LATENCY=file, OPTIONS=--extrapolate (minutes)
	$(BIN)/batchsim $(SWEEP) --output-dir $(SMALL)
	$(BIN)/batchsim figures $(SMALL)
	-$(BIN)/batchsim report $(SMALL) -o $(SMALL)/report.html

sweep-full: EXPERIMENTS := $(if $(filter file,$(origin EXPERIMENTS)),$(PAPER),$(EXPERIMENTS))
sweep-full: $(VENV)/.installed  ## The paper's grid: 1,000 to 1 million requests, 1 to 100 GPUs, 1 to 32 bins (under an hour)
	$(BIN)/batchsim $(SWEEP) --full --output-dir $(RESULTS)/full
	$(BIN)/batchsim figures $(RESULTS)/full
	-$(BIN)/batchsim report $(RESULTS)/full -o $(RESULTS)/full/report.html

report: $(VENV)/.installed  ## Make the page to explore from the results that are there
	$(BIN)/batchsim report $(SMALL) -o $(SMALL)/report.html

$(VENV)/.installed-docs: setup.cfg pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[docs]'
	@touch $@

docs: $(VENV)/.installed-docs  ## Build the documentation: docs/_build/index.html
	$(BIN)/python -m sphinx -q -W --keep-going -c docs -d docs/_build/.doctrees . docs/_build

figures: $(VENV)/.installed  ## Draw the figures again from the results that are there
	$(BIN)/batchsim figures $(SMALL)

# Under ROOFLINE_DATA, tables as their publishers name and place them.
roofline-error: $(VENV)/.installed  ## Predict the published measurements in ROOFLINE_DATA without a calibration; write docs/roofline.md
	$(BIN)/batchsim roofline-error $(ROOFLINE_DATA)/llm-inference-bench/all_results.csv.gz \
		$(ROOFLINE_DATA)/aiconfigurator/silicon_sample.csv.gz -o docs --errors $(ERRORS)

data: $(VENV)/.installed  ## Download and check the public BurstGPT trace
	$(BIN)/batchsim trace download --output-dir data

# torch and transformers stay out of the simulator's environment. What is not ours is a step of its own: it can be
# installed beside the simulator's environment, while the two packages of the repository share build folders.
$(CALIBRATION)/.packages: calibration/requirements.txt
	$(PYTHON) -m venv $(CALIBRATION)
	$(CALIBRATION)/bin/python -m pip install --quiet --disable-pip-version-check -r calibration/requirements.txt
	@touch $@

$(CALIBRATION)/.installed: setup.cfg calibration/setup.cfg $(CALIBRATION)/.packages
	$(CALIBRATION)/bin/python -m pip install --quiet --disable-pip-version-check -e . -e './calibration[dev]'
	@touch $@

calibrate: $(CALIBRATION)/.installed  ## Measure this machine's GPU; DEVICE=cpu: its processor, with a small model (minutes)
	$(CALIBRATION)/bin/batchsim-calibrate measure --device $(DEVICE) --$(PROFILE) --random-weights -o $(RESULTS)/calibration

# Small enough for a laptop's processor; a GPU takes longer prompts and more at once.
REPLAY ?= --num-requests 40 --rate 1.6 --max-prompt 128 --max-output 32 --max-num-seqs 32 --repeats 3

validate: $(CALIBRATION)/.installed $(VENV)/.installed  ## Calibrate, serve a trace for real, simulate it, compare (DEVICE=cpu: minutes)
	$(CALIBRATION)/bin/batchsim-calibrate replay --device $(DEVICE) --random-weights $(REPLAY) \
		--policy static_fifo --policy multi_bin_dynamic --policy vllm_v1 --overwrite \
		--calibrate-between $(RESULTS)/validation/calibration.csv -o $(RESULTS)/validation/measured
	$(BIN)/batchsim fit $(RESULTS)/validation/calibration.csv --family auto-iteration -o $(RESULTS)/validation/latency.json
	$(BIN)/batchsim validate $(RESULTS)/validation/measured $(RESULTS)/validation/latency.json -o $(RESULTS)/validation

# vLLM's own wheel for processors, without what it asks for that is large and not needed; of V0 a few files: see there.
$(CONFORMANCE)/%/.packages: tests/conformance/environment.py
	$(PYTHON) -m venv $(CONFORMANCE)/$*
	$(CONFORMANCE)/$*/bin/python tests/conformance/environment.py $*
	@touch $@

$(VLLM)/.installed: setup.cfg calibration/setup.cfg $(VLLM)/.packages
	$(VLLM)/bin/python -m pip install --quiet --disable-pip-version-check -e . -e ./calibration
	@touch $@

# Limits as in calibration/validate_vllm.toml. Blocks of 32 tokens, the least that vLLM takes on a processor.
VLLM_ENGINE := tiny --device cpu --enforce-eager --block-size 32
VLLM_LIMITS := --max-num-seqs 16 --max-num-batched-tokens 512 --num-kv-blocks 1024
# KV blocks that are too few for what waits. Not at the highest load: there a queue makes much of each per cent by which the machine's
# speed changes between repeats.
VLLM_PRESSURE ?= 30
VLLM_REPEATS ?= 3

validate-vllm: $(VLLM)/.installed $(VENV)/.installed  ## Calibrate vLLM itself on this processor, serve traces, simulate, compare; write docs/fidelity-vllm.md (minutes)
	$(VLLM)/bin/batchsim-calibrate vllm $(VLLM_ENGINE) --quick --trials 2 --budget 60 --max-tokens 1024 \
		--name first --overwrite -o $(RESULTS)/validation-vllm
	$(BIN)/batchsim fit $(RESULTS)/validation-vllm/first.csv --family auto-iteration -o $(RESULTS)/validation-vllm/first_latency.json
	$(BIN)/batchsim pace calibration/validate_vllm.toml --latency $(RESULTS)/validation-vllm/first_latency.json \
		--busy 0.4 --busy 0.7 --busy 0.95 -o $(RESULTS)/validation-vllm/traces
	rm -rf $(RESULTS)/validation-vllm/measured
	$(VLLM)/bin/batchsim-calibrate replay-vllm $(VLLM_ENGINE) $(VLLM_LIMITS) --repeats $(VLLM_REPEATS) \
		$(foreach trace,busy40.csv busy70.csv busy95.csv busy70.csv@$(VLLM_PRESSURE),--trace $(RESULTS)/validation-vllm/traces/$(trace)) \
		--max-tokens 1024 --calibrate-between $(RESULTS)/validation-vllm/calibration.csv --overwrite \
		-o $(RESULTS)/validation-vllm/measured
	$(BIN)/batchsim fit $(RESULTS)/validation-vllm/calibration.csv --family auto-iteration -o $(RESULTS)/validation-vllm/latency.json
	$(BIN)/batchsim validate $(RESULTS)/validation-vllm/measured $(RESULTS)/validation-vllm/latency.json \
		-o $(RESULTS)/validation-vllm --report docs/fidelity-vllm.md

fidelity: $(VENV)/.installed  ## Predict the measured runs in FIDELITY_DATA (runs/ profiles/ models/ workloads/); write docs/fidelity.md
	$(BIN)/batchsim fidelity-report $(FIDELITY_DATA) $(if $(FIDELITY_TIMELINES),--timelines $(FIDELITY_TIMELINES)) -o docs

# NVIDIA's measured operators: 80 MB that few need, and so an environment of their own.
$(HARDWARE)/.installed: setup.cfg
	$(PYTHON) -m venv $(HARDWARE)
	$(HARDWARE)/bin/python -m pip install --quiet --disable-pip-version-check -e '.[hardware]' pytest hypothesis
	@touch $@

fidelity-hardware: $(HARDWARE)/.installed  ## Predict published serving points from NVIDIA's operators; write docs/fidelity-hardware.md (minutes)
	$(HARDWARE)/bin/batchsim fidelity-hardware $(ROOFLINE_DATA)/aiconfigurator/silicon_sample.csv.gz -o docs \
		--errors $(ERRORS) $(addprefix --peers ,$(wildcard $(PEERS_CSV)))

$(HARDWARE)-peers/.installed: setup.cfg
	$(PYTHON) -m venv $(HARDWARE)-peers
	$(HARDWARE)-peers/bin/python -m pip install --quiet --disable-pip-version-check -e '.[hardware]' aiconfigurator
	@touch $@

fidelity-peers: $(HARDWARE)-peers/.installed  ## Predict the same points by AIConfigurator itself; write docs/fidelity-peers.md (minutes)
	$(HARDWARE)-peers/bin/python tests/bench/fidelity_peers.py $(ROOFLINE_DATA)/aiconfigurator/silicon_sample.csv.gz \
		-o docs/fidelity-peers.md --csv $(PEERS_CSV)

test: $(VENV)/.installed-dev  ## Run all tests and checks of layering
	$(BIN)/python -m pytest -n $(JOBS) --dist worksteal
	$(BIN)/lint-imports
	@echo "Not run here: the tests of calibration/, which need torch (make test-calibration)."

# What stands nearest to the packages: their numbers, files and types, and a sweep.
OLDEST_TESTS := tests/metrics tests/results tests/workload/test_tables.py tests/workload/test_formats.py \
	tests/config tests/files tests/study/test_run.py tests/cli/test_fits.py \
	tests/cli/test_faults.py

# Packages of the versions that setup.cfg names, in an environment of their own; the project itself is not installed.
$(OLDEST)/.installed: setup.cfg .ci/oldest.py
	$(PYTHON) -m venv $(OLDEST)
	$(PYTHON) .ci/oldest.py > $(OLDEST)/requirements.txt
	$(OLDEST)/bin/python -m pip install --quiet --disable-pip-version-check -r $(OLDEST)/requirements.txt hypothesis pytest
	@touch $@

# Beside that every table is the same: spans and iterations, and what engines are known to do.
test-compiled: $(COMPILED)/.built  ## Run the tests of the engines with compiled ones
	BATCHSIM_COMPILED=$(COMPILED) PYTHONPATH=$(COMPILED) $(BIN)/python -m pytest -n $(JOBS) --dist worksteal \
		-p no:cacheprovider tests/test_compiled.py tests/invariants tests/iteration

test-oldest: $(OLDEST)/.installed  ## Run a part of the tests, and a small sweep, with the oldest packages allowed
	PYTHONPATH=src $(OLDEST)/bin/python -m pytest -p no:cacheprovider $(OLDEST_TESTS)
	PYTHONPATH=src $(OLDEST)/bin/python -m batchsim sweep experiments/controller_trajectory.toml \
		--output-dir build/oldest --overwrite
	PYTHONPATH=src $(OLDEST)/bin/python -m batchsim figures build/oldest

HARDWARE_TESTS := tests/latency/profiles/test_aiconfigurator.py tests/cli/test_hardware.py

test-hardware: $(HARDWARE)/.installed  ## Run the tests that need aiconfigurator-core
	$(HARDWARE)/bin/python -m pytest -p no:cacheprovider $(HARDWARE_TESTS)
	$(HARDWARE)/bin/python -m pytest -p no:cacheprovider tests/docs/test_pages.py -k 'shows and (README or aiconfigurator)'

FUZZ_EXAMPLES ?= 2000

fuzz: $(VENV)/.installed-dev  ## Damage files at random and read them, FUZZ_EXAMPLES of each kind (an hour)
	FUZZ_EXAMPLES=$(FUZZ_EXAMPLES) $(BIN)/python -m pytest -n $(JOBS) --dist worksteal tests/fuzz

test-calibration: $(CALIBRATION)/.installed lint-calibration  ## Run the tests of the measuring package, and check its types
	HF_HUB_OFFLINE=1 $(CALIBRATION)/bin/python -m pytest calibration

lint-calibration: $(CALIBRATION)/.installed  ## Types of the measuring package
	cd calibration && ../$(CALIBRATION)/bin/mypy

lint: $(VENV)/.installed-dev  ## Format check, lint, types, layering
	$(BIN)/ruff format --check
	$(BIN)/ruff check
	$(BIN)/mypy
	$(BIN)/lint-imports

VLLM_VERSIONS ?= 0.6.6.post1 0.19.1 0.32.0

conformance: $(VENV)/.installed-dev $(VLLM_VERSIONS:%=$(CONFORMANCE)/%/.packages)  ## Take the decisions of vLLM's own scheduler, to the last bit; write docs/conformance.md
	$(BIN)/python -m tests.conformance --environments $(CONFORMANCE) $(VLLM_VERSIONS:%=--version %) -o docs/conformance.md

TRIALS ?= 8

faults: $(VENV)/.installed  ## Let workers, sweeps, disks, policies and files fail, resume, compare; TRIALS=40 for a thorough look
	$(BIN)/python tests/faults/kill_sweeps.py --trials $(TRIALS)

$(COMPILED)/.built: setup.py setup.cfg $(shell find src/batchsim -type f -not -name '*.pyc') | $(VENV)/.installed-dev
	rm -rf $(COMPILED)
	BATCHSIM_COMPILE=1 $(BIN)/python setup.py --quiet build --build-base build/compiling --build-lib $(COMPILED)
	@touch $@

compiled: $(COMPILED)/.built  ## Compile the engines (mypyc, a C compiler): with PYTHONPATH=build/compiled, all runs take about half as long

bench: $(VENV)/.installed-dev  ## Speed, beside a bare heap loop or exact iterations in the same process; memory of a long run; what a sweep costs besides its runs
	$(BIN)/python tests/bench/run_to_completion.py
	$(BIN)/python tests/bench/iteration_level.py
	$(BIN)/python tests/bench/memory.py
	$(BIN)/python tests/bench/sweep_overhead.py --num-runs 1000

# A peer that cannot be installed is left out of the table, not an error; a later call tries again.
$(PEERS)/.installed: tests/bench/peers_requirements.txt
	$(PYTHON) -m venv $(PEERS)
	xargs -n 1 $(PEERS)/bin/python -m pip install --quiet --disable-pip-version-check < $< && touch $@ || true

bench-peers: $(VENV)/.installed-dev $(PEERS)/.installed  ## Speed, as it is and compiled, beside other serving simulators on the same trace
	-$(MAKE) --no-print-directory compiled
	$(BIN)/python tests/bench/peers.py --peers-python $(PEERS)/bin/python --compiled $(COMPILED)

clean:  ## Remove the environment, caches and results
	rm -rf $(VENV) $(OLDEST) $(PEERS) $(CALIBRATION) $(CONFORMANCE) $(HARDWARE) $(HARDWARE)-peers $(RESULTS) docs/_build build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis .import_linter_cache src/*.egg-info calibration/src/*.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
