# make quickstart   make the environment, adapt the shipped backbone to hard synthetic speakers, print the table
# make test         the tests that are not marked slow (at most 20 minutes on 2 cores)
# make test-slow    the rest; installs PyTorch, transformers and PEFT, which some of them compare with
# make lint         ruff
#
# PYTHON is the interpreter the environment is made from, VENV where it is made, WORKDIR where the quickstart writes,
# WORKERS how many processes share the tests that are not slow.

PYTHON ?= python3
VENV ?= .venv
WORKDIR ?= runs/quickstart
WORKERS ?= 2

RUN := $(VENV)/bin/python
INSTALL := $(RUN) -m pip install --disable-pip-version-check

.PHONY: quickstart test test-slow lint format
.DELETE_ON_ERROR:

quickstart: $(VENV)/.installed
	$(RUN) -m hra_jax.train --config quickstart --workdir $(WORKDIR)
	@echo
	@echo 'Your own recordings, a folder of audio and .txt files for each speaker:'
	@echo '  $(RUN) -m hra_jax.data.manifest make FOLDER --split --output FOLDER'
	@echo '  $(RUN) -m hra_jax.train --config own --config.data.dir=FOLDER --workdir runs/own'

test: $(VENV)/.installed-dev
	$(RUN) -m pytest -m "not slow" --numprocesses=$(WORKERS) --dist=loadfile --durations=10

# pytest's status 5 says that no test is marked slow.
test-slow: $(VENV)/.installed-dev $(VENV)/.installed-parity
	$(RUN) -m pytest -m slow --durations=10 || test $$? -eq 5

lint: $(VENV)/.installed-dev
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .

format: $(VENV)/.installed-dev
	$(RUN) -m ruff check --fix .
	$(RUN) -m ruff format .

$(RUN):
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=...")'
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
