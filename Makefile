# Every target creates the environment if needed, so any of them works as the first command in a fresh clone.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

VENV ?= .venv
PYTHON ?= $(shell command -v python3.11 || command -v python3)
READY := $(VENV)/.installed-from-pyproject

# Lets the recipes below use the commands that a user would type.
export PATH := $(abspath $(VENV))/bin:$(PATH)

# Keep compiled modules; otherwise each of the many processes that the tests start would recompile the package.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help demo demo-3d docs test test-slow test-gpu test-floors lint format bench dist clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-11s %s\n", $$1, $$2 }' Makefile

$(READY): pyproject.toml
	test -x $(VENV)/bin/python || $(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --editable '.[dev]'
	touch $@

demo: $(READY) ## pretrain, evaluate and export on 1,500 real chest films in a few minutes; writes to demo/
	medmoco demo --overwrite

demo-3d: $(READY) ## the same on CT volumes that it draws: check, pack, pretrain, evaluate, export; writes to demo-3d/
	medmoco demo --volumes --overwrite

# `worksteal` keeps the tests of a file together, so that their shared fixtures are created once.
test: lint ## linters, then all tests except the slow ones and those that need a GPU
	pytest -n 2 --dist worksteal

test-slow: $(READY) ## the slow tests
	pytest -m "slow and not gpu"

test-gpu: $(READY) ## the tests that need a GPU, and the benchmarks of the training step and of loading on it
	pytest -m gpu
	python -m benchmarks step loading

# In an environment of its own, which takes several gigabytes and stays until `make clean`. Old versions warn of what
# newer ones have deprecated; only here, warnings are not errors.
test-floors: $(READY) ## the tests with the oldest versions of the dependencies that pyproject.toml allows
	python -m venv --clear build/floors
	python -m tests.helpers.floors > build/floors.txt
	build/floors/bin/python -m pip install --constraint build/floors.txt --editable '.[dev]'
	cat build/floors.txt
	build/floors/bin/python -m pytest -n 2 --dist worksteal -W default

lint: $(READY) ## check style, types and the layers of the package
	ruff check
	ruff format --check
	mypy
	lint-imports

docs: $(READY) ## build the site, with executed notebooks, into site/; open site/index.html
	python -m docs.site.build

format: $(READY) ## format the code
	ruff check --fix
	ruff format

bench: $(READY) ## all benchmarks of speed and memory
	python -m benchmarks

dist: $(READY) ## build the source distribution and the wheel in dist/, and check their metadata and contents
	rm -rf dist
	python -m build
	twine check --strict dist/*
	pytest -m "" tests/test_packaging.py

clean: ## remove demo/, demo-3d/, builds and caches; the environment stays
	rm -rf demo demo-3d build dist site .hypothesis .import_linter_cache .mypy_cache .pytest_cache .ruff_cache
	find . -path ./.venv -prune -o -name __pycache__ -type d -print0 | xargs -0 rm -rf
