# Each target works on a machine that has nothing but Python (3.10 to 3.13) and make:
# the first one to need it creates .venv and installs the project into it.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
# mypy does not see that passes/ is installed inside the package, so it is shown the package as installed.
TYPED := build/typed/skiplora_fx

.DEFAULT_GOAL := help
.PHONY: help train test test-all check format bench clean

help:
	@echo "make train      pre-train a small Llama, LoRA-tune it with and without skipping, compare (CPU, no network)"
	@echo "make test       the tests"
	@echo "make test-all   the tests and the slow sweeps"
	@echo "make check      ruff and mypy"
	@echo "make format     let ruff format and mend what it can"
	@echo "make bench      benchmarks/speed.py with its defaults"

$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[dev]"
	@touch $@

train: $(INSTALLED)
	$(BIN)/python examples/train.py

test: $(INSTALLED)
	$(BIN)/python -m pytest -n 2 --dist loadgroup -m "not slow"

test-all: $(INSTALLED)
	$(BIN)/python -m pytest -n 2 --dist loadgroup

check: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	mkdir -p $(TYPED)
	ln -sfn $(CURDIR)/skiplora_fx/* $(CURDIR)/passes $(TYPED)
	cd $(dir $(TYPED)) && $(CURDIR)/$(BIN)/mypy --config-file $(CURDIR)/pyproject.toml skiplora_fx

format: $(INSTALLED)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(INSTALLED)
	$(BIN)/python benchmarks/speed.py

clean:
	rm -rf $(VENV) build *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
