# make eval: install everything, run the default evaluation.   make test: install everything, run the tests.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
ARGS ?=

.DEFAULT_GOAL := help
.PHONY: help install gl eval test lint format types results constraints clean

help:  ## this list
	@awk -F ':.*## ' '/^[a-z]+:.*## /{printf "%-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

install: gl $(STAMP)  ## virtual environment, pinned packages, GL libraries

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info[:2] not in ((3, 11), (3, 12)))' || { \
	  echo "error: Python 3.11 or 3.12 is needed, $(PYTHON) is $$($(PYTHON) --version); name one with PYTHON=python3.11" >&2; exit 1; }
	@echo "install: Python packages of constraints.txt into $(VENV) (3.6 GB with a CPU build of torch, more with CUDA)"
	@$(PYTHON) -c 'import ensurepip' 2>/dev/null || { \
	  [ "$$(id -u)" = 0 ] || { echo "error: Python's venv is missing; run as root: apt-get install python3-venv" >&2; exit 1; }; \
	  echo "install: Debian package python3-venv"; apt-get update -qq && apt-get install -y -qq --no-install-recommends python3-venv; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev,ray,joblib,slurm]"
	@touch $@

# MUJOCO_GL where set, else EGL where there is an NVIDIA device, OSMesa elsewhere; libgl1 and libglib2.0-0 are OpenCV's, which robosuite imports.
gl:
	@backend="$$MUJOCO_GL"; [ -n "$$backend" ] || { [ -e /dev/nvidiactl ] && backend=egl || backend=osmesa; }; \
	if [ "$$backend" = egl ]; then gl=libEGL.so debs=libegl1; else gl=libOSMesa.so debs=libosmesa6; fi; \
	debs="$$debs libgl1 libglib2.0-0"; missing=""; \
	for lib in $$gl libGL.so libgthread-2.0.so; do /sbin/ldconfig -p | grep -q "$$lib" || missing="$$missing $$lib"; done; \
	[ -n "$$missing" ] || exit 0; \
	if [ "$$(id -u)" != 0 ]; then echo "error: missing$$missing; run as root: apt-get install $$debs" >&2; exit 1; fi; \
	echo "install: Debian packages $$debs (OpenGL, missing$$missing)"; \
	apt-get update -qq && apt-get install -y -qq --no-install-recommends $$debs

eval: install  ## default evaluation; more with ARGS="suite=... policy=..."
	$(BIN)/python -m eval $(ARGS)

test: install  ## the test suite
	$(BIN)/python -m pytest $(ARGS)

lint: install  ## ruff, and the direction of imports
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports --no-cache

types: install  ## mypy
	$(BIN)/mypy

format: install  ## ruff, rewriting
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

results: install  ## README's results, their plots, comparisons and pages, from docs/results/data
	$(BIN)/python -m tools.results

constraints: install  ## write what is installed to constraints.txt
	$(BIN)/pip freeze --exclude-editable | sed 's/+cpu$$//' > constraints.txt

clean:  ## remove the virtual environment and what it left
	rm -rf $(VENV) *.egg-info build
