# The commands of the project. Each makes the virtual environment it needs; `make help` lists them.
#   make test PYTHON=python3.12     chooses the interpreter
#   make test ARGS="-k conv"        hands arguments to pytest
#   make demo ARGS="--steps 100"    hands arguments to examples/cifar10.py

PYTHON ?=
ARGS ?=
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
DOCS := $(VENV)/.installed-docs
EXTRAS := spark,viz,demo,dev

export PYTHON

.DEFAULT_GOAL := help
.NOTPARALLEL:
.PHONY: help demo test test-opencl chaos docs lint lint-ruff lint-mypy wheel-check peers bench clean java force

help:  ## list these commands
	@sed -n 's/^\([a-z-]*\):.*## */\1|/p' Makefile | awk -F '|' '{ printf "make %-12s %s\n", $$1, $$2 }'

demo: java $(STAMP)  ## train the CIFAR-10 CNN with two Spark tasks, on real handwritten digits
	@$(BIN)/python examples/cifar10.py --workers 2 $(ARGS)

# More than four test processes cost more memory than they save time: the Spark tests, which take
# longest, run one after the other in any case.
test: java $(STAMP)  ## run all tests
	@$(BIN)/python -m pytest -n auto --maxprocesses 4 --dist loadgroup $(ARGS)

test-opencl: $(STAMP)  ## the OpenCL tests on PoCL, on Intel's runtime and under Oclgrind, which it installs
	@.ci/opencl.sh $(BIN)/python $(ARGS)

chaos: java $(STAMP)  ## kill, stop and tear in many trainings on a local Spark cluster (ARGS="--faults 200")
	@$(BIN)/python -m tests.chaos.run $(ARGS)

docs: $(DOCS)  ## build the documentation's site into build/docs (open build/docs/index.html)
	@$(BIN)/sphinx-build -q -E -a -W --keep-going -j auto -d build/doctrees docs build/docs $(ARGS)

lint: lint-ruff lint-mypy  ## ruff check, ruff format --check, mypy

lint-ruff: $(STAMP)
	@$(BIN)/ruff check
	@$(BIN)/ruff format --check

lint-mypy: $(STAMP)
	@$(BIN)/mypy

wheel-check: $(STAMP)  ## build the wheel, install it into a clean environment, import from it
	@$(BIN)/python .ci/wheel_check.py

# Frameworks get environments of their own, so that none decides which versions another runs with.
peers:  ## install PyTorch, TensorFlow, JAX and tinygrad for the benchmarks, below .peers
	@python=$$(.ci/require.sh python) && PYTHON=$$python benchmarks/peers/make.sh

bench: $(STAMP)  ## time a training step of six models beside the frameworks that `make peers` installed
	@$(BIN)/python benchmarks/train_step.py $(ARGS)

clean:  ## remove the virtual environment and everything that was built
	@rm -rf $(VENV) build dist tensorlite.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +

java:
	@.ci/require.sh java

$(STAMP): pyproject.toml
	@.ci/venv.sh $(VENV) $(EXTRAS)
	@touch $@

# Only the site needs what makes it.
$(DOCS): $(STAMP)
	@.ci/venv.sh $(VENV) $(EXTRAS),docs
	@touch $@

# An environment made with another interpreter than the one asked for is made again.
ifneq ($(PYTHON),)
same := test "`$(PYTHON) --version`" = "`$(BIN)/python --version`"
ifneq ($(shell { $(same) && echo same; } 2>/dev/null),same)
$(STAMP): force
endif
endif
