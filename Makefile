# draftmill in two commands: `make run` runs the example prompts, `make test` runs every test.
# `make run` first fills .venv with what running needs (`make setup`); `make test` and `make lint` add their tools to it.
# Both take a while once and nothing afterwards.
# `make soak` runs the fault suite of queue and workers at full size (about 40 minutes), then 200 seeds of random load
# through the engine (about 10), and prints a table.
# `make lock` renews deploy/lock after a change of dependencies; deploy/lock/renew.py tells of its OPTIONS.

RESULTS := out/results.jsonl
RUN := tools producer worker run

# Bytecode is kept even where the environment says otherwise: without it, each of the hundreds of processes that tests
# start compiles for two seconds what it imports.
export PYTHONDONTWRITEBYTECODE =

.PHONY: run test test-gpu soak lint lock setup clean

run: setup
	@mkdir -p $(dir $(RESULTS))
	.venv/bin/draftmill run producer/examples/prompts.jsonl -o $(RESULTS)
	@.venv/bin/python producer/examples/show.py $(RESULTS)
	@echo "These answers, with their token counts, are in $(RESULTS)."

# Three processes keep two cores busy, for many tests wait on others' processes. One BLAS thread in each: the models of
# the tests are so small that a second one only waits.
test: lint
	LD_PRELOAD=$$(.venv/bin/python -m draftmill.worker.blas) OPENBLAS_NUM_THREADS=1 \
	.venv/bin/python -m pytest -n 3 --dist worksteal

# What generates, on the GPU that MLX finds here: whole outputs against mlx-lm. Kernels run as they are, not emulated.
# Each test is named as it ends, so that a run that is cut off still says what failed.
test-gpu: .venv/dev
	.venv/bin/python -c 'import sys, mlx.core as mx; sys.exit(mx.default_device() == mx.cpu and "MLX finds no GPU here")'
	MLX_ENABLE_TF32=0 .venv/bin/python -m pytest -vv -n auto --maxschedchunk 1 -k "not emulated" tests/engine tests/kernels

soak: .venv/dev
	.venv/bin/python -m tests.farm.soak

lint: .venv/dev
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/pyright --project .
	.venv/bin/lint-imports --no-cache
	.venv/bin/actionlint .github/workflows/*.yml

lock: .venv/dev
	.venv/bin/python deploy/lock/renew.py $(OPTIONS)

setup: .venv/ready

.venv/ready: pyproject.toml deploy/setup.sh $(RUN:%=deploy/lock/%.txt)
	@deploy/setup.sh run
	@touch $@

.venv/dev: .venv/ready deploy/lock/dev.txt
	@deploy/setup.sh dev
	@touch $@

clean:
	rm -rf .venv out
