# Everything below sets up .venv first, from requirements.lock, but for test-oldest and test-newest.
PYTHON ?= python3
BIN := .venv/bin
# The CPU tests of JAX, torch and pytest workers share the cores.
WORKERS ?= 2
# What is installed without bytecode keeps what its first import compiles. Images of Docker often
# forbid that, and then each process of the tests takes seconds longer to start.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: quickstart test test-slow test-oldest test-newest parity layouts fuzz torture benchmark benchmark-tpu lint format types wheel lock clean

# libtpu, by which tests compile for TPUs, complains where there is no TPU unless JAX is told so.
quickstart: .venv/installed  ## train a small ResNet on digits, export it, check it in torch
	JAX_PLATFORMS=$${JAX_PLATFORMS:-cpu} $(BIN)/python -m train digits --run-dir runs/quickstart --overwrite

test: .venv/installed  ## all tests that are not slow
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadgroup -m "not slow"

test-slow: .venv/installed  ## the slow ones: every model of the table, real runs
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadgroup -m slow

test-oldest:  ## the quick tests with the oldest releases of pyproject.toml's ranges, on Python 3.11
	$(PYTHON) -c 'import sys; assert sys.version_info[:2] == (3, 11), "make test-oldest PYTHON=python3.11"'
	$(PYTHON) -m venv --clear .venv-oldest
	.venv-oldest/bin/python -m pip install --quiet --no-compile $$(grep "^torch==" requirements.oldest)
	.venv-oldest/bin/python -m pip install --quiet --no-compile --constraint requirements.oldest --editable '.[dev]'
	.venv-oldest/bin/python -m pytest -n $(WORKERS) --dist loadgroup -m "not slow"

# EXTRAS=dev brings torch too: on Linux, with gigabytes of CUDA.
EXTRAS ?= train,keras,hub,onnx,plot,wandb,test
NEWEST = $(if $(filter file,$(origin PYTHON)),$(shell .ci/newest_python),$(PYTHON))
test-newest:  ## the quick tests with the newest releases, on the newest Python; without torch
	$(NEWEST) -m venv --clear .venv-newest
	.venv-newest/bin/python -m pip install --quiet --no-compile --editable '.[$(EXTRAS)]'
	.venv-newest/bin/python -m pip list | grep -iE '^(jax|flax|numpy|optax|orbax-checkpoint|torch) '
	.venv-newest/bin/python -m pytest -n $(WORKERS) --dist loadgroup -m "not slow"

parity: .venv/installed  ## the parity of every model with every shortcut, and a table of the errors reached
	$(BIN)/python -m pytest -s --full tests/test_parity.py

fuzz: .venv/installed  ## 100,000 damaged files: read, or refused with our own error
	$(BIN)/python -m tests.fuzz --count 100000 --seed 0

torture: .venv/installed  ## runs killed at 200 random moments: resumed, they lose nothing
	$(BIN)/python -m tests.torture --kills 200 --commit-kills 20 --seed 0

benchmark: .venv/installed  ## everything beside its peers, in tables: benchmarks/results
	$(BIN)/python -m benchmarks

benchmark-tpu: .venv/installed  ## what the TPU's compiler says of our steps, beside linen's: hours
	$(BIN)/python -m benchmarks.tpu

layouts: .venv/installed  ## other packages' own networks: a matrix of layouts, models, directions
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadgroup tests/test_layouts.py

lint: .venv/installed
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

format: .venv/installed
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

types: .venv/installed
	$(BIN)/pyright

wheel: .venv/installed  ## build a wheel and try it in fresh environments
	.ci/check_wheel

lock: .venv/installed  ## write what is installed now to requirements.lock
	(head -2 requirements.lock; \
	 $(BIN)/python -m pip freeze --exclude-editable | sed 's/+cpu$$//' | sort -f) > .lock.new
	mv .lock.new requirements.lock

clean:
	rm -rf .venv .venv-oldest .venv-newest dist build runs .pytest_cache .ruff_cache .hypothesis

# torch first and by itself: another package's looser wish for it would take another build.
# Not compiled: most of what these packages bring is never imported.
.venv/installed: pyproject.toml requirements.lock
	$(PYTHON) -c 'import sys; sys.version_info[:2] == (3, 11) or sys.exit("requirements.lock is for Python 3.11: make PYTHON=python3.11; for a newer one see Install in README.md")'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --no-compile $$(grep "^torch==" requirements.lock)
	$(BIN)/python -m pip install --quiet --no-compile --constraint requirements.lock --editable '.[dev]'
	touch .venv/installed
