"""`draftmill run`: the whole path on this machine: Redis, a worker, submit, collect, progress."""

from __future__ import annotations

import shlex
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import click
import redis as redis_py

from ..client.submission import refuse_cancelled, submit
from ..input import parameters
from ..input.dataset import BadLine, Dataset, Survey
from ..output import collect
from ..output.files import check_apart, check_writable
from ..output.formats import format_of
from ..output.output import Output, errors_of
from ..queue import batches
from ..queue.batches import BatchInfo, BatchStatus
from ..queue.connect import connect, resolve, user
from ..queue.errors import FAILED_ITEMS, Interrupted, UserError, heed_signals
from ..queue.urls import shown
from ..queue.wire import PRIORITIES, JobBody
from . import options
from .dry_run import preview
from .local_worker import LocalWorker
from .progress import BatchProgress
from .report import count, output_report, print_json, where


@dataclass(frozen=True)
class Generated:
    """What one call generated: tokens, the seconds that took, and those of loading the model before."""

    tokens: int = 0
    seconds: float = 0.0
    loading_seconds: float = 0.0

    def __str__(self) -> str:
        speed = self.tokens / self.seconds
        return (
            f"{self.tokens:,} tokens in {self.seconds:.1f} s ({speed:,.1f} tokens/s), "
            f"after {self.loading_seconds:.1f} s of loading"
        )


@dataclass(frozen=True)
class Run:
    """What `run` was asked to do."""

    dataset: Dataset
    survey: Survey
    output: Output
    parameters: dict[str, Any]
    in_order: bool
    retry_failed: bool

    @property
    def is_done(self) -> bool:
        """Whether OUT has all that was asked for."""
        manifest = self.output.manifest
        again = self.retry_failed and manifest.failed
        return manifest.complete and (manifest.in_order or not self.in_order) and not again

    @property
    def numbers(self) -> dict[str, int]:
        """The line number of each custom_id."""
        return {item.custom_id: item.line for item in self.dataset if isinstance(item, JobBody)}


@click.command()
@options.dataset
@click.option("-o", "--output", "out", required=True, type=click.Path(path_type=Path), help="File of results.")
@click.option("--sorted", "in_order", is_flag=True, help="Write results in input order, not as they finish.")
@options.retry_failed
@click.option("--force", is_flag=True, help="Overwrite OUT if it holds something else.")
@options.dry_run
@options.as_json
@options.redis_url
@click.pass_context
def run(
    context: click.Context,
    input: str,
    out: Path,
    in_order: bool,
    retry_failed: bool,
    force: bool,
    dry_run: bool,
    as_json: bool,
    redis_url: str | None,
    **given: Any,
) -> None:
    """Run the prompts of INPUT on this machine, and write the results to OUT.

    Starts what it needs: a private Redis, and a worker that loads the model once.

    INPUT is JSON lines, CSV (its first line names the columns), Parquet, a folder that Hugging Face's `datasets` saved
    (FOLDER/SPLIT if it has several splits), or a folder of text files (*.txt, or as 'FOLDER/*.md' says): a row for
    each, with the columns id (its name), path and text. JSON lines and CSV may be compressed by gzip or zstd. It may be
    - for standard input.

    A row is a prompt with its parameters, or, with --template, columns of which the template makes the prompt. All
    columns of a row together are called row, as in {{ row | tojson }} or {{ row["Its text"] }}. A row whose template or
    condition fails is a bad line.

    OUT is one line of JSON for each result, in the form of the OpenAI Batch API, or a table if its name ends in .csv or
    .parquet. It grows while the batch runs; a Parquet file is written at the end, and until then its rows are in
    OUT.partial.jsonl. Failed and bad lines go to OUT's error file, OUT.errors.jsonl.

    Interrupted, or killed at any moment, the same command goes on where it stopped. Beside OUT lies a manifest,
    OUT.draftmill.json, that says how far it is. Other lines or other parameters are another batch, and OUT is not
    overwritten with one unless you say --force.

    \b
    Examples:
      echo '{"prompt": "Why is the sky blue?"}' > prompts.jsonl
      draftmill run prompts.jsonl -o results.jsonl --max-tokens 100
      draftmill run reviews.csv -o moods.csv --template 'Mood of this review? {{ text }}' --keep text --dry-run
      draftmill run prompts.jsonl -o results.csv --sorted
      draftmill run prompts.jsonl -o results.csv --retry-failed       # only what failed
      draftmill run prompts.jsonl -o results.jsonl --json | jq .done
    """
    format_of(out)
    check_writable(out)
    check_apart(input, out, errors_of(out))
    heed_signals()
    dataset, survey = options.read(input, redis_url=redis_url, **given)
    if dry_run:
        preview(dataset, survey, redis_url)
        return
    about = parameters.of(given)
    with Output(out, survey.batch, force, dataset.name, about) as output:
        job, generated = Run(dataset, survey, output, about, in_order, retry_failed), Generated()
        if job.is_done:
            click.echo(f"{survey.batch} is complete already", err=True)
        else:
            try:
                generated = _run(job, redis_url)
            except KeyboardInterrupt:
                raise Interrupted(
                    f"interrupted: {output.manifest.done} of {survey.good} results are in {output.holder}; "
                    f"go on with: draftmill {shlex.join(shown(sys.argv[1:]))}"
                ) from None
        if as_json:
            print_json(output_report(output) | asdict(generated))
        else:
            if generated.seconds:
                click.echo(generated)
            click.echo(where(output))
        if output.manifest.failed or output.manifest.bad:
            context.exit(FAILED_ITEMS)


