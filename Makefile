# `make demo` and `make test` make their own environment in .venv; nothing else on the machine is touched.
PYTHON ?= python3
VENV ?= .venv
RUN := $(VENV)/bin/python

.PHONY: demo test bench notebooks lint format

$(VENV)/installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --quiet --upgrade pip
	$(RUN) -m pip install --quiet --editable '.[dev]'
	touch $@

demo: $(VENV)/installed
	$(RUN) -m liveavatar.infer +strategy=fsdp_stream output.dir=outputs/demo

test: $(VENV)/installed
	$(RUN) -m pytest -m 'not slow' -n auto --maxprocesses 4 --dist loadfile

bench: $(VENV)/installed
	$(RUN) -m liveavatar.bench suite=cpu short=true

notebooks: $(VENV)/installed
	$(RUN) -m pytest -p no:cacheprovider --nbmake --nbmake-timeout=120 notebooks

lint: $(VENV)/installed
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(RUN) -m pyright --pythonpath $(RUN)
	$(VENV)/bin/lint-imports

format: $(VENV)/installed
	$(RUN) -m ruff check --fix .
	$(RUN) -m ruff format .
