# Two commands for a newcomer: `make train` and `make test`. Both build .venv first, once.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

ENV := HalfCheetah-v5
N_TIMESTEPS := 10000
EVAL_FREQ := 2500
SEED := 0
LOGS := logs
WORKERS := 2

.PHONY: install train test lint clean

install: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { \
	  echo "This needs Python 3.10 or newer, but '$(PYTHON)' is $$($(PYTHON) --version 2>&1)." \
	       "Name another one: make PYTHON=python3.11 $(MAKECMDGOALS)"; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV) || { \
	  echo "Python's venv module is missing; on Debian and Ubuntu: apt install python3-venv"; exit 1; }
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

# One thread: these networks are too small to gain from more.
train: $(STAMP)
	$(BIN)/sb3-valuegrad train --algo dvpg --env $(ENV) -n $(N_TIMESTEPS) --eval-freq $(EVAL_FREQ) \
	  --num-threads 1 --device cpu --seed $(SEED) -f $(LOGS) --progress
	@$(BIN)/sb3-valuegrad report --algo dvpg --env $(ENV) -f $(LOGS) \
	  $(if $(filter HalfCheetah-v5,$(ENV)),$(addprefix --baseline ,$(wildcard benchmarks/results/halfcheetah.csv)))

test: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS)

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

clean:
	rm -rf $(VENV)
