# `make help` says what there is. Everything is installed into .venv; the demo keeps its state in
# $XDG_STATE_HOME/qwenctl/.demo (by default below ~/.local/state).
PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/pip --disable-pip-version-check -q
ONCE ?=
ARGS ?=
# Most tests wait for other processes, so that two workers a core pay.
WORKERS ?= $(shell $(PYTHON) -c 'import os; print(2 * (os.cpu_count() or 1))')
# Where `make test-real` installs vLLM.
REAL_VLLM ?= .venv/real/vllm
# Where fast tests are, so that no worker imports the others.
FAST = tests/unit tests/simulation $(shell grep -rl --include='test_*.py' 'pytest\.mark\.fast' tests)
# Tests start hundreds of Python processes; without bytecode each would compile everything anew.
test test-fast: export PYTHONDONTWRITEBYTECODE =

.DEFAULT_GOAL := help
.PHONY: help demo test test-fast mutants test-long test-real check format docs bench setup wheel clean

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: .venv/.demo ## Run the whole thing on this machine until Ctrl-C (ONCE=1: one cycle, unattended)
	@$(BIN)/qwenctl demo $(if $(ONCE),--once) $(ARGS)

test: .venv/.dev ## Run all tests (a few minutes; needs nginx and Chromium for some)
	@$(BIN)/pytest -n $(WORKERS) --dist loadgroup $(ARGS)

test-long: .venv/.dev ## Simulate 10,000 minutes of a cloud that answers badly, boot slowly, try 20,000 mutated requests (half an hour and more)
	@LONG=1 SIMULATED_MINUTES=10000 FUZZ_EXAMPLES=20000 $(BIN)/pytest -n $(WORKERS) --timeout=3600 tests/simulation/test_manners.py \
		tests/integration/proxy/front/test_long_boot.py tests/conformance/test_fuzz.py $(ARGS)

test-real: .venv/.dev ## Run a real vLLM behind the proxy, on the CPU (a few minutes; downloads 3.5 GB once)
	@PYTHON=$(PYTHON) tests/real/vllm.sh $(REAL_VLLM)
	@REAL_VLLM=$(abspath $(REAL_VLLM)) $(BIN)/pytest tests/real $(ARGS)

test-fast: .venv/.dev ## Run the fast tests (under a minute)
	@$(BIN)/pytest -n $(WORKERS) --dist worksteal -m "fast and not slow and not browser" $(FAST) $(ARGS)

check: .venv/.dev ## Lint, types, import contracts, oldest Python, generated docs
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports --no-logo
	@$(BIN)/vermin -q --no-tips --eval-annotations --backport typing -t=3.10- --violations qwenctl proxy gpu_node
	@$(BIN)/python docs/generate.py --check

mutants: .venv/.dev ## Plant faults and see that tests notice (about an hour; ARGS="--only TEXT")
	@$(BIN)/python tests/mutants/run.py $(ARGS)

format: .venv/.dev ## Mend what the linter can mend
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

docs: .venv/.dev ## Write the generated parts of the documentation anew
	@$(BIN)/python docs/generate.py

bench: .venv/.dev ## Measure (about ten minutes; benchmarks/README.md)
	@$(BIN)/python -m benchmarks $(ARGS)

setup: .venv/.dev ## Make .venv with everything that development needs

wheel: .venv/.dev ## Build the wheel into dist/
	@$(PIP) install build
	@$(BIN)/python -m build --wheel

clean: ## Remove .venv, caches and build results
	rm -rf .venv dist build .hypothesis .mypy_cache .pytest_cache .ruff_cache .import_linter_cache

.venv/bin/pip:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { echo "Python 3.10 or newer is needed: make PYTHON=python3.11 …"; exit 1; }
	@$(PYTHON) -m venv .venv || { echo "python3 -m venv does not work here: install python3-venv"; exit 1; }

.venv/.demo: pyproject.toml | .venv/bin/pip
	@echo "Installing qwenctl and the demo's Gradio into .venv (once, a minute or two) …"
	@$(PIP) install -e '.[demo]'
	@touch $@

.venv/.dev: pyproject.toml | .venv/bin/pip
	@echo "Installing qwenctl and its development tools into .venv (once, a few minutes) …"
	@$(PIP) install -e '.[all,demo,dev]'
	@touch $@ .venv/.demo
