# `make demo` and `make test` do everything, set-up included, on a machine with Python 3.11 to 3.13.
PYTHON ?= python3
VENV ?= .venv
# The exact versions that the tests passed with; /dev/null for the newest that pyproject.toml allows.
CONSTRAINTS ?= constraints.txt
BIN := $(VENV)/bin

.PHONY: demo demo-detection demo-pose demo-segmentation test tests test-all test-faults clean
demo: $(VENV)/.ready
	$(BIN)/python examples/demo.py --out demo

# Trains on label maps from nothing, and converts to mmsegmentation's layout and back.
demo-segmentation: $(VENV)/.ready
	$(BIN)/python examples/demo_segmentation.py --out demo_segmentation

# Trains on keypoints of figures from nothing, and converts to mmpose's layout and back.
demo-pose: $(VENV)/.ready
	$(BIN)/python examples/demo_pose.py --out demo_pose

# Trains on boxes of digits from nothing, and converts to mmdetection's layout and back.
demo-detection: $(VENV)/.ready
	$(BIN)/python examples/demo_detection.py --out demo_detection

test: $(VENV)/.ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(MAKE) tests

tests: $(VENV)/.ready
	$(BIN)/python -m pytest -n 2 --dist worksteal -m 'not long and not faults'

test-all: test
	$(BIN)/python -m pytest -m long

# Kills, damages and overloads: see docs/reliability.md.
test-faults: $(VENV)/.ready
	$(BIN)/python -m pytest -m faults -s

$(VENV)/.ready: pyproject.toml $(CONSTRAINTS)
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet -c $(CONSTRAINTS) -e '.[dev]'
	touch $@

clean:
	rm -rf $(VENV) demo demo_detection demo_pose demo_segmentation build *.egg-info .pytest_cache .mypy_cache .ruff_cache
