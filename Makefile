# What a developer or a user types. Nothing here is needed on a system without make: each recipe is one or two commands.
PYTHON ?= python3
VENV ?= .venv
PY := $(VENV)/$(if $(filter Windows_NT,$(OS)),Scripts/python,bin/python)
SETUP := $(PYTHON) scripts/setup.py --venv "$(VENV)"

.DEFAULT_GOAL := help
.PHONY: help setup quickstart test test-slow test-gpu bench docs check clean dev format lint types

help: ## this page
	@awk -F ':[^#]*## ' '/^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(firstword $(MAKEFILE_LIST))
	@echo '  Variables: PYTHON=python3.12 · VENV=folder · STEPS=500 (quickstart) · EXTRAS=eval,serve (setup) · ARGS="-k noise" (tests)'

setup: ## an environment in .venv with Unmask in it (EXTRAS=dev,eval,serve,… for more)
	@$(SETUP) --extras "$(EXTRAS)"

quickstart: ## pretrain, tune, merge and ask a small model, all from what Python brings along (STEPS=… pretrains less or more)
	@$(SETUP)
	@"$(PY)" -m unmask quickstart $(if $(STEPS),--steps $(STEPS)) $(ARGS)

test: dev ## the fast tests: no network, no GPU
	@"$(PY)" -m pytest -n auto -m "not slow and not gpu" $(ARGS)

test-slow: dev ## the slow tests
	@"$(PY)" -m pytest -m "slow and not gpu" $(ARGS)

test-gpu: dev ## the tests that need a GPU
	@"$(PY)" -m pytest -m gpu $(ARGS)

bench: dev ## speed and memory beside plain code, half an hour and more (ARGS="--shared FOLDER --parts pretrain data")
	@"$(PY)" benchmarks/run.py $(ARGS)

docs: ## the guide as a site, in build/docs/index.html
	@$(SETUP) --extras docs
	@"$(PY)" -m sphinx -W --keep-going -q -b html docs build/docs
	@echo "build/docs/index.html"

check: format lint types ## formatting, lint and types

dev:
	@$(SETUP) --extras dev

format: dev
	@"$(PY)" -m ruff format --check .

lint: dev
	@"$(PY)" -m ruff check .

types: dev
	@"$(PY)" -m mypy

clean: ## delete caches and build products; never .venv, output, models or data
	@rm -rf build dist src/*.egg-info .pytest_cache .ruff_cache .mypy_cache .hypothesis
	@find src tests scripts examples -name __pycache__ -type d -prune -exec rm -rf {} +
