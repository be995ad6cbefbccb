# One line a target. Each makes .venv first when it is missing or older than pyproject.toml.
# PYTHON names the interpreter that .venv is made with: the first of these that is 3.11 or newer.
PYTHON ?= $(shell for each in python3 python3.13 python3.12 python3.11; do \
	$$each -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$each && break; done)
SHELL := bash
.SHELLFLAGS := -euo pipefail -c
BIN := .venv/bin
READY := .venv/.ready
LOCK := .tasker/uv/bin/uv pip compile --universal --python-version 3.11 --generate-hashes --no-emit-index-url --custom-compile-command 'make locks' --override requirements-overrides.txt -q
# Modules in random order, each with its tests in random order; the largest are not put first.
RANDOM_ORDER := --dist loadscope --no-loadscope-reorder $(if $(SEED),--randomly-seed=$(SEED))

.DELETE_ON_ERROR:
.PHONY: help demo dev test test-under-load mutants lint types bench parity examples format passages chart locks images

help:      ## This list
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' Makefile | expand -t 17
demo: $(READY)      ## Run examples/03-order-fulfillment on this machine, with progress, and end
	@$(BIN)/tasker dev --run examples/03-order-fulfillment
dev: $(READY)       ## Keep the embedded cluster running for kubectl
	@$(BIN)/tasker dev
test: $(READY)      ## All tests but those of the images, in random order; SEED=… (printed at the start) repeats one
	$(BIN)/pytest -n 4 $(RANDOM_ORDER) -m 'not images'
test-under-load: $(READY) ## The same beside two busy processes, with threads that change places every 10 µs
	@PYTHONPATH=tests $(BIN)/python -m support.under_load -- -n 4 $(RANDOM_ORDER) -m 'not images'
mutants: $(READY)   ## Plant COUNT=200 small faults of the order SEED=… and report which no test notices: about twenty minutes
	@PYTHONPATH=tests $(BIN)/python -m mutants --count $(or $(COUNT),200) $(if $(SEED),--seed $(SEED)) $(if $(ONLY),--only $(ONLY))
lint: $(READY)      ## Lint, formatting, import contracts
	$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/lint-imports
types: $(READY)     ## mypy --strict; the examples one by one, for each has a module called handlers
	$(BIN)/mypy operator/src worker_image/src tests operator/devcluster charts operator/generate.py && for each in examples/*/handlers.py; do $(BIN)/mypy $$each || exit 1; done
bench: $(READY)     ## Latency and throughput beside this machine's raw limits; what many short Tasks cost
	$(BIN)/python tests/bench/run.py && $(BIN)/python tests/bench/tasks.py
parity: $(READY)    ## How many rows of the parity checklist have a passing test
	$(BIN)/pytest -n 2 -q -m parity --parity-report
examples: $(READY) $(patsubst %.py,%.yaml,$(wildcard examples/*/handlers.py)) ## The examples' ConfigMaps, from their handlers.py
passages: $(READY)  ## What the database and operator/STATES.md say of passages, from tasker.model.transitions
	@$(BIN)/python operator/generate.py
chart: $(READY)     ## What in the charts follows from crds/, the version and the comments of values.yaml
	@$(BIN)/python charts/generate.py
images: $(READY)    ## Build the images on Debian 12 and 13 and test them, with Python 3.13 inside: root on Debian, some ten minutes once, then five
	$(BIN)/pytest -m images
locks: $(READY)     ## The images' lock files, anew from the distributions' dependencies
	@test -x .tasker/uv/bin/uv || { $(BIN)/python -m venv .tasker/uv && .tasker/uv/bin/pip install -q 'uv>=0.9,<1'; }
	$(LOCK) --no-emit-package tasker-worker pyproject.toml -o operator/requirements.lock
	$(LOCK) worker_image/pyproject.toml -o worker_image/requirements.lock
	echo 'hatchling>=1.27' | $(LOCK) - -o operator/requirements-build.lock
	echo 'hatchling>=1.27' | $(LOCK) - -o worker_image/requirements-build.lock
format: $(READY)    ## Put imports and layout in order
	$(BIN)/ruff check --fix . && $(BIN)/ruff format .

examples/%/handlers.yaml: examples/%/handlers.py
	@name=$$(echo $* | sed 's/^[0-9]*-//')-handlers; echo "$@: ConfigMap $$name"; \
	{ echo '# Made from handlers.py by `make examples`: edit that file, not this one.'; \
	  $(BIN)/kubectl create configmap $$name --from-file=handlers.py=$< --dry-run=client -o yaml; } > $@

$(READY): pyproject.toml worker_image/pyproject.toml operator/devcluster/pyproject.toml
	@test -n "$(PYTHON)" || { echo "error: no Python 3.11 or newer found; name one with make PYTHON=…" >&2; exit 1; }
	@echo "Setting up .venv with $(PYTHON): once, about a minute"
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@{ $(BIN)/python -m pip install --disable-pip-version-check -e worker_image -e '.[dev]' -e operator/devcluster 2> .venv/pip.log || { cat .venv/pip.log >&2; exit 1; }; } \
	| sed -u -n 's/^Collecting \([^ ]*\).*/  \1/p'
	@$(BIN)/tasker version > /dev/null && touch $@
