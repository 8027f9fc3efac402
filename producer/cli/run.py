"""`draftmill run`: the whole path on this machine: Redis, a worker, submit, collect, progress."""

from __future__ import annotations

import shlex
import sys
import time
from dataclasses import asdict, dataclass, replace
from typing import Any

import click
import redis as redis_py

from ..client.collect import Collector
from ..client.follower import Follower
from ..client.hook import Hook
from ..client.patience import Patience
from ..client.submission import Feed, Submission, plan, refuse_cancelled
from ..input import parameters
from ..input.dataset import key_of
from ..input.notes import of_answers
from ..output import places
from ..output.output import Output
from ..output.summary import count, where
from ..queue import batches, ending
from ..queue.connect import connect, resolve, user_of
from ..queue.errors import FAILED_ITEMS, Interrupted, UserError
from ..queue.urls import shown
from ..queue.wire import JobBody
from . import options
from .dry_run import preview
from .local_worker import LocalWorker
from .progress import BatchProgress, Moving
from .report import output_report, print_json, tell

READY_SECONDS = 0.2
"""Between two looks whether the worker has loaded its model."""


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

    submission: Submission
    output: Output
    in_order: bool
    retry_failed: bool
    reason: str
    worker_options: tuple[str, ...] = ()

    @property
    def has_all(self) -> bool:
        """Whether each line has ended."""
        return self.output.ended >= self.submission.survey.good

    @property
    def is_done(self) -> bool:
        """Whether OUT is all that was asked for."""
        output = self.output
        is_whole = output.is_packed and output.errors.bad_ids == {bad.id for bad in self.submission.survey.bad_lines}
        in_order = output.manifest.in_order or not self.in_order
        return self.has_all and is_whole and in_order and not self.retries

    @property
    def retries(self) -> bool:
        """Whether lines that failed are to run again."""
        return self.retry_failed and bool(self.output.errors.failed_for(self.reason))

    def finish(self) -> None:
        """Makes of OUT what was asked for, once it has all."""
        if self.in_order:
            items = self.submission.dataset
            self.output.sort({key_of(item.custom_id): item.line for item in items if isinstance(item, JobBody)})
        self.output.finish()


@click.command()
@options.dataset
@options.out
@click.option("--sorted", "in_order", is_flag=True, help="Write results in input order, not as they finish.")
@options.lora
@options.retry_failed
@click.option("--force", is_flag=True, help="Overwrite OUT if it holds something else.")
@options.notify
@options.dry_run
@options.as_json
@options.redis_url
@click.pass_context
def run(
    context: click.Context,
    input: str,
    out: str,
    in_order: bool,
    retry_failed: bool,
    reason: str,
    force: bool,
    dry_run: bool,
    as_json: bool,
    redis_url: str | None,
    lora: options.Lora,
    hook: Hook | None,
    **given: Any,
) -> None:
    """Run the prompts of INPUT on this machine, and write the results to OUT.

    Starts what it needs: a private Redis, and a worker that loads the model once. With --adapters the worker has LoRA
    adapters, which lines name; with --adapter all lines have the one in that folder.

    INPUT is JSON lines, CSV (its first line names the columns), Parquet, a folder that Hugging Face's `datasets` saved
    (FOLDER/SPLIT if it has several splits), or a folder of text files (*.txt, or as 'FOLDER/*.md' says): a row for
    each, with the columns id (its name), path and text. JSON lines and CSV may be compressed by gzip or zstd. It may be
    the URL of a file (https://, s3://, gs://, hf://), which is fetched once, or - for standard input.

    A row is a prompt with its parameters, or, with --template, columns of which the template makes the prompt. All
    columns of a row together are called row, as in {{ row | tojson }} or {{ row["Its text"] }}. A row whose template or
    condition fails is a bad line.

    OUT is one line of JSON for each result, in the form of the OpenAI Batch API, or a table if its name ends in .csv or
    .parquet. It grows while the batch runs; a Parquet file is written at the end, and until then its rows are in
    OUT.partial.jsonl. Failed and bad lines go to OUT's error file, OUT.errors.jsonl. OUT may be a URL (s3://, gs://,
    hf://datasets/…): results grow on this machine, and are sent there at the end.

    Interrupted, or killed at any moment, the same command goes on where it stopped. Beside OUT lies a manifest,
    OUT.draftmill.json, that says of which batch OUT is. Other lines or other parameters are another batch, and OUT is
    not overwritten with one unless you say --force.

    \b
    Examples:
      echo '{"prompt": "Why is the sky blue?"}' > prompts.jsonl
      draftmill run prompts.jsonl -o results.jsonl --max-tokens 100
      draftmill run reviews.csv -o moods.csv --template 'Mood of this review? {{ text }}' --keep text --dry-run
      draftmill run prompts.jsonl -o results.csv --sorted
      draftmill run prompts.jsonl -o results.jsonl --adapter adapters/sql
      draftmill run prompts.jsonl -o results.csv --retry-failed       # only what failed
      draftmill run prompts.jsonl -o results.jsonl --json | jq .done
      draftmill run prompts.jsonl -o hf://datasets/ann/answers/results.parquet
      draftmill run prompts.jsonl -o results.jsonl --notify 'say the batch is ready'
    """
    places.check(out)
    places.check_apart(input, out)
    given["adapter"] = lora.default
    dataset, survey = options.read(input, **given)
    options.say_notes(survey.notes.lines())
    submission = plan(dataset, survey, user_of(redis_url), parameters=parameters.of(given))
    batch = submission.info
    if batch.others:
        raise UserError(
            f"the lines of {batch.source} are for {len(batch.pairs)} pairs ({', '.join(batch.pairs)}), and run starts "
            "a worker of one; draftmill submit takes them, beside a worker of each, or --pair and --models NAME=PAIR "
            "give them one"
        )
    if dry_run:
        preview(submission, redis_url)
        return
    with (
        places.place_of(out, force, Moving()) as place,
        Output(place, batch.id, force, batch.source, batch.parameters, survey.content, survey.keys) as output,
    ):
        job, generated = Run(submission, output, in_order, retry_failed, reason, lora.options), Generated()
        if cancelled := output.errors.failed_with(ending.CANCELLED):
            _take_back(job, cancelled, redis_url)
        if job.is_done:
            click.echo(f"{batch.id} is complete already", err=True)
        else:
            try:
                with output.sent_if_cut():
                    generated = _run(job, redis_url)
            except KeyboardInterrupt:
                raise Interrupted(
                    f"interrupted: {output.done} of {survey.good} results are in {place.shown(output.holder)}; "
                    f"go on with: draftmill {shlex.join(shown(sys.argv[1:]))}"
                ) from None
            finally:
                options.say_notes(of_answers(output.notes))
        output.send()
        if as_json:
            notes = {"notes": [*survey.notes.lines(), *of_answers(output.notes)]}
            print_json(output_report(output, job.has_all) | asdict(generated) | notes)
        else:
            if generated.seconds:
                click.echo(generated)
            click.echo(where(output))
        if job.has_all:
            tell(hook, output)
        if output.failed or output.bad:
            context.exit(FAILED_ITEMS)


