# Every target makes what it needs from a bare Python 3.11 (and g++, once kernels are built).
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
# one process per core, one torch thread per process: these tensors are tiny
export OMP_NUM_THREADS ?= 1

.PHONY: .venv demo selftest test test-slow check format bench fuzz mutants mutants-kernels kernels-full opinfo compat dist clean

$(VENV)/.ready: pyproject.toml
	$(PYTHON) -c 'import sys; assert sys.version_info[:2] == (3, 11), "Python 3.11 is needed, got " + sys.version'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet "torch==2.13.0"
	$(BIN)/python -m pip install --quiet -e ".[dev]"
	touch $@

.venv: $(VENV)/.ready
	$(BIN)/npu-fused-graph host install

demo: .venv
	$(BIN)/npu-fused-graph demo

selftest: .venv
	$(BIN)/npu-fused-graph selftest -o build/selftest

# --budget: past it the seconds of every test file are printed
test: .venv
	$(BIN)/python -m pytest -n 2 --dist loadgroup -m "not slow" --budget 240

test-slow: .venv
	$(BIN)/python -m pytest -n 2 --dist loadgroup -m slow --budget 600

SOURCES := $(shell find kernels tests/kernels tests/codegen -name '*.h' -o -name '*.cpp')
check: .venv
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	rm -rf build/typed && mkdir -p build/typed
	cp -rs $(CURDIR)/npu_fused_graph build/typed/ && cp -rs $(CURDIR)/converters build/typed/npu_fused_graph/
	$(BIN)/mypy
	$(BIN)/python -m npu_fused_graph.codegen --check
	$(BIN)/clang-format --dry-run --Werror ge_op_protos/*.h $(SOURCES)

format: .venv
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: .venv
	$(BIN)/python -m tests.benchmarks

GRAPHS ?= 5000
fuzz: .venv
	$(BIN)/python -m tests.passes.fuzz --graphs $(GRAPHS) --jobs 2
	$(BIN)/python -m tests.passes.attention_fuzz --graphs $$(($(GRAPHS) * 2 / 5))
	$(BIN)/python -m tests.rank_fuzz --programs $$(($(GRAPHS) / 10))
	$(BIN)/python -m tests.lowering_fuzz --graphs $$(($(GRAPHS) / 2))

SITES ?= 300
mutants: .venv
	$(BIN)/python -m tests.mutants --sites $(SITES) --jobs 2

kernels-full: .venv
	$(BIN)/python -m tests.kernels.full

mutants-kernels: .venv
	$(BIN)/python -m tests.kernels.mutants --jobs 2

opinfo: .venv
	$(BIN)/python -m tests.opinfo --jobs 2

dist: .venv
	rm -rf build/dist && $(BIN)/python -m build --no-isolation --outdir build/dist .
	$(BIN)/twine check --strict build/dist/*

# ENVS: environments, each with a torch of its own; docs/versions.md says how to make one
compat: .venv
	$(BIN)/python -m tests.compat $(ENVS)

clean:
	rm -rf $(VENV) build *.egg-info .mypy_cache .ruff_cache .pytest_cache
