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

.PHONY: help demo test test-slow test-gpu lint format bench clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-10s %s\n", $$1, $$2 }' Makefile

$(READY): pyproject.toml
	test -x $(VENV)/bin/python || $(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --editable '.[dev]'
	touch $@

demo: $(READY) ## run the whole pipeline on synthetic phantoms in a few minutes; writes to demo/
	rm -rf demo
	medmoco phantom --out demo/data --patients 160
	medmoco pretrain --config configs/demo.yaml
	medmoco evaluate --config configs/demo.yaml --encoder demo/run --out demo/run/evaluation --test
	medmoco curve --config configs/demo.yaml --encoder demo/run --out demo/run/curve --draws 3
	medmoco export --run demo/run --out demo/export
	medmoco verify demo/export
	medmoco report demo/run --card demo/export/MODEL_CARD.md
	@echo
	@echo "The demo is complete. It shows that all parts work, not how well: the images are synthetic, and an encoder"
	@echo "pretrained on about two hundred of them for a minute may not beat its baselines."
	@echo "  demo/data              phantoms as DICOM and PNG, and their manifest"
	@echo "  demo/run               settings, metrics.jsonl, TensorBoard, checkpoints"
	@echo "  demo/run/evaluation    AUROC with intervals, next to an untrained encoder and raw pixels"
	@echo "  demo/run/curve         label efficiency: 1 to 100 % of the patients labelled"
	@echo "  demo/run/report.html   report; open it in a browser"
	@echo "  demo/export            the encoder, its preprocessing, and the verification results"

# `worksteal` keeps the tests of a file together, so that their shared fixtures are created once.
test: lint ## linters, then all tests except the slow ones and those that need a GPU
	pytest -n 2 --dist worksteal

test-slow: $(READY) ## the slow tests
	pytest -m "slow and not gpu"

test-gpu: $(READY) ## the tests that need a GPU
	pytest -m gpu

lint: $(READY) ## check style, types and the layers of the package
	ruff check
	ruff format --check
	mypy
	lint-imports

format: $(READY) ## format the code
	ruff check --fix
	ruff format

bench: $(READY) ## benchmark views, training steps, JPEG and a million rows, in about ten minutes
	python -m benchmarks

clean: ## remove demo/, builds and caches; the environment stays
	rm -rf demo build dist .hypothesis .import_linter_cache .mypy_cache .pytest_cache .ruff_cache
	find . -path ./.venv -prune -o -name __pycache__ -type d -print0 | xargs -0 rm -rf
