# SPDX-License-Identifier: Apache-2.0
#
# Needs make and a Python of at least 3.11; the rest goes into $(VENV).
#   make test                        everything a change must pass
#   make test PYTHON=python3.12 VENV=.venv312

VENV ?= .venv
PYTHON ?=
PYTHONS := $(if $(PYTHON),$(PYTHON),python3.13 python3.12 python3.11 python3)
BIN := $(VENV)/bin
PY := $(BIN)/python
STAMP := $(VENV)/.installed
DOCS_STAMP := $(VENV)/.docs-installed
PYTEST_ARGS ?= -n 2 --dist worksteal

# Which versions of the dependencies: pip takes the newest; RESOLUTION=lowest-direct
# takes the lower bounds of pyproject.toml, which pip cannot do and uv can.
RESOLUTION ?=
PIP_INSTALL := "$(PY)" -m pip install -qq --disable-pip-version-check
UV_INSTALL := "$(PY)" -m uv pip install -q --python "$(PY)" --upgrade --resolution
INSTALL := $(if $(RESOLUTION),$(PIP_INSTALL) uv; $(UV_INSTALL) $(RESOLUTION),$(PIP_INSTALL))

.DEFAULT_GOAL := help
.PHONY: help venv lint test test-all oldest demo examples figures bench docs clean

help:
	@echo "make venv       create $(VENV) and install the package for development"
	@echo "make test       linters, types, architecture, fast tests"
	@echo "make test-all   the same with the slow tests"
	@echo "make oldest     make test with the oldest versions allowed, in .venv-oldest"
	@echo "make demo       run examples/demo.py"
	@echo "make examples   run every script in examples/"
	@echo "make figures    run the examples that draw, and renew docs/figures/"
	@echo "make bench      run the benchmarks"
	@echo "make docs       build the documentation in docs/_build/html"
	@echo "make clean      remove caches and builds, and environments made here"
	@echo "PYTHON=... chooses the interpreter for a new environment, VENV=... its folder."

venv: $(STAMP)

# A candidate must run (a version manager's stub may not), be new enough, and be
# able to make an environment with pip in it.
$(STAMP): pyproject.toml
	@set -e; \
	new="import sys; sys.exit(sys.version_info < (3, 11))"; \
	if ! { [ -x "$(PY)" ] && "$(PY)" -m pip --version; } >/dev/null 2>&1; then \
	  python=; bare=; \
	  for candidate in $(PYTHONS); do \
	    "$$candidate" -c "$$new" >/dev/null 2>&1 || continue; \
	    if "$$candidate" -c "import ensurepip, venv" >/dev/null 2>&1; then \
	      python=$$candidate; break; \
	    fi; \
	    bare="$$bare $$candidate"; \
	  done; \
	  if [ -z "$$python" ] && [ -n "$$bare" ]; then \
	    echo "Error: found$$bare, without the modules venv and ensurepip." >&2; \
	    echo "Install them (Debian and Ubuntu: the package python3-venv)," \
	      "or name another Python: make venv PYTHON=/path/to/python" >&2; \
	    exit 1; \
	  elif [ -z "$$python" ]; then \
	    echo "Error: no Python of at least 3.11 among: $(PYTHONS)." >&2; \
	    echo "Name one: make venv PYTHON=/path/to/python" >&2; \
	    exit 1; \
	  fi; \
	  echo "Creating $(VENV) with $$python ($$("$$python" --version))"; \
	  "$$python" -m venv --clear "$(VENV)"; \
	fi; \
	echo "Installing numpyro_infograd and its tools into $(VENV) (minutes, once)"; \
	$(INSTALL) -e ".[dev]"; \
	touch "$@"

lint: $(STAMP)
	@echo "ruff check";   $(PY) -m ruff check .
	@echo "ruff format";  $(PY) -m ruff format --check .
	@echo "mypy";         $(PY) -m mypy
	@echo "lint-imports"; $(BIN)/lint-imports

test: lint
	$(PY) -m pytest $(PYTEST_ARGS)

test-all: lint
	$(PY) -m pytest $(PYTEST_ARGS) -m "slow or not slow"

oldest:
	@$(MAKE) test VENV=.venv-oldest RESOLUTION=lowest-direct \
	  PYTHONS="$(or $(PYTHON),python3.11 python3.12 python3.13 python3)"

demo: $(STAMP)
	$(PY) examples/demo.py

examples: $(STAMP)
	@set -e; for script in examples/*.py; do echo "$$script"; $(PY) "$$script"; done

figures: $(STAMP)
	@set -e; for script in $$(grep -l savefig examples/*.py); do \
	  echo "$$script"; $(PY) "$$script"; done
	$(PY) docs/reduce_figures.py

bench: $(STAMP)
	$(PY) benchmarks/run.py
	$(PY) benchmarks/estimators.py
	$(PY) benchmarks/scores.py
	$(PY) benchmarks/gradient_free.py
	$(PY) benchmarks/design.py
	$(PY) benchmarks/peers.py --budgets 10 30

$(DOCS_STAMP): $(STAMP)
	@echo "Installing what builds the documentation into $(VENV)"
	@$(INSTALL) -e ".[dev,docs]"
	@touch "$@"

docs: $(DOCS_STAMP)
	$(PY) -m sphinx -W --keep-going -q -b html docs docs/_build/html
	@echo "docs/_build/html/index.html"

# Removes an environment only where this Makefile has made it.
clean:
	@for venv in "$(VENV)" .venv-oldest; do \
	  if [ -e "$$venv/.installed" ]; then rm -rf "$$venv"; fi; \
	done
	@rm -rf build dist *.egg-info docs/_build .mypy_cache .pytest_cache \
	  .ruff_cache .import_linter_cache .jax_cache
	@find numpyro_infograd tests benchmarks examples docs -name __pycache__ \
	  -type d -prune -exec rm -rf {} + 2>/dev/null || true
