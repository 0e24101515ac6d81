# Every target works on its own on a machine with python3 (3.11 or newer) with venv, g++ and make; nvcc is optional.
# Overridable: PYTHON, VENV, PIP (e.g. PIP="... --index-url ..."), TORCH (e.g. TORCH="torch==2.11.0 torchvision"),
# OUT (of demo and bench); for bench also QUICK=1 and DATA (where torchvision's data sets lie).

PYTHON ?= python3
VENV ?= .venv
TORCH ?= torch torchvision

BIN := $(abspath $(VENV))/bin
PIP ?= $(BIN)/python -m pip --disable-pip-version-check
export PATH := $(BIN):$(PATH)

# Folders too: a deleted or renamed source changes their time.
SOURCES := setup.py CMakeLists.txt $(shell find csrc 2>/dev/null)
CPP := $(shell find csrc tests -name '*.cpp' -o -name '*.h' -o -name '*.cu' -o -name '*.cuh' 2>/dev/null)
# pip's cmake and ninja only where the machine has none
TOOLS = $(shell command -v cmake >/dev/null || echo cmake) $(shell command -v ninja >/dev/null || echo ninja)

BUILD_REQUIRES = import tomllib; print(*tomllib.load(open('pyproject.toml', 'rb'))['build-system']['requires'])

BENCH_REQUIRES = import tomllib; print(*tomllib.load(open('pyproject.toml', 'rb'))['project']['optional-dependencies']['bench'])

.PHONY: demo test test-full bench census mutants lint docs wheel build clean
demo: OUT ?= runs/demo
demo: build
	$(BIN)/python -m shrinknets_fast train --data digits --out $(OUT)
	@echo "demo: look at $(OUT)/history.png; the small network is $(OUT)/plain.pt2"

test: lint
	$(BIN)/python -m pytest -n auto -m "not slow" tests
	@echo "test: all passed; what takes longer is in 'make test-full'"

test-full: lint
	$(BIN)/python -m pytest -n auto tests
	@echo "test-full: all passed, the slow ones too"

# Rows are appended to bench/results, or to OUT; the last lines are a table.
bench: $(VENV)/.bench
	$(BIN)/python -m bench all $(if $(filter-out 0,$(QUICK)),--quick) $(if $(OUT),--out $(OUT)) $(if $(DATA),--data $(DATA))

# Rows of all models that have none yet of this code, and the page docs/models.md. About two hours of one core.
census: $(VENV)/.bench
	$(PIP) install -q timm transformers segmentation-models-pytorch
	$(BIN)/python -m bench census
	$(BIN)/python -m bench census --page

# Tests of the tests: planted faults, each of which its test file has to catch. About 45 minutes with JOBS=1.
mutants: build
	$(BIN)/python tests/mutants/run.py -j $(or $(JOBS),1)

lint: docs
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	@if command -v clang-format >/dev/null && [ -n "$(CPP)" ]; then \
		clang-format --dry-run -Werror $(CPP); else echo "lint: clang-format skipped"; fi
	@echo "lint: clean"

# Quick: docstrings are read, not imported. A warning, such as a link that leads nowhere, is an error (but not with --quiet).
docs: build
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict
	@echo "docs: open build/site/index.html"

# One for this CUDA's major version, for every torch from 2.11 and every Python from 3.11 on; tried with the oldest and the newest.
wheel: build
	rm -rf dist && $(PIP) wheel -q --no-build-isolation --no-deps -w dist .
	$(BIN)/python tests/check_wheel.py dist/*.whl

build: $(VENV)/.built

clean:
	rm -rf $(VENV) build dist runs *.egg-info shrinknets_fast/*.so shrinknets_fast/build_info.json .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(VENV)/.torch: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) install -q $(TORCH) $(TOOLS) $$($(BIN)/python -c "$(BUILD_REQUIRES)")
	touch $@

$(VENV)/.built: $(VENV)/.torch $(SOURCES)
	$(PIP) install -q --no-build-isolation -e '.[demo,dev]'
	@echo "built: '$(BIN)/python -m shrinknets_fast info' says how"
	touch $@

$(VENV)/.bench: $(VENV)/.built
	$(PIP) install -q $$($(BIN)/python -c "$(BENCH_REQUIRES)")
	touch $@
