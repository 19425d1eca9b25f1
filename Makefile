# Every target does its own set-up: on a fresh clone `make demo` or `make test` is all there is to type.
#   make demo [DATA=ml-100k|FOLDER] [USERS=300]    make test [ARGS=...] [WORKERS=2]    make lint    make bench    make venv    make clean
# RECSYS_DATA (a folder of dataset folders, for the tests on real data) and every other RECSYS_* variable pass through.

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

BIN := .venv/bin
STAMP := .venv/installed
DATA ?= ml-100k
USERS ?= 300
OUT ?= out/demo
SPEC ?= pipelines/specs/demo.toml
ARGS ?=
# Processes that test side by side (0: none beside this one).
# Without what limits compute threads, which `nproc` heeds.
WORKERS ?= $(shell env -u OMP_NUM_THREADS -u OMP_THREAD_LIMIT nproc 2>/dev/null || echo 2)

.PHONY: help venv weights demo test lint bench clean

help:
	@echo 'make demo [DATA=ml-100k|FOLDER] [USERS=300]   the whole line on real data, with a report in $(OUT)'
	@echo 'make test [ARGS=...] [WORKERS=2]              the tests (ARGS go to pytest), in as many processes as there are cores'
	@echo 'make lint                                     ruff, mypy --strict, the import contract'
	@echo 'make bench                                    the benchmarks'
	@echo 'make venv                                     only the set-up: .venv, packages, default LM weights'
	@echo 'make clean                                    remove outputs and tool caches (not .venv, not the weights)'

venv: weights

# The first of these that runs and is new enough: a name on the path may be a version manager's empty shim.
$(STAMP): pyproject.toml constraints.txt
	@python=''; \
	for name in python3.11 python3.12 python3.13 python3; do \
	    if $$name -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then \
	        python=$$name; break; fi; \
	done; \
	if [[ -z "$$python" ]]; then \
	    echo 'make: no Python 3.11 or newer with venv and pip was found (tried python3.11, python3.12, python3.13, python3);' \
	        'install one, for example: apt install python3.11 python3.11-venv' >&2; exit 1; fi; \
	echo "set-up: $$($$python --version) into .venv"; \
	[[ -x $(BIN)/python ]] || $$python -m venv --clear .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[cpu,dev]' -c constraints.txt
	@touch $@

# Not behind the stamp: the cache is the user's and may be elsewhere or gone. Answers at once where the weights are there.
weights: $(STAMP)
	@$(BIN)/recsys weights fetch

demo: venv
	@if [[ '$(DATA)' == ml-100k ]]; then $(BIN)/recsys data fetch ml-100k; fi
	$(BIN)/recsys evaluate '$(DATA)' --spec '$(SPEC)' --split leave-last --k-core 5 \
	    --sample-users $(USERS) --out '$(OUT)' --report --bundle '$(OUT)/bundle' --replace

# A file's tests stay in one process, since they share what is slow to make, and files are begun in pytest's own order.
# At most eight processes: each loads the small LM anew.
test: venv
	$(BIN)/python -m pytest -n $(WORKERS) --maxprocesses 8 --dist loadfile --no-loadscope-reorder $(ARGS)

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: venv
	$(BIN)/python -m pytest tests/bench -s $(ARGS)

clean:
	rm -rf out build dist .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis .coverage
	find recsys tests pipelines -name __pycache__ -type d -prune -exec rm -rf {} +
