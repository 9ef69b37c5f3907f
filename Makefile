# Each target works on a machine that has nothing but Python (3.10 to 3.13) and make:
# the first one to need it creates .venv and installs the project into it.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
# mypy does not see that passes/ is installed inside the package, so it is shown the package as installed.
TYPED := build/typed/skiplora_fx

.DEFAULT_GOAL := help
.PHONY: help train test test-all test-browser test-torch test-gpu fuzz audit check format bench bench-gpu clean

help:
	@echo "make train         pre-train a small Llama, LoRA-tune it with and without skipping, compare (CPU, no network)"
	@echo "make test          the tests"
	@echo "make test-all      the tests and the slow sweeps"
	@echo "make test-browser  the page of skiplora diff in Chromium, which is installed if it is not there (Debian, Ubuntu)"
	@echo "make test-torch    the tests with another torch, in an environment of its own: make test-torch VERSION=2.14.1"
	@echo "make fuzz          random models against the eager oracle: make fuzz SEED=1 CASES=200"
	@echo "make audit         known vulnerabilities of what is installed (pip-audit)"
	@echo "make check         ruff and mypy"
	@echo "make format        let ruff format and mend what it can"
	@echo "make bench         benchmarks/speed.py with its defaults"
	@echo "make test-gpu      the tests that need an NVIDIA GPU"
	@echo "make bench-gpu     speed, memory and compile time of the Llama-2-7B shape on an NVIDIA GPU"

$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[dev]"
	@touch $@

train: $(INSTALLED)
	$(BIN)/python examples/train.py

test: $(INSTALLED)
	$(BIN)/python -m pytest -n 2 --dist loadgroup -m "not slow and not browser"

test-all: $(INSTALLED)
	$(BIN)/python -m pytest -n 2 --dist loadgroup -m "not browser"

test-browser: $(INSTALLED)
	sh tests/browser/install_chromium.sh
	$(BIN)/python -m pytest -m browser

# Whatever else is pinned stays so.
test-torch:
	@test -n "$(VERSION)" || { echo "make test-torch needs a version: make test-torch VERSION=2.14.1" >&2; exit 2; }
	$(PYTHON) -m venv build/torch-$(VERSION)
	grep -v "^torch==" constraints.txt > build/torch-$(VERSION)/constraints.txt
	build/torch-$(VERSION)/bin/python -m pip install --quiet "torch==$(VERSION)"
	build/torch-$(VERSION)/bin/python -m pip install --quiet "torch==$(VERSION)" \
		--constraint build/torch-$(VERSION)/constraints.txt --editable ".[dev]"
	build/torch-$(VERSION)/bin/python -m pytest -n 2 --dist loadgroup -m "not slow and not browser"

audit: $(INSTALLED)
	$(PYTHON) -m venv build/audit
	build/audit/bin/python -m pip install --quiet pip-audit
	build/audit/bin/pip-audit --path $$($(BIN)/python -c "import sysconfig; print(sysconfig.get_path('purelib'))") --skip-editable

fuzz: SEED = 0
fuzz: CASES = 200
fuzz: $(INSTALLED)
	FUZZ_CASES=$(CASES) $(BIN)/python -m pytest tests/fuzz --hypothesis-profile fuzz --hypothesis-seed $(SEED) \
		--hypothesis-show-statistics

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

test-gpu: $(INSTALLED)
	$(BIN)/python -m pytest -m gpu

bench-gpu: $(INSTALLED)
	sh benchmarks/gpu.sh $(BIN)/python benchmarks/results/gpu

clean:
	rm -rf $(VENV) build *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
