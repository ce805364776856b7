# Two commands do everything from a fresh clone: `make demo` and `make test`.

VENV ?= .venv
BIN = $(VENV)/bin
# The first interpreter that is new enough.
PYTHON ?= $(shell for p in python3 python3.12 python3.13 python3.11; do \
	$$p -c 'import sys, venv; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; \
	done)
PIP = $(BIN)/python -m pip --disable-pip-version-check install --quiet --constraint constraints.txt
# Installs what is given; pip says nothing for longer than people like to wait.
INSTALL = @echo "installing packages into $(VENV)"; \
	(while sleep 10; do echo "still installing packages"; done) & beat=$$!; \
	$(PIP) $(1); status=$$?; kill $$beat; exit $$status

# Memory in pages of 2 MiB: on a CPU a training step takes an eighth less (docs/performance.md).
export GLIBC_TUNABLES ?= glibc.malloc.hugetlb=1

PYTEST = $(BIN)/python -m pytest --dist worksteal
# The interpreter of the smoke tests: Python 3.12 or later, which has newer packages.
PYTHON_NEWEST ?= python3.13

.PHONY: help demo test test-more test-all smoke lint fix acceptance clean

help:
	@echo "make demo        train on synthetic frames, print test metrics, draw detections"
	@echo "make test        formatting, lint, types and most tests"
	@echo "make test-all    the same, and all other tests: SLURM, browsers, old OpenVINO, long cases"
	@echo "make smoke       a few tests of everything on Python 3.13 (PYTHON_NEWEST=python3.12 for another)"
	@echo "make fix         format the code and mend what the linter can"
	@echo "make acceptance  the long checks: real data, many kills, speed (needs the reference data; hours)"
	@echo "make clean       remove the virtual environment and the demo's run"

$(VENV)/.runtime: pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "error: no Python >= 3.11 found; set PYTHON=/path/to/python3"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(call INSTALL,--editable .)
	@touch $@

$(VENV)/.dev: $(VENV)/.runtime
	$(call INSTALL,--editable '.[dev]')
	@touch $@

demo: $(VENV)/.runtime
	$(BIN)/python -m yogo_jax.train --config configs/demo.py --workdir runs/demo
	@echo
	@echo "Report of the test, for a browser: runs/demo/test/report.html"
	@echo "Pictures of detections (true boxes dashed): runs/demo/test/pictures/"
	@echo "Next:"
	@echo "  your own data        $(BIN)/yogo-jax train --config strong --config.data.definition=FILE.yml --config.data.image_hw=240,320"
	@echo "  how to describe it   docs/data.md; look at it first: $(BIN)/yogo-jax inspect FILE.yml"
	@echo "  find and count cells $(BIN)/yogo-jax infer runs/demo --images '$${YOGO_JAX_CACHE:-$$HOME/.cache/yogo_jax}/synthetic-192x256-*/images/test/*.png' --output found --draw-boxes --count"
	@echo "                       (this network knows synthetic frames only; one of yours counts yours)"
	@echo "  another split        $(BIN)/yogo-jax evaluate runs/demo --split val --output runs/demo/val"

lint: $(VENV)/.dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

test: lint
	$(PYTEST) --numprocesses 3 -m "not slow and not acceptance and not optimized"

test-all: test
	$(MAKE) test-more

# All that `make test` leaves out.
test-more: $(VENV)/.dev
	$(PYTEST) --numprocesses 3 --durations 15 -m "slow and not acceptance and not optimized" \
		$$(grep -l mark.slow tests/test_*.py)
	$(PYTEST) --numprocesses 2 --durations 5 -m "optimized and not acceptance" \
		$$(grep -l mark.optimized tests/test_*.py)

# jax2onnx does not import the Orbax that it holds back: here is the newest, which everybody has who
# exports nothing.
.venv-newest/.smoke: VENV = .venv-newest
.venv-newest/.smoke: pyproject.toml constraints.txt
	$(PYTHON_NEWEST) -m venv $(VENV)
	$(call INSTALL,--editable '.[test]')
	$(call INSTALL,--upgrade --no-deps orbax-checkpoint prometheus_client)
	@touch $@

smoke: VENV = .venv-newest
smoke: .venv-newest/.smoke
	$(BIN)/python -m pytest --numprocesses 2 -m smoke $$(grep -l mark.smoke tests/test_*.py)

fix: $(VENV)/.dev
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

acceptance: $(VENV)/.dev
	$(BIN)/python -m pytest -m acceptance -s tests

clean:
	rm -rf $(VENV) .venv-newest .compilations runs/demo
