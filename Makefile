# make demo    the main job: parent, plan, child, comparison, export (examples/names)
# make test    lint, types and tests
# make lint    lint and types only
# make nightly        the tests with 10,000 damaged files a format and 200 killed runs
# make test-lowest    the tests with the lowest versions that pyproject.toml allows (of torch the usual one)
# make test-interop   files of the original frameworks, in environments of their own (gigabytes); NAMES="torch …"
# make clean   caches, builds and what the examples wrote; environments stay
#
# Both jobs set up .venv themselves, and again only when pyproject.toml or constraints.txt changed.
# WARMSTART_FIXTURES, where it is set, reaches the tests through the environment.

PYTHON ?= python3
WORKERS ?= 2
VENV := .venv
BIN := $(VENV)/bin
INSTALL := $(BIN)/python -m pip install --constraint constraints.txt --editable

.PHONY: demo test lint nightly test-lowest test-interop clean
.NOTPARALLEL:

demo: $(VENV)/.demo
	PATH="$(CURDIR)/$(BIN):$$PATH" sh examples/names/run.sh

# One thread in each worker: two workers already fill two cores.
test: lint
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS)

nightly: $(VENV)/.dev
	WARMSTART_NIGHTLY=1 WARMSTART_KILLS=200 OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS)

test-lowest:
	$(PYTHON) -m venv --clear $(VENV)-lowest
	grep '^torch==' constraints.txt > $(VENV)-lowest/versions
	grep -o '"[A-Za-z][A-Za-z0-9_-]*>=[0-9.]*"' pyproject.toml | tr -d '"' | sed 's/>=\(.*\)/==\1.*/' | grep -v '^torch=' >> $(VENV)-lowest/versions
	$(VENV)-lowest/bin/python -m pip install --prefer-binary --constraint $(VENV)-lowest/versions --editable '.[dev]'
	OMP_NUM_THREADS=1 $(VENV)-lowest/bin/python -m pytest -n $(WORKERS)

test-interop: $(VENV)/.created
	$(BIN)/python tests/interop/run.py $(NAMES)

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/mypy

$(VENV)/.created:
	test -x $(BIN)/pip || $(PYTHON) -m venv $(VENV)
	touch $@

$(VENV)/.demo: $(VENV)/.created pyproject.toml constraints.txt
	$(INSTALL) '.[demo]'
	touch $@

# dev contains demo, so that tests first and demo afterwards install once.
$(VENV)/.dev: $(VENV)/.created pyproject.toml constraints.txt
	$(INSTALL) '.[dev]'
	touch $@ $(VENV)/.demo

clean:
	rm -rf .mypy_cache .ruff_cache .pytest_cache .hypothesis dist examples/*/data examples/*/runs
	find src tests benchmarks examples -name __pycache__ -type d -prune -exec rm -rf {} +
