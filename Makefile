# Everything starts here: `make demo` and `make test` need nothing but Python 3.11-3.13 on a fresh machine.

PYTHON ?= python3
VENV ?= .venv
EXTRAS ?= test,bench
JOBS ?= 2

BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
QUANT := $(VENV)/.installed-quant
# one thread per test process: JOBS processes already fill the cores
ONE_THREAD := OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 TORCHINDUCTOR_COMPILE_THREADS=1
PYTEST = $(ONE_THREAD) PYTHONHASHSEED=0 $(BIN)/pytest -n $(JOBS) --dist worksteal

.PHONY: demo test test-all lint format install clean
.DEFAULT_GOAL := test

demo: $(STAMP)
	$(BIN)/python -m benchmarks.demo

test: lint $(QUANT)
	$(PYTEST) -m "not slow"

# with what is marked slow: hours on two cores
test-all: lint $(QUANT)
	$(PYTEST)

lint: $(STAMP)
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

format: $(STAMP)
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

install: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt -e ".[$(EXTRAS)]"
	touch $@

# apart from the rest: where torchao is installed, whatever imports diffusers says what of it does not load
$(QUANT): $(STAMP)
	$(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt -e ".[quant]"
	touch $@

clean:
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis demo.png decisions.png
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
