# Every target sets up what it needs: a virtual environment, the pinned requirements and this package.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test check parity bench docs clean

demo: .venv/core ## generated scenes -> pre-trained UNITER -> runs/demo/report.html
	$(BIN)/intarsia pretrain uniter --size tiny --data worlds:6000 --valid worlds:300:1 --out runs/demo
	$(BIN)/intarsia evaluate uniter --weights runs/demo --data worlds --report runs/demo/report.html

test: .venv/dev check ## style, types, imports, tests
	$(BIN)/python -m pytest

check: .venv/dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

parity: .venv/dev ## the page of differences from the authors' code, written by the tests
	INTARSIA_WRITE_PARITY=1 $(BIN)/python -m pytest tests/golden

bench: .venv/bench ## speed against peers, on this machine
	$(BIN)/python benchmarks/step.py
	$(BIN)/python benchmarks/data.py
	$(BIN)/python benchmarks/lxmert.py
	$(BIN)/python benchmarks/search.py

docs: .venv/docs ## the site, in site/
	$(BIN)/mkdocs build --strict

clean:
	rm -rf .venv site runs

.venv/bin/python:
	$(PYTHON) -m venv .venv

.venv/core: .venv/bin/python pyproject.toml constraints.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable .
	touch $@

.venv/%: .venv/bin/python pyproject.toml constraints.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable ".[$*]"
	touch .venv/core $@