def _run(job: Run, redis_url: str | None) -> Generated:
    batch, output, generated = job.survey.batch, job.output, Generated()
    if output.manifest.complete and not job.retry_failed:  # only its order is asked for
        output.sort(job.numbers)
        output.complete()
        return generated
    redis_url = resolve(redis_url)
    redis = connect(redis_url)
    before = batches.status(redis, batch)
    refuse_cancelled(before)
    if before and before.collected and before.complete and output.manifest.untouched:  # into a file that is gone
        batches.forget(redis, batch)
        before = None
    if before is None and output.manifest.complete and job.retry_failed:
        raise UserError(f"this Redis no longer knows {batch}; to run all of its lines anew, say --force")
    collect.reconcile(redis, output)
    _write_bad_lines(job)
    again = job.retry_failed and before and before.failed + before.cancelled
    while True:
        if before is None or not before.complete or again:
            generated = _generate(redis, redis_url, job, before)
        collect.step(redis, output)
        if collect.finish(redis, output, job.in_order, numbers=job.numbers if job.in_order else None):
            return generated
        before, again = batches.status(redis, batch), False  # somebody else queued failures again


def _generate(redis: redis_py.Redis, redis_url: str, job: Run, before: BatchStatus | None) -> Generated:
    dataset, survey, output = job.dataset, job.survey, job.output
    batch = BatchInfo(survey.batch, dataset.pair, PRIORITIES[1], survey.good, dataset.name, user(redis), job.parameters)
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
        submit(redis, dataset, batch, lambda _: tick(collect.step(redis, output)), job.retry_failed)
        state = collect.follow(redis, output, tick)
        tokens_before = before.completion_tokens if before else 0
        return Generated(state.completion_tokens - tokens_before, time.monotonic() - ready, ready - began)


def _write_bad_lines(job: Run) -> None:
    survey, output = job.survey, job.output
    if survey.bad and not output.manifest.bad_written:
        for item in job.dataset:
            if isinstance(item, BadLine):
                output.write_bad(item)
        output.manifest.bad_written = True
        output.save()
        click.echo(f"{count(survey.bad, 'bad line')} left out, first: {survey.first_bad}", err=True)
