"""`draftmill run`: the whole path on this machine: Redis, a worker, submit, collect, progress."""

from __future__ import annotations

import shlex
import signal
import sys
import time
from pathlib import Path
from typing import Any, Never

import click
import redis as redis_py

from . import batches, collect, options, server
from .batches import BatchInfo, BatchStatus
from .contract import PRIORITIES, JobBody
from .dataset import BadLine, Dataset, Survey
from .errors import FAILED_ITEMS, Interrupted, UserError
from .local_worker import LocalWorker
from .output import Output, check_writable
from .progress import BatchProgress
from .submit import submit


@click.command()
@options.dataset
@click.option("-o", "--output", "out", required=True, type=click.Path(path_type=Path), help="File of results.")
@click.option("--sorted", "in_order", is_flag=True, help="Write results in input order, not as they finish.")
@click.option("--force", is_flag=True, help="Overwrite OUT if it holds something else.")
@options.redis_url
@click.pass_context
def run(
    context: click.Context,
    input: str,
    out: Path,
    in_order: bool,
    force: bool,
    redis_url: str | None,
    **given: Any,
) -> None:
    """Run the prompts of INPUT on this machine.

    INPUT is JSONL, or - for standard input; results go to OUT. Starts what it needs: a private Redis, and a
    worker that loads the model once. Failed and bad lines go to OUT's error file, <stem>.errors.jsonl.
    Interrupted, the same command goes on where it stopped.

    \b
    Example:
      echo '{"prompt": "Why is the sky blue?"}' > prompts.jsonl
      draftmill run prompts.jsonl -o results.jsonl --max-tokens 100
    """
    check_writable(out)
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is signal.SIG_DFL:
            signal.signal(number, _interrupt)
    dataset, survey = options.read(input, **given)
    with Output(out, survey.batch, force) as output:
        if _is_complete(output, in_order):
            click.echo(f"{survey.batch} is complete already", err=True)
        else:
            try:
                _run(dataset, survey, output, in_order, redis_url)
            except KeyboardInterrupt:
                raise Interrupted(
                    f"interrupted: {output.manifest.done} of {survey.good} results are in {out}; "
                    f"go on with: draftmill {shlex.join(sys.argv[1:])}"
                ) from None
        click.echo(where(output))
        if output.manifest.failed or output.manifest.bad:
            context.exit(FAILED_ITEMS)


def where(output: Output) -> str:
    """What lies in which file."""
    manifest = output.manifest
    text = f"{count(manifest.done, 'result')} in {output.path}"
    if manifest.failed or manifest.bad:
        text += f", {manifest.failed} failed and {count(manifest.bad, 'bad line')} in {output.errors_path}"
    return text


def count(number: int, noun: str) -> str:
    """`1 line`, `2 lines`."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def refuse_cancelled(state: BatchStatus | None) -> None:
    """A cancelled batch stays cancelled."""
    if state and state.is_cancelled:
        raise UserError(
            f"{state.id} was cancelled; `draftmill collect {state.id} -o OUT` writes what it has, "
            "a change to the file or its parameters makes a new batch"
        )


def _is_complete(output: Output, in_order: bool) -> bool:
    return output.manifest.complete and (output.manifest.in_order or not in_order)


def _run(dataset: Dataset, survey: Survey, output: Output, in_order: bool, redis_url: str | None) -> None:
    redis_url = server.resolve(redis_url)
    redis = server.connect(redis_url)
    before = batches.status(redis, survey.batch)
    refuse_cancelled(before)
    if before and before.collected and not output.manifest.complete:  # into a file that is no longer here
        batches.forget(redis, survey.batch)
        before = None
    collect.reconcile(redis, output)
    _write_bad_lines(dataset, survey, output)
    if not output.manifest.complete and (before is None or not before.complete):
        _generate(redis, redis_url, dataset, survey, output, before.completion_tokens if before else 0)
    collect.step(redis, output)
    numbers = {item.custom_id: item.line for item in dataset if isinstance(item, JobBody)} if in_order else None
    collect.finish(redis, output, in_order, numbers=numbers)


def _generate(
    redis: redis_py.Redis,
    redis_url: str,
    dataset: Dataset,
    survey: Survey,
    output: Output,
    tokens_before: int,
) -> None:
    batch = BatchInfo(survey.batch, dataset.pair, PRIORITIES[1], survey.good, dataset.name, server.user(redis))
    began = time.monotonic()
    with (
        LocalWorker(redis, redis_url, dataset.pair, survey.batch) as worker,
        BatchProgress(redis, dataset.pair) as progress,
    ):

        def tick(state: BatchStatus) -> None:
            worker.check()
            progress(state)

        progress.say(f"loading {dataset.pair}")
        worker.wait_until_ready(redis)
        for line in worker.said():  # which draft it has, and whether something slows it down
            progress.note(line)
        ready = time.monotonic()
        submit(redis, dataset, batch, lambda _: tick(collect.step(redis, output)))
        state = collect.follow(redis, output, tick)
        tokens, seconds = state.completion_tokens - tokens_before, time.monotonic() - ready
    speed = f"{tokens:,} tokens in {seconds:.1f} s ({tokens / seconds:,.1f} tokens/s)"
    click.echo(f"{speed}, after {ready - began:.1f} s of loading")


def _write_bad_lines(dataset: Dataset, survey: Survey, output: Output) -> None:
    if survey.bad and not output.manifest.bad_written:
        for item in dataset:
            if isinstance(item, BadLine):
                output.write_bad(item)
        output.manifest.bad_written = True
        output.save()
        click.echo(f"{count(survey.bad, 'bad line')} left out, first: {survey.first_bad}", err=True)


def _interrupt(*_: object) -> Never:
    raise KeyboardInterrupt
