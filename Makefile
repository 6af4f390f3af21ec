# Two commands matter to a newcomer: `make demo` and `make test`. Both make their own virtual environment first.

PYTHON ?= python3
VENV ?= .venv
# What `make bench` tells benchmarks/assistant.py, e.g. ASSISTANT_BENCH='--blind-model runs/assistant/blind/model --limit 200'
ASSISTANT_BENCH ?=
# Without a GPU on Linux, the CPU build of torch is 10 times smaller: make demo TORCH_INDEX=https://download.pytorch.org/whl/cpu
TORCH_INDEX ?=

BIN := $(VENV)/bin
STAMP := $(VENV)/.vistune-installed
TOOLS_STAMP := $(VENV)/.vistune-tools-installed

.PHONY: demo install test nightly check bench assistant clean

demo: $(STAMP)  ## install, fetch the backbones, answer about five pictures
	$(BIN)/vistune demo

install: $(TOOLS_STAMP)  ## vistune, and what testing and developing it takes

# torch goes first and alone, so that nothing that follows can swap its build.
$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) -c constraints.txt torch
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e .
	touch $@

$(TOOLS_STAMP): $(STAMP)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@

test: install  ## the per-commit tests (no GPU, no hub)
	$(BIN)/python -m pytest

nightly: install  ## the long tiers
	$(BIN)/python -m pytest -m nightly

check: install  ## format, lint, types
	$(BIN)/ruff format --check src tests benchmarks tools examples
	$(BIN)/ruff check src tests benchmarks tools examples
	$(BIN)/pyright

bench: install  ## timings and measured quality, into benchmarks/results
	$(BIN)/python benchmarks/startup.py
	$(BIN)/python benchmarks/first_token.py
	$(BIN)/python benchmarks/hostile_images.py
	$(BIN)/python benchmarks/filters.py
	$(BIN)/python benchmarks/data_engine.py
	$(BIN)/python benchmarks/ragged.py --threads 1 --dtype float32 --out benchmarks/results/ragged_float32.json
	$(BIN)/python benchmarks/ragged.py --threads 1 --dtype bfloat16 --out benchmarks/results/ragged_bfloat16.json
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt trl  # a peer of the next one
	$(BIN)/python benchmarks/train.py --budget-minutes 90
	$(BIN)/python benchmarks/serve.py
	$(BIN)/python benchmarks/decode.py
	$(BIN)/python benchmarks/low_bits.py
	$(BIN)/python benchmarks/assistant.py $(ASSISTANT_BENCH)

assistant: install  ## train the bundled assistant again, from its recipe (an hour to an hour and a half on two cores)
	$(BIN)/python tools/train_assistant.py

clean:
	rm -rf $(VENV) build dist src/*.egg-info
