# Two commands for a newcomer: `make train` and `make test`. Each installs what it needs into .venv first.
PYTHON ?= python3
BIN := .venv/bin
RUN ?= runs/cpu-demo
DATA ?= data/default

.PHONY: train test lint docs install clean

train: $(DATA)/manifest.json
	$(BIN)/bytegolf train cpu-demo --data $(DATA) --out $(RUN) --resume

# a process a core; one that has run out of tests takes some from another, so that all are busy to the end
test: install
	$(BIN)/python -m pytest -n auto --maxprocesses 8 --dist worksteal

lint: install
	$(BIN)/ruff check src tests benchmarks examples
	$(BIN)/ruff format --check src tests benchmarks examples
	$(BIN)/mypy

# the site, in build/site; a warning is an error
docs: install
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

install: .venv/installed

# `requirements.lock` pins the versions, setuptools among them, so nothing is fetched to build with. Of 16,000 files some
# 3,000 are ever imported: Python compiles those when they are, rather than pip all of them. torch comes first and with
# its exact version, so that nothing pulls another build
.venv/installed: pyproject.toml requirements.lock
	@$(PYTHON) -c 'import sys; sys.exit("bytegolf needs Python 3.11 or newer: make PYTHON=python3.12 ...") if sys.version_info < (3, 11) else 0'
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile -r requirements.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	touch $@

$(DATA)/manifest.json: | install
	$(BIN)/bytegolf prepare --out $(DATA)

clean:
	rm -rf .venv data runs
