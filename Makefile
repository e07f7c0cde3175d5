# Hutch. `make demo` runs it all on this machine, `make test` passes the tests; both set up what they need first.
SHELL := /bin/bash
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# most tests wait for programs that start, so two more than cores are not too many; those of one file share what they start;
# tests/conftest.py says in which order the files come
PYTEST := $(BIN)/python -m pytest -n $(shell expr $$(nproc) + 2) --dist loadfile --no-loadscope-reorder
export PATH := $(CURDIR)/$(BIN):$(CURDIR)/node_modules/.bin:$(PATH)

.PHONY: help demo test test-postgresql test-openstack bench-openstack spawner-contract chaos check bench lock setup clean

help:  ## say what can be made
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 18

setup:  ## install the locked versions inside this folder (done by all others)
	@tools/setup --test

demo:  ## load the example facility, run cloud, hub and portal, print one address to open
	@tools/setup
	@$(BIN)/hutch demo

test: setup check  ## check the code, then run the tests (ARGS="-k name" to choose)
	@$(PYTEST) $(ARGS)

test-postgresql: setup  ## run the hub's tests on a real PostgreSQL (those of etl run on both anyway)
	@HUTCH_TEST_DATABASE=postgresql $(PYTEST) -m "not any_database" tests/hub tests/faults $(ARGS)

test-openstack: setup  ## as root: a real OpenStack and our image; the contract and a launch on them (a quarter of an hour)
	@tests/openstack/check $(ARGS)

bench-openstack: setup  ## as root: measure launches on the same real OpenStack
	@tests/openstack/check bench

spawner-contract: setup  ## as root: what JupyterHub does to spawners in trouble, on ours, Docker's and others; makes docs/spawner-contract.md
	@spawner-contract/with-dockerd $(BIN)/python -m pytest tests/spawner/test_contract.py tests/spawner/contract_of_naive.py \
	  spawner-contract/test_docker.py spawner-contract/test_local.py --contract-table docs/spawner-contract.md $(ARGS)

chaos: setup  ## kill hub, proxy, steward, agents, cloud at random under 100 operations (ARGS="--seed 7 --database postgresql")
	@$(BIN)/python tests/chaos/run.py $(ARGS)

check: setup  ## lint, formatting, types, imports
	@$(BIN)/ruff check && $(BIN)/ruff format --check && $(BIN)/mypy && $(BIN)/lint-imports --no-cache

bench: setup  ## measure; each benchmark's last line is JSON
	@for script in benchmarks/bench_*.py; do echo "== $$script"; $(BIN)/python $$script || exit 1; done

lock:  ## resolve requirements/*.in anew into the lock files
	@$(BIN)/pip install -q uv && cd requirements && \
	../$(BIN)/uv pip compile -q --universal --python-version 3.11.2 --generate-hashes --no-annotate --no-header \
	  --override overrides.txt runtime.in dev.in -o lock.txt --upgrade && \
	../$(BIN)/uv pip compile -q --python-platform x86_64-manylinux_2_28 --python-version 3.11.2 --generate-hashes --no-annotate --no-header \
	  --override overrides.txt -c lock.txt guest.in -o guest-lock.txt --upgrade && \
	../$(BIN)/uv pip compile -q --universal --python-version 3.11.2 --generate-hashes --no-annotate --no-header node.in -o node-lock.txt --upgrade

clean:  ## remove what setting up and running made
	rm -rf $(VENV) node_modules .hutch
