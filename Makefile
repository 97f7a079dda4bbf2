# `make demo` and `make test` set themselves up in .venv; `PYTHON=python3.12 make demo` picks the interpreter.
PYTHON ?= python3
VENV := .venv
PY := $(VENV)/bin/python
DONE := $(VENV)/.installed

.PHONY: demo test test-all lint docs bench methods-table install clean

demo: install
	$(PY) bin/demo.py

test: lint docs
	OMP_NUM_THREADS=1 $(PY) -m pytest -n 2 -m "not slow"

test-all: lint docs
	$(PY) -m pytest

lint: install
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy

# Tables against a named peer; minutes each, on an otherwise idle machine. docs/speed.md explains them.
bench: install
	$(PY) benchmarks/input.py
	$(PY) benchmarks/trainor.py
	$(PY) benchmarks/startup.py
	$(PY) benchmarks/audit.py
	$(PY) benchmarks/near_duplicates.py
	$(PY) benchmarks/methods.py
	$(PY) benchmarks/curves.py
	$(PY) benchmarks/memory.py
	$(PY) benchmarks/local_alignment.py
	$(PY) benchmarks/dalle.py

# Every method on three data sets, three seeds; about an hour on two idle cores, goes on where it was interrupted.
methods-table: install
	$(PY) data/download.py phantom,elpv,mnist
	$(PY) benchmarks/methods_table.py

# Every warning is an error: broken links and anchors, pages in no menu, unreadable blocks.
docs: install
	$(PY) -m sphinx -q -n -W --keep-going -b html -d build/doctrees docs site

# dalle-pytorch and lightly are peers of tests and benchmarks; what is used of them needs none of their dependencies.
install: $(DONE)

$(DONE): setup.cfg pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Python 3.11 or newer is needed; write for example PYTHON=python3.12 make demo" >&2; exit 2; }
	$(PYTHON) -m venv $(VENV)
	$(PY) -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	$(PY) -m pip install --quiet --disable-pip-version-check -c constraints.txt --no-deps dalle-pytorch lightly
	@touch $(DONE)

clean:
	rm -rf $(VENV) build site *.egg-info .pytest_cache .ruff_cache .mypy_cache
