# draftmill in two commands: `make run` runs the example prompts, `make test` runs every test.
# Both first make .venv ready (`make setup`), which takes a while once and nothing afterwards.
# `make soak` runs the fault suite of queue and workers at full size (about 25 minutes) and prints its table.

RESULTS := out/results.jsonl

.PHONY: run test test-gpu soak lint setup clean

run: setup
	@mkdir -p $(dir $(RESULTS))
	.venv/bin/draftmill run producer/examples/prompts.jsonl -o $(RESULTS)
	@.venv/bin/python producer/examples/show.py $(RESULTS)
	@echo "These answers, with their token counts, are in $(RESULTS)."

# Two processes, for many tests wait on others' processes, and one BLAS thread in each: the models of the tests are so
# small that a second one only waits.
test: lint
	LD_PRELOAD=$$(.venv/bin/python -m draftmill.worker.blas) OPENBLAS_NUM_THREADS=1 \
	.venv/bin/python -m pytest -n 2 --dist worksteal

# What generates, on the GPU that MLX finds here: whole outputs against mlx-lm. Kernels run as they are, not emulated.
test-gpu: setup
	.venv/bin/python -c 'import sys, mlx.core as mx; sys.exit(mx.default_device() == mx.cpu and "MLX finds no GPU here")'
	MLX_ENABLE_TF32=0 .venv/bin/python -m pytest -n 4 --dist worksteal -k "not emulated" tests/engine tests/kernels

soak: setup
	.venv/bin/python -m tests.farm.soak

lint: setup
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/pyright --project .
	.venv/bin/lint-imports --no-cache

setup: .venv/ready

.venv/ready: pyproject.toml deploy/setup.sh
	@deploy/setup.sh
	@touch $@

clean:
	rm -rf .venv out
