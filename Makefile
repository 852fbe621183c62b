# What a clean clone needs: Python 3.11, git, make, pip (and apt for the lab on Linux). `make run` is the first thing to try.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
SIM_MINUTES ?= 30
PACKAGES := mesh node router election demo bench

.PHONY: help setup run test lint sim bench-node bench-mesh bench-exact bench-audit bench-routing bench-path bench-hostile fuzz audit-deps clean

help:  ## what can be made here
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 16

setup: $(READY)  ## .venv with everything, test dependencies included

# A Debian python3 may come without venv: virtualenv from pip does the same, in a folder of ours, because Debian's pip
# installs nothing for the user (PEP 668).
$(READY): pyproject.toml constraints.txt
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV) >/dev/null 2>&1 || { rm -rf $(VENV); $(PYTHON) -m pip install --quiet --target .cache/virtualenv virtualenv && PYTHONPATH=.cache/virtualenv $(PYTHON) -m virtualenv --quiet $(VENV); }
	@echo "installing into $(VENV) (about a minute the first time)"
	@$(BIN)/python -m pip install -qq --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	@touch $@

run: $(READY)  ## three real nodes on this machine, one question, stays up (ARGS=--once: ends after the answer)
	@$(BIN)/python -m demo.run $(ARGS)

test: $(READY)  ## the whole suite, a share of the simulations included
	@$(BIN)/python -m pytest $(ARGS)

lint: $(READY)  ## ruff, mypy --strict, import contracts
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports

sim: $(READY)  ## the long simulations, for $$SIM_MINUTES (default 30); writes bench/out/sim.json
	@mkdir -p bench/out
	@$(BIN)/python -m tests.sim --minutes $(SIM_MINUTES) --out bench/out/sim.json

bench-node: $(READY)  ## memory estimated and measured, a node under chaos, an idle node; writes bench/out/node.json
	@$(BIN)/python -m bench.node $(ARGS)

bench-mesh: $(READY)  ## a mesh of real daemons under faults, on good and bad networks; writes bench/out/mesh.json
	@$(BIN)/python -m bench.mesh $(ARGS)

bench-exact: $(READY)  ## streams cut at random points, and whether their clients notice; writes bench/out/exact.json
	@$(BIN)/python -m bench.exact $(ARGS)

bench-audit: $(READY)  ## thirty clients and a fault every ten seconds, each answer compared; writes bench/out/audit.json
	@$(BIN)/python -m bench.audit $(ARGS)

bench-routing: $(READY)  ## the scheduler on request traces, against clairvoyants and other routers; writes bench/out/routing.json
	@$(BIN)/python -m bench.routing $(ARGS)

bench-path: $(READY)  ## what a request costs on its way, beside nginx and haproxy (Linux; apt: gcc nginx haproxy); writes bench/out/path.json
	@$(BIN)/python -m bench.path $(ARGS)

bench-hostile: $(READY)  ## thousands of hostile connections, and what an honest client notices (Linux; apt: gcc; root for a LAN); writes bench/out/hostile.json
	@$(BIN)/python -m bench.hostile $(ARGS)

fuzz: $(READY)  ## hostile input of every kind for an hour (ARGS="--minutes 60 --target NAME"); writes bench/out/fuzz
	@$(BIN)/python -m bench.fuzz $(ARGS)

audit-deps: $(READY)  ## known vulnerabilities of what constraints.txt names (asks a service on the internet)
	@$(BIN)/python -m pip install -qq --disable-pip-version-check '.[audit]'
	@$(BIN)/pip-audit --strict --requirement constraints.txt --no-deps --disable-pip $(ARGS)

clean:  ## away with what is made here, the demo model's cache included
	rm -rf $(VENV) .cache bench/out *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
