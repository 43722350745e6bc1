# Every target sets up its own environment in .venv; nothing else is needed but Python.
PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin/python
STAMP := $(VENV)/.installed

# Each holds a CUDA context, about half a gigabyte of the device's memory.
GPU_PROCESSES ?= 8
# Of tests, before the benchmark; inf for all of them.
GPU_SECONDS ?= 210

.PHONY: demo test faults bench lint package versions examples race docs gpu clean
.DEFAULT_GOAL := test

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --quiet --upgrade pip
	$(RUN) -m pip install --quiet -c constraints.txt torch==2.13.0
	$(RUN) -m pip install --quiet -c constraints.txt -e ".[test,peers]"
	touch $(STAMP)

demo: $(STAMP)
	$(RUN) examples/two_layer.py

examples: $(STAMP)
	for example in examples/*.py; do $(RUN) $$example || exit 1; done

test: $(STAMP)
	$(RUN) -m pytest -n 2 --dist loadfile --no-loadscope-reorder $(PYTEST_OPTIONS)

faults: $(STAMP)
	HVPOPT_FAULTS=long $(RUN) -m pytest tests/faults

lint: $(STAMP)
	$(RUN) -m ruff format --check .
	$(RUN) -m ruff check .
	$(RUN) -m mypy

package: $(STAMP)
	$(RUN) .ci/package

versions: $(STAMP)
	$(RUN) .ci/versions

bench: $(STAMP)
	$(RUN) -m pytest benchmarks/bench_published.py benchmarks/bench_products.py \
		--benchmark-json=benchmarks/published.json
	$(RUN) -m pytest benchmarks/bench_waveform.py \
		--benchmark-json=benchmarks/waveform.json
	$(RUN) -m pytest benchmarks/bench_distributed.py \
		--benchmark-json=benchmarks/distributed.json
	$(RUN) -m pytest benchmarks/bench_checkpoint.py \
		--benchmark-json=benchmarks/checkpoint.json
	$(RUN) benchmarks/report.py

race: $(STAMP)
	$(RUN) benchmarks/race.py

docs: $(STAMP)
	$(RUN) -m pip install --quiet -c constraints.txt -e ".[docs]"
	$(RUN) -m sphinx -W --keep-going -q docs docs/_build
	@echo "docs/_build/index.html"

# On a machine with an NVIDIA GPU: torch from PyPI, as installed above, is built for CUDA.
# Tests that have not begun after GPU_SECONDS are skipped, and the page says how many, so
# that all of it takes less than six minutes.
gpu: $(STAMP)
	mkdir -p output
	HVPOPT_DEVICE=cuda HVPOPT_SECONDS=$(GPU_SECONDS) $(RUN) -m pytest \
		-n $(GPU_PROCESSES) --dist load --junitxml=output/gpu_tests.xml $(PYTEST_OPTIONS); \
	status=$$?; $(RUN) benchmarks/gpu.py --tests output/gpu_tests.xml && exit $$status

clean:
	rm -rf $(VENV) .versions build dist output docs/_build docs/reference/generated \
		.pytest_cache .mypy_cache .ruff_cache .coverage
