# Two commands do everything on a fresh machine: `make demo` and `make test`.
PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt
CODE := branchwise tests benchmarks examples docs

.PHONY: demo test lint types check-real bench constraints clean

demo: .venv/for-demo
	$(BIN)/branchwise run examples/word_problems.toml

test: .venv/for-test lint types
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "not real" --numprocesses 2

lint: .venv/for-test
	$(BIN)/ruff check $(CODE)
	$(BIN)/ruff format --check $(CODE)

types: .venv/for-test
	$(BIN)/pyright

# With real weights: minutes, and a download at first use.
check-real: .venv/for-test
	$(BIN)/python -m pytest -m real

# Half an hour or so on an idle machine; with `QUICK=` the long rows have their full sizes: hours.
QUICK ?= --quick --pairs 3
LARGER := --model qwen2.5-coder-0.5b-instruct --dtype bfloat16

# A peer of the benchmarks; it names packages that it needs for other things.
.venv/for-bench: .venv/for-test
	$(PIP) --no-deps llm-reasoners
	touch $@

bench: .venv/for-bench
	$(BIN)/python benchmarks/controller.py
	$(BIN)/python benchmarks/sampler.py
	$(BIN)/python benchmarks/attention.py
	$(BIN)/python benchmarks/fork.py
	$(BIN)/python benchmarks/memory.py
	$(BIN)/python benchmarks/decode.py
	$(BIN)/python benchmarks/speculation.py
	$(BIN)/python benchmarks/best_of_n.py $(QUICK)
	$(BIN)/python benchmarks/tree.py $(QUICK)
	$(BIN)/python benchmarks/decode.py $(LARGER)
	$(BIN)/python benchmarks/best_of_n.py $(LARGER) $(QUICK)
	$(BIN)/python benchmarks/tree.py $(LARGER) $(QUICK)
	$(BIN)/python benchmarks/gpu.py

.venv:
	$(PYTHON) -m venv .venv
	$(PIP) pip==26.3

# torch comes first and pinned: a package that asks for any torch brings gigabytes of another build.
.venv/for-demo: pyproject.toml constraints.txt | .venv
	$(PIP) torch
	$(PIP) --editable ".[hf,math]"
	touch $@

.venv/for-test: .venv/for-demo
	$(PIP) --editable ".[all]" --group test --group lint
	touch $@

# Other people's worlds, for the tests of their adapters. Some name versions that they do not need,
# and bring user interfaces that no test opens: those come without what they name.
.venv/for-adapters: .venv/for-test
	$(PIP) fastapi pydantic-settings python-dotenv anthropic prime-sandboxes "prime-pydantic-config[toml]" aiohttp tomli-w tenacity httpx
	$(PIP) --no-deps openenv fastmcp-slim authlib joserfc exceptiongroup py-key-value-aio beartype cachetools verifiers renderers
	touch $@

# Pin what is installed now. A build's local label (torch's +cpu) is not part of the pin.
constraints: .venv/for-adapters
	$(BIN)/python -m pip freeze --exclude-editable | sed 's/+cpu$$//' > constraints.txt

clean:
	rm -rf .venv
