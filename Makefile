# The targets, listed by `make` alone.
.DEFAULT_GOAL := help
.PHONY: help venv repro test lint params preset lock grids mini-world clean

PYTHON ?= python3
VENV := .venv
EXPERIMENT ?=
export PATH := $(CURDIR)/$(VENV)/bin:$(PATH)
export TRANSFORMERS_VERBOSITY ?= error
export PYTHONWARNINGS ?= ignore

help: ## List the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

$(VENV)/.installed: requirements.lock pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/pip install --quiet --disable-pip-version-check -r requirements.lock
	$(VENV)/bin/pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	touch $@

venv: $(VENV)/.installed ## Make .venv from requirements.lock

repro: venv ## Run the experiment that params.yaml describes, and print where the report is
	dvc repro
	@python -m stages.pipeline.summary data/report

test: venv ## Lint, types and tests
	ruff check .
	ruff format --check .
	pyright
	pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder

lint: venv ## Lint and types only
	ruff check .
	ruff format --check .
	pyright

params: venv ## Compose conf/ into params.yaml; EXPERIMENT=mini chooses a preset
	python -m stages.pipeline.compose $(if $(EXPERIMENT),experiment=$(EXPERIMENT))

preset: venv ## Begin a preset for checkpoints and images of your own: NAME=mine
	python -m stages.pipeline.preset $(NAME)

grids: venv ## What CI runs: fetch what is missing from the DVC remote, regenerate the comparison
	python -m stages.pipeline.grids $(GRIDS)

mini-world: venv ## Rebuild the small models of data/mini (hours on a CPU; says how long beforehand)
	python -m stages.mini.rebuild

lock: venv ## Write requirements.lock from what .venv holds
	{ head -n 2 requirements.lock; pip list --format=freeze --exclude-editable | grep -viE '^pip==' | sed 's/+cpu//' | LC_ALL=C sort -f; } > requirements.lock.new
	mv requirements.lock.new requirements.lock

clean: ## Remove the virtual environment and the outputs (DVC's cache stays)
	rm -rf $(VENV) .checkpoints
	find data -mindepth 1 -maxdepth 1 ! -name mini -exec rm -rf {} +