def _take_back(job: Run, cancelled: set[int], redis_url: str | None) -> None:
    """Lines that were cancelled run again, unless Redis still has the batch as cancelled: then UserError says so."""
    refuse_cancelled(batches.status(connect(resolve(redis_url)), job.submission.info.id))
    for key in cancelled:
        job.output.errors.drop(key)
    job.output.errors.tidy()


def _run(job: Run, redis_url: str | None) -> Generated:
    """Generates what OUT lacks."""
    survey, output = job.submission.survey, job.output
    output.write_all_bad(survey.bad_lines)
    if survey.bad:
        click.echo(f"{count(survey.bad, 'bad line')} left out, first: {survey.first_bad}", err=True)
    generated = Generated()
    if not job.has_all or job.retries:
        redis_url = resolve(redis_url)
        generated = _generate(job, connect(redis_url), redis_url)
    job.finish()
    return generated


def _generate(job: Run, redis: redis_py.Redis, redis_url: str) -> Generated:
    """Follows the batch from one end to the other, with a worker of its own."""
    submission, output = job.submission, job.output
    batch, lines = submission.info, submission.survey.good
    with BatchProgress(redis, *batch.pairs) as progress:
        patience = Patience(redis, progress.note)
        with Collector(Follower(patience, batch.id), output) as collector:
            before = batches.status(redis, batch.id)
            refuse_cancelled(before)
            if before:
                collector.step()  # results that no OUT has yet
            if job.retry_failed:
                output.errors.drop_failures(job.reason)
            patience(_let_be, patience.redis, batch.id, job)
            if job.has_all:
                return Generated()
            began = time.monotonic()
            with LocalWorker(redis, redis_url, batch.pair, batch.id, job.worker_options) as worker:
                while not patience(worker.is_ready, patience.redis):
                    worker.check()
                    progress.say(f"loading {batch.pair}")
                    time.sleep(READY_SECONDS)
                for line in worker.said():  # which draft it has, and whether something slows it down
                    progress.note(line)
                ready = time.monotonic()
                feed = Feed(submission, patience, output, job.retry_failed)
                for state in collector.until(lines, feed):
                    worker.check()
                    progress(replace(state, total=lines, done=output.done, failed=output.failed, cancelled=0))
                seconds = time.monotonic() - ready
            after = patience(batches.status, patience.redis, batch.id)
            patience(_let_be, patience.redis, batch.id, job)  # OUT has all: nothing of it is to be done
            tokens = (after.completion_tokens if after else 0) - (before.completion_tokens if before else 0)
            return Generated(max(0, tokens), seconds, ready - began)


def _let_be(redis: redis_py.Redis, batch: str, job: Run) -> None:
    """Takes lines that OUT has, from another Redis, out of this one's queue, whoever queued them there.

    Those that run go on, and their results are acknowledged if they come in time.
    """
    output = job.output
    failed = output.errors.failed
    there = [
        (found, key_of(found.custom_id) in failed)
        for found in ending.open_jobs(redis, batch)
        if output.has(found.custom_id)
    ]
    if there or job.has_all:
        ending.drop(redis, batch, there, is_last=job.has_all)
