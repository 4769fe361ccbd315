# Everything a newcomer needs: `make demo`, `make test`.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/pip install --quiet --disable-pip-version-check

.PHONY: demo test test-all bench peers soak gpu check format clean

$(BIN)/tithe: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -c "import torch" 2>/dev/null || $(PIP) torch==2.13.0
	$(PIP) --editable .
	touch $@

$(VENV)/.test: $(BIN)/tithe
	$(PIP) --editable ".[test]"
# lmms_eval: its own dependencies hold a torchvision that would replace the CPU build of torch; tenacity and loguru are all it needs.
	$(PIP) --no-deps lmms_eval==0.7.3
	touch $@

demo: $(BIN)/tithe
	$(BIN)/tithe demo

test: $(VENV)/.test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest -n 2 -m "not slow"

test-all: $(VENV)/.test
	$(BIN)/python -m pytest -n 2

bench: $(BIN)/tithe
	$(BIN)/python -m benchmarks

peers: $(BIN)/tithe
	$(BIN)/python -m benchmarks.peers --write

soak: $(BIN)/tithe
	$(BIN)/python benchmarks/soak.py --minutes 60

gpu: $(VENV)/.test
	$(BIN)/python -m benchmarks.gpu

check: $(VENV)/.test
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/mypy

clean:
	rm -rf $(VENV) build dist .pytest_cache .ruff_cache tithe-report.html
