# Every target sets up what it needs: a machine with python3 (3.11 to 3.13), make and the package registries is enough.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
# Where it is set, every start would compile torch and its friends again: half a minute each.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: lock demo test test-all check bench backends versus ablation setup clean

setup: $(READY)

# uv resolves and unpacks in seconds; constraints.txt pins what was tested.
$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check "$$(grep '^uv==' constraints.txt)"
	$(BIN)/uv pip install --quiet --python $(BIN)/python -c constraints.txt -e '.[demo,dicom,geo,dev]'
	touch $(READY)

demo: $(READY)
	$(BIN)/delineate demo

# One process per core; each keeps to its share of threads (tests/conftest.py).
test: $(READY)
	$(BIN)/python -m pytest -n auto --dist worksteal

test-all: $(READY)
	$(BIN)/python -m pytest -n auto --dist worksteal -m 'slow or not slow'

check: $(READY)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: $(READY)
	$(BIN)/python -m benchmarks.tiled_inference
	$(BIN)/python -m benchmarks.scene

# What computes a network: make backends MODEL=runs/NAME/model.safetensors IMAGES=FOLDER
backends: $(READY)
	$(BIN)/python -m benchmarks.backends $(MODEL) $(IMAGES)

# Our recipes against the peer's U-Net: make versus DATA="retina_vessels=FOLDER xray_lungs=FOLDER"
versus: $(READY)
	$(BIN)/uv pip install --quiet --python $(BIN)/python -c constraints.txt -e '.[bench]'
	$(BIN)/python -m benchmarks.versus_smp $(DATA)

# The page docs/attention-ablation.md: make ablation HIPPOCAMPUS=FOLDER BUILDINGS=FOLDER
ablation: $(READY)
	$(BIN)/delineate benchmark attention configs/ablation/hippocampus.yaml=$(HIPPOCAMPUS) \
	  configs/ablation/buildings.yaml=$(BUILDINGS) --workers 2 --page docs/attention-ablation.md

clean:
	rm -rf $(VENV) runs out build *.egg-info .pytest_cache .ruff_cache .mypy_cache .hypothesis .import_linter_cache

# torch and torchvision are the pair that was tested; everything else is the newest that fits them.
lock:
	printf 'torch==2.13.0\ntorchvision==0.28.0\n' > .pair.txt
	{ echo "# Exact versions that were tested together, for python 3.11 to 3.13. Made by: make lock"; echo "uv==0.13.8"; \
	  $(BIN)/uv pip compile --quiet --universal --python-version 3.11 --all-extras --no-header --no-annotate \
	    --no-emit-index-url --no-emit-find-links -c .pair.txt pyproject.toml; } > constraints.new
	mv constraints.new constraints.txt; rm .pair.txt
