PYTHON ?= python3
BIN := .venv/bin
DEMO := build/demo
TORCH ?= torch
# The import hook of a default editable installation loses so2sat.py to any folder called so2sat; a path does not.
PIP := $(BIN)/pip install --quiet --disable-pip-version-check --config-settings editable_mode=compat

.PHONY: demo test train lint benchmark assets clean

# Sample data → Parquet repository → a look at it, in under three minutes.
demo: .venv/demo
	$(BIN)/python scripts/sample.py $(DEMO)/data
	rm -rf $(DEMO)/so2sat  # which another version of the project may have built
	$(BIN)/python scripts/build.py $(DEMO)/data $(DEMO)/so2sat
	HF_HOME=$(CURDIR)/$(DEMO)/cache $(BIN)/python scripts/demo.py $(DEMO)/so2sat $(DEMO)/preview.png

# On two cores. ARGS= goes to pytest, such as ARGS="-k overlap".
test: .venv/test .venv/datasets-3.6.0/ready .venv/datasets-4.0.0/ready
	$(BIN)/python -m pytest --numprocesses 2 --dist worksteal $(ARGS)

# From the demo's repository to a trained model. It has an environment of its own, because PyTorch and what comes with it
# take 6 GB; the test with uv makes another one under build. TORCH= chooses another build of PyTorch.
train: demo .venv/train/ready
	HF_HOME=$(CURDIR)/$(DEMO)/cache .venv/train/bin/python scripts/train.py $(DEMO)/so2sat --output build/trained
	UV_CACHE_DIR=$(CURDIR)/build/uv PATH=$(CURDIR)/.venv/train/bin:$$PATH .venv/train/bin/python -m pytest tests/test_train_torch.py

lint: .venv/test
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

# A quarter of an hour, with the environments of PyTorch and TensorFlow Datasets and several GB of temporary files.
benchmark: .venv/train/ready .venv/tfds/ready
	.venv/train/bin/python scripts/benchmark.py --tfds $(CURDIR)/.venv/tfds/bin/python --json build/benchmark.json

dataset_infos.json: so2sat.py scripts/publishing/facts.py scripts/dataset_infos.py .venv/demo
	$(BIN)/python scripts/dataset_infos.py $@

# The front page's picture.
assets: demo
	cp $(DEMO)/so2sat/assets/classes.png $@/

clean:
	rm -rf build .venv

# The environment stays with the Python that made it.
.PHONY: python
python:
ifneq ($(origin PYTHON),file)
	@test ! -e $(BIN)/python || test "$$($(BIN)/python -V)" = "$$($(PYTHON) -V)" || \
		{ echo "error: .venv has $$($(BIN)/python -V); leave PYTHON= out, or make clean before $(PYTHON)" >&2; exit 1; }
endif

# The stamps are made anew when the requirements change.
.venv/demo: pyproject.toml | python
	$(PYTHON) -c 'import sys; sys.version_info >= (3, 10) or sys.exit("Python 3.10 or newer is needed; set PYTHON=")'
	$(PYTHON) -m venv .venv
	$(PIP) --editable '.[scripts]'
	touch $@

.venv/test: pyproject.toml .venv/demo
	$(PIP) --editable '.[scripts,http,test]'
	touch $@

# An environment of a user of the loading script: this version of datasets, h5py, pillow, and nothing of ours.
.venv/datasets-%/ready: Makefile | .venv/demo
	$(BIN)/python -m venv --clear $(@D)
	$(@D)/bin/pip install --quiet --disable-pip-version-check datasets==$* h5py pillow
	touch $@

.venv/train/ready: pyproject.toml | .venv/demo
	$(BIN)/python -m venv --clear $(@D)
	$(@D)/bin/pip install --quiet --disable-pip-version-check --config-settings editable_mode=compat \
		--editable '.[scripts,http,test,train]' '$(TORCH)' lightning uv
	touch $@

.venv/tfds/ready: Makefile | .venv/demo
	$(BIN)/python -m venv --clear $(@D)
	$(@D)/bin/pip install --quiet --disable-pip-version-check tensorflow-cpu tensorflow-datasets==4.9.10 \
		importlib_resources h5py
	touch $@
