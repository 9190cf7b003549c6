# The targets, listed by `make` alone.
.DEFAULT_GOAL := help
.PHONY: help venv repro test test-gpu lint params preset lock grids publish why gc fsck mini-world study clean

PYTHON ?= python3
VENV := .venv
# Programs are named with their folder: macOS' make (3.81) does not look for them in the PATH that is exported here.
BIN := $(VENV)/bin
EXPERIMENT ?=
export PATH := $(CURDIR)/$(VENV)/bin:$(PATH)
export TRANSFORMERS_VERBOSITY ?= error
export PYTHONWARNINGS ?= ignore

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "%-13s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

$(VENV)/.installed: requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or later: make $(MAKECMDGOALS) PYTHON=python3.12")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -r requirements.lock
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	touch $@

venv: $(VENV)/.installed ## Make .venv from requirements.lock

repro: venv ## Run the experiment that params.yaml describes, and print where the report is; CLUSTER=local runs what can at once
	@$(BIN)/python -m stages.pipeline.lockfile
	$(if $(CLUSTER),$(BIN)/python -m stages.pipeline.distribute cluster=$(CLUSTER),$(BIN)/dvc --wait-for-lock repro)
	@$(BIN)/python -m stages.pipeline.run_record data/report
	@$(BIN)/python -m stages.pipeline.summary data/report

test: venv ## Lint, types and tests
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright
	$(BIN)/pytest --numprocesses 3 --dist loadfile --no-loadscope-reorder

test-gpu: venv ## The tests that need a CUDA GPU
	$(BIN)/pytest -m gpu

lint: venv ## Lint and types only
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

params: venv ## Compose conf/ into params.yaml; EXPERIMENT=mini chooses a preset
	$(BIN)/python -m stages.pipeline.compose $(if $(EXPERIMENT),experiment=$(EXPERIMENT))

preset: venv ## Begin a preset for checkpoints and images of your own: NAME=mine
	$(BIN)/python -m stages.pipeline.preset $(NAME)

grids: venv ## What CI runs: fetch what is missing from the DVC remote, regenerate the comparison
	$(BIN)/python -m stages.pipeline.ci.regenerate $(GRIDS)

publish: venv ## Put a LoRA with its model card and the grid on the Hugging Face hub: REPO=owner/name LORA=text2img-a0.7-r8-s0
	$(BIN)/python -m stages.pipeline.publish $(REPO) $(if $(LORA),--lora $(LORA))

mini-world: venv ## Rebuild the small models of data/mini (hours on a CPU; says how long beforehand)
	$(BIN)/python -m stages.mini.rebuild

study: venv ## Compare the ways of training: adapters, learning rates, seeds (hours; goes on where it was; HOURS=2 ends it then)
	$(BIN)/dvc --wait-for-lock repro embed@dataset merge encode_images encode_captions class_images
	$(BIN)/python benchmarks/study.py $(if $(HOURS),--hours $(HOURS))

lock: venv ## Write requirements.lock from what .venv holds
	{ head -n 2 requirements.lock; $(BIN)/pip list --format=freeze --exclude-editable | grep -viE '^pip==' | sed 's/+cpu//' | LC_ALL=C sort -f; } > requirements.lock.new
	mv requirements.lock.new requirements.lock

why: venv ## Why a stage would run again: STAGE=train_text2img@0.7-8-0
	@$(BIN)/python -m stages.pipeline.why $(STAGE)

gc: venv ## Make DVC's cache smaller, the least recently used that can be rebuilt first: LIMIT=20GB, and DRY=1 to only say so
	@$(BIN)/python -m stages.pipeline.gc --limit $(LIMIT) $(if $(DRY),--dry)

fsck: venv ## Remove what is damaged of DVC's cache and .checkpoints; the next run makes it anew
	@$(BIN)/python -m stages.pipeline.fsck

clean: ## Remove the virtual environment, .checkpoints and the outputs that dvc.lock lists (DVC's cache and all else stay)
	@[ ! -x $(BIN)/python ] || $(BIN)/python -m stages.pipeline.clean
	rm -rf $(VENV)
