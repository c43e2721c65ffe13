# make quickstart   set up, then pretrain a small MoE on this machine and look at the result
# make test         set up, then run every test
# make test-fast    what never starts MindSpore and is not slow: within a minute
# make check        lint, format, types and house rules
# make ci           check, then every layer of test that check has not run
# make format       rewrite the sources in the one format
# make bench        train steps side by side with Hugging Face in PyTorch, and layouts of 1, 2 and 4 ranks
# make equiv        every layout compared with one process (half an hour)
# make docs         rewrite the tables that are computed, and check every link and command
# make mutants      change the Ascend C kernels line by line and see which test notices (about an hour)
# make setup        only the environment in .venv
# make lock         resolve the tested set of packages anew
# make clean        remove .venv and the caches; runs/ and data/ stay

VENV   ?= .venv
RUN    := $(VENV)/bin/python -m
LAYERS := $(wildcard $(addprefix tests/,house dry golden kernels wet dist))

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: equiv help setup quickstart test test-fast check ci format bench docs mutants lock clean

help:
	@sed -n 's/^# make /  make /p' $(firstword $(MAKEFILE_LIST))

# A stamp is written last, so a set-up that was interrupted is taken up again; it is redone when its inputs change,
# and when the interpreter of the environment has gone.
$(shell $(VENV)/bin/python -c '' 2>/dev/null || rm -f $(VENV)/.core $(VENV)/.dev)

$(VENV)/.core: pyproject.toml requirements/lock-py311.txt scripts/setup.sh
	@scripts/setup.sh $(VENV) ''
	@touch $@

$(VENV)/.dev: pyproject.toml requirements/lock-py311.txt scripts/setup.sh
	@scripts/setup.sh $(VENV) '[dev,hf,parquet,s3,tiktoken,tune,zstd]'
	@touch $@

setup: $(VENV)/.core

quickstart: setup
	@scripts/quickstart.sh $(VENV)

# A layer at a time: the dry tests run where MindSpore was never imported. Those of dry, kernels and wet need one core
# each; those of dist start several processes, which wait for each other for half of their time; golden fills the machine.
SHARED := -n auto --dist worksteal
test: $(VENV)/.dev
	@failed=; for layer in $(LAYERS); do \
	    case $$layer in */golden|*/house) workers=;; */dist) workers="-n 2 --dist worksteal";; *) workers="$(SHARED)";; esac; \
	    echo "==== $$layer"; $(RUN) pytest $$workers $$layer || failed="$$failed $$layer"; \
	done; [ -z "$$failed" ] || { echo "failed:$$failed"; exit 1; }

test-fast: $(VENV)/.dev
	$(RUN) pytest $(SHARED) -m 'not slow' tests/house tests/dry

check: $(VENV)/.dev
	$(RUN) ruff check .
	$(RUN) ruff format --check .
	$(RUN) mypy
	$(RUN) pytest -q tests/house

ci: check
	$(MAKE) test LAYERS="$(filter-out tests/house,$(LAYERS))"

format: $(VENV)/.dev
	$(RUN) ruff check --fix .
	$(RUN) ruff format .

bench: $(VENV)/.dev
	$(VENV)/bin/python scripts/bench/run.py
	$(VENV)/bin/python scripts/bench/layouts.py

equiv: setup
	@scripts/equiv.sh $(VENV)

docs: $(VENV)/.dev
	$(RUN) mindmoe.plan.document docs/planner.md
	$(RUN) pytest -q tests/house/test_readme.py

mutants: $(VENV)/.dev
	$(MAKE) -C kernels mutants PYTHON=$(abspath $(VENV))/bin/python

lock:
	scripts/lock.sh

clean:
	rm -rf $(VENV) build *.egg-info .pytest_cache .ruff_cache .mypy_cache .hypothesis
	find mindmoe tests scripts -name __pycache__ -type d -prune -exec rm -rf {} +
