# make quickstart   make the environment, adapt the shipped backbone to hard synthetic speakers, print the table
# make test         the tests that are not marked slow (at most 8 minutes on 2 cores)
# make test-slow    the rest (at most 45 minutes); installs PyTorch, transformers, PEFT and kenlm, which some compare
#                   with
# make test-oldest  the oldest versions that must work: the fast tests where Colab's packages are installed, two steps
#                   of training where those of its TPU machines are
# make lint         ruff and mypy
# make format       what ruff can put right by itself
#
# PYTHON is the interpreter the environment is made from, VENV where it is made, WORKDIR where the quickstart writes,
# WORKERS how many processes share the tests, PYTHON312 the interpreter of `make test-oldest`.

PYTHON ?= python3
PYTHON312 ?= python3.12
VENV ?= .venv
WORKDIR ?= runs/quickstart
WORKERS ?= 2

RUN := $(VENV)/bin/python
INSTALL := $(RUN) -m pip install --disable-pip-version-check
SHARED := --numprocesses=$(WORKERS) --dist=loadfile --durations=10
FAST_TESTS := -m pytest -m "not slow" $(SHARED)
ENVIRONMENTS := tests/environments

.PHONY: quickstart test test-slow test-oldest lint format
.DELETE_ON_ERROR:

quickstart: $(VENV)/.installed
	$(RUN) -m hra_jax.train --config quickstart --workdir $(WORKDIR)
	@echo
	@echo 'Your own recordings, a folder of audio and .txt files for each speaker:'
	@echo '  $(RUN) -m hra_jax.data.manifest make FOLDER --split --output FOLDER'
	@echo '  $(RUN) -m hra_jax.train --config own --config.data.dir=FOLDER --workdir runs/own'

test: $(VENV)/.installed-dev
	$(RUN) $(FAST_TESTS)

# In the order of tests/conftest.py, longest last. pytest's status 5 says that no test is marked slow.
test-slow: $(VENV)/.installed-dev $(VENV)/.installed-parity $(VENV)/.installed-kenlm
	$(RUN) -m pytest -m slow $(SHARED) --no-loadscope-reorder || test $$? -eq 5

test-oldest: .venv-colab/.installed .venv-colab-tpu/.installed
	.venv-colab/bin/python $(ENVIRONMENTS)/check_pins.py $(ENVIRONMENTS)/colab.txt
	.venv-colab-tpu/bin/python $(ENVIRONMENTS)/check_pins.py $(ENVIRONMENTS)/colab-tpu.txt
	# Batches of 96 seconds, in which every speaker occurs: an adapter that did not learn is an error.
	folder=$$(mktemp -d) && trap 'rm -rf "$$folder"' EXIT && .venv-colab-tpu/bin/python -m hra_jax.train \
	  --config quickstart --config.steps=2 --config.batch.seconds=96 --config.data.dir="$$folder/data" \
	  --workdir "$$folder/run"
	.venv-colab/bin/python $(FAST_TESTS)

lint: $(VENV)/.installed-dev
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(RUN) -m mypy

format: $(VENV)/.installed-dev
	$(RUN) -m ruff check --fix .
	$(RUN) -m ruff format .

# Old Pythons run this line too, so it is written for all of them.
$(RUN):
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(not (3, 11) <= v < (3, 14) and "hra_jax needs Python 3.11, 3.12 or 3.13 (tensorflow-text has no release for 3.14), and $(PYTHON) is %d.%d: make PYTHON=python3.13" % v)'
	$(PYTHON) -m venv $(VENV)

# One stamp for each set of extras: nothing is installed again until setup.py changes.
$(VENV)/.installed: setup.py | $(RUN)
	$(INSTALL) -e .
	touch $@

$(VENV)/.installed-dev: setup.py | $(RUN)
	$(INSTALL) -e '.[dev,notebooks]'
	# The TPU compiler, for tests that compile for TPUs. In a folder of its own: JAX would look for a TPU if it were
	# installed. It exists for Linux only; elsewhere those tests are skipped, by name.
	-$(INSTALL) --quiet --no-deps --upgrade --target $(VENV)/libtpu libtpu
	touch $(VENV)/.installed $@

# Where this fails the tests that need it are skipped, by name, and the next `make test-slow` tries again.
$(VENV)/.installed-parity: setup.py | $(VENV)/.installed-dev
	-$(INSTALL) -e '.[parity]' && touch $@

# As above. It is published as its source alone: this takes a C++ compiler, and a minute or two.
$(VENV)/.installed-kenlm: setup.py | $(VENV)/.installed-dev
	-$(INSTALL) -e '.[kenlm]' && touch $@

# What Colab brings first, then hra_jax without these as constraints: pip must leave them alone by itself. The
# environment is made anew when either file changes, because what an earlier hra_jax brought would still be there.
.venv-%/.installed: $(ENVIRONMENTS)/%.txt setup.py
	rm -rf .venv-$*
	$(PYTHON312) -m venv .venv-$*
	.venv-$*/bin/python -m pip install --disable-pip-version-check -r $<
	.venv-$*/bin/python -m pip install --disable-pip-version-check -e '.[dev,notebooks]'
	touch $@
