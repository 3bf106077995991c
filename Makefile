# `make repro` and `make test` are all a newcomer needs; both make the environment first if it is not there.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PEERS := .venv-peers
# More options of benchmarks/extract.py, such as BENCH='--rounds 1 --models mobilenet_v2'.
BENCH ?=
# DVC starts `python`: it must be the environment's. Pillow and others print in UTF-8.
export PATH := $(CURDIR)/$(BIN):$(PATH)
export PYTHONUTF8 := 1

.DEFAULT_GOAL := help
.PHONY: help install repro test lint format docs lock bench bench-peers clean

help:  ## say what there is
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 13

repro: $(VENV)/.installed .dvc/config.local  ## run the pipeline, print the leaderboard and where the report lies
	@icecore repro

test: $(VENV)/.installed  ## run the whole test suite
	@# Processes keep the cores busy: more threads would only wait. Many processes are started, which read the bytecode of the first.
	@OMP_NUM_THREADS=1 PYTHONDONTWRITEBYTECODE= python -m pytest -n auto --dist loadfile --no-loadscope-reorder

lint: $(VENV)/.installed  ## check format, lint and types
	@ruff format --check .
	@ruff check .
	@mypy

format: $(VENV)/.installed  ## format and mend what can be mended
	@ruff format .
	@ruff check --fix .

docs: $(VENV)/.installed  ## build the site below docs/_build/html; a warning is an error
	@python -m sphinx -W --keep-going -q -b html docs docs/_build/html
	@echo docs/_build/html/index.html

install: $(VENV)/.installed  ## make the environment only

lock: $(VENV)/.installed  ## choose versions anew, within the ranges of pyproject.toml
	@uv pip compile pyproject.toml --extra all --extra dev --universal --python-version 3.11 --upgrade --no-header --no-annotate \
	  --quiet --output-file requirements.lock
	@! grep -nE '://|^--' requirements.lock

bench: $(VENV)/.installed  ## run all benchmarks that need no GPU, each with few repetitions
	@python benchmarks/threads.py
	@python benchmarks/waiting.py
	@python benchmarks/intervals.py
	@python benchmarks/store.py --rows 50000 --maps 320 --keys 1000000
	@python benchmarks/crash.py --kills 20
	@python benchmarks/engines.py --rounds 2
	@python benchmarks/extract.py $(BENCH)
	@python benchmarks/heads.py
	@python benchmarks/finetune.py --models mobilenet_v2
	@python benchmarks/distill.py epoch curves

# thingsvision pins a torch of its own, so it has an environment of its own; tried with Python 3.11.
bench-peers: $(VENV)/.installed $(PEERS)/.installed  ## compare extraction with thingsvision, which it installs apart
	@python benchmarks/extract.py --peers $(PEERS)/bin/python --rerun 0 $(BENCH)

# What stages write, below data/: of data/raw only what `sample` writes, and never a file that no stage made.
MADE := settings manifests pretrained backbones features digests tasks audits models model_digests teachers predictions curves \
        metrics plots comparisons report $(addprefix raw/,digits glyphs)

clean:  ## remove what was generated: the environment, what stages wrote to data/, caches of tools. Your own files stay
	@rm -rf $(VENV) $(PEERS) .dvc/cache .dvc/tmp .dvc/config.local .mypy_cache .pytest_cache .ruff_cache .hypothesis docs/_build docs/settings.md
	@for folder in $(MADE); do \
	  [ ! -d data/$$folder ] || find data/$$folder -mindepth 1 ! -name .gitignore ! -name '*.dvc' -type f -delete; done
	@find data/code -type l -delete
	@find data -mindepth 1 -type d -empty -delete
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +
	@find data -type f ! -name .gitignore ! -name '*.dvc' | sed 's/^/kept: /'

$(VENV)/.installed: requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "icecore needs Python 3.11 or newer: make PYTHON=python3.12 ...")'
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "installing the locked dependencies into $(VENV); the first time this takes some minutes"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.lock
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	@touch $@

$(PEERS)/.installed:
	@test -x $(PEERS)/bin/python || $(PYTHON) -m venv $(PEERS)
	@echo "installing thingsvision 2.7.3 into $(PEERS); it takes some minutes and gigabytes"
	@$(PEERS)/bin/python -m pip install --quiet --disable-pip-version-check thingsvision==2.7.3
	@touch $@

# Once in each clone. What runs here changes dvc.lock, whose digests are those of this machine: git keeps the empty one that
# it has, until `git update-index --no-skip-worktree dvc.lock`. DVC refuses a dvc.lock that git ignores. A source archive
# has no .git, and DVC is not to look for one.
.dvc/config.local:
	@if git ls-files --error-unmatch dvc.lock >/dev/null 2>&1; then git update-index --skip-worktree dvc.lock; fi
	@git -C . rev-parse >/dev/null 2>&1 && : > $@ || printf '[core]\n    no_scm = true\n' > $@
