"""Commands about batches: submit, status, collect, cancel."""

from __future__ import annotations

import shlex
import time
from pathlib import Path
from typing import Any

import click
import redis as redis_py

from . import batches, collect, options, server
from .batches import BatchInfo, BatchStatus
from .contract import PRIORITIES
from .dataset import BadLine
from .errors import FAILED_ITEMS, Interrupted, UserError, denied
from .output import Output, check_writable
from .progress import BatchProgress, speed
from .run import count, refuse_cancelled, where
from .submit import WINDOW, submit


@click.command("submit")
@options.dataset
@click.option("--priority", type=click.Choice(PRIORITIES), default="normal", show_default=True)
@options.redis_url
@click.pass_context
def submit_command(context: click.Context, input: str, priority: str, redis_url: str | None, **given: Any) -> None:
    """Queue the prompts of INPUT; print the batch id.

    INPUT is JSONL, or - for standard input. The same file with the same parameters is the same batch:
    submitting it again queues only what is missing. Bad lines are left out and listed on standard error.

    \b
    Example:
      batch=$(draftmill submit prompts.jsonl --redis-url redis://queue.local)
      draftmill collect $batch -o results.jsonl --follow
    """
    dataset, survey = options.read(input, **given)
    redis = server.connect(redis_url)
    known = batches.status(redis, survey.batch)
    refuse_cancelled(known)
    if survey.bad:
        for item in dataset:
            if isinstance(item, BadLine):
                click.echo(f"Bad {item}", err=True)
    if known and known.collected:
        click.echo(f"Note: it was collected already; draftmill forget {survey.batch} lets it run anew", err=True)
        click.echo(survey.batch)
        return
    if not speed(redis, dataset.pair).workers:
        start = f"draftmill worker --pair {shlex.quote(dataset.pair)}"
        click.echo(f"Note: no live worker serves {dataset.pair}; start one with: {start}", err=True)
    batch = BatchInfo(survey.batch, dataset.pair, priority, survey.good, dataset.name, server.user(redis))
    try:
        submit(redis, dataset, batch, Patience())
    except KeyboardInterrupt:
        raise Interrupted("interrupted; the same command queues the rest") from None
    click.echo(survey.batch)
    if survey.bad:
        context.exit(FAILED_ITEMS)


class Patience:
    """Says once that submitting waits for workers."""

    said = False

    def __call__(self, state: BatchStatus) -> None:
        if state.submitted - state.ended > WINDOW and not self.said:
            self.said = True
            click.echo(f"{WINDOW:,} lines are queued; the others follow as these finish", err=True)


@click.command("collect")
@click.argument("batch", metavar="BATCH")
@click.option("-o", "--output", "out", required=True, type=click.Path(path_type=Path), help="File of results.")
@click.option("--follow", is_flag=True, help="Wait until the batch is complete.")
@click.option("--sorted", "in_order", is_flag=True, help="Put results in input order when the batch is complete.")
@click.option("--leave", is_flag=True, help="Leave the results in Redis for others once OUT has them all.")
@click.option("--force", is_flag=True, help="Overwrite OUT if it holds something else.")
@options.redis_url
@click.pass_context
def collect_command(
    context: click.Context,
    batch: str,
    out: Path,
    follow: bool,
    in_order: bool,
    leave: bool,
    force: bool,
    redis_url: str | None,
) -> None:
    """Write the results that BATCH has so far to OUT.

    Run it again for the rest: OUT never gets a line twice. Failed lines go to <stem>.errors.jsonl.
    Once OUT has all results, Redis drops them, unless you --leave them for others.

    \b
    Example:
      draftmill collect batch_0123456789abcdef01234567 -o results.jsonl --follow
    """
    check_writable(out)
    redis = server.connect(redis_url)
    state = collect.status(redis, batch)
    with Output(out, batch, force) as output:
        try:
            collect.reconcile(redis, output)
            if follow:
                with BatchProgress(redis, state.pair) as progress:
                    state = collect.follow(redis, output, progress)
            else:
                state = collect.step(redis, output)
            if state.complete:
                collect.finish(redis, output, in_order, leave)
        except KeyboardInterrupt:
            raise Interrupted("interrupted; the same command goes on, the batch runs on") from None
        click.echo(where(output))
        if not state.complete:
            click.echo(
                f"{state.total - state.ended:,} of {count(state.total, 'line')} have no result yet; "
                "run the same command again, or add --follow",
                err=True,
            )
        if output.manifest.failed or output.manifest.bad:
            context.exit(FAILED_ITEMS)


@click.command("status")
@click.argument("batch", metavar="[BATCH]", required=False)
@click.option("--watch", is_flag=True, help="Show progress until BATCH is complete.")
@options.redis_url
def status_command(batch: str | None, watch: bool, redis_url: str | None) -> None:
    """List the batches, or show one.

    \b
    Example:
      draftmill status
      draftmill status batch_0123456789abcdef01234567 --watch
    """
    if watch and batch is None:
        raise click.UsageError("--watch needs a BATCH; `draftmill status` lists them")
    redis = server.connect(redis_url)
    if batch is None:
        _list(batches.list_batches(redis))
        return
    state = collect.status(redis, batch)
    if watch:
        with BatchProgress(redis, state.pair) as progress:
            while not state.complete:
                progress(state)
                time.sleep(collect.POLL_SECONDS)
                state = collect.status(redis, batch)
    _show(redis, state)


def _list(states: list[BatchStatus]) -> None:
    if not states:
        click.echo("No batches here. Make one: draftmill submit prompts.jsonl")
        return
    rows = [("BATCH", "STATE", "ENDED", "FAILED", "PAIR", "SOURCE")]
    for state in states:
        ended = f"{state.ended:,}/{state.total:,}"
        rows.append((state.id, word(state), ended, f"{state.failed:,}", state.pair, state.source))
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        click.echo("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def word(state: BatchStatus) -> str:
    """The state of a batch in one word."""
    if state.is_cancelled:
        return "cancelled"
    if state.collected:
        return "collected"
    if state.complete:
        return "complete"
    return "running" if state.running else "queued"


def _show(redis: redis_py.Redis, state: BatchStatus) -> None:
    live = speed(redis, state.pair)
    created = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(state.created))
    missing = max(0, state.total - state.submitted)
    lines = {
        "batch": state.id,
        "state": word(state),
        "source": state.source,
        "pair": state.pair,
        "priority": state.priority,
        "user": state.user,
        "submitted": created,
        "lines": f"{state.total:,}",
        "ended": f"{state.done:,} done, {state.failed:,} failed, {state.cancelled:,} cancelled",
        "open": f"{state.running:,} running, {state.queued:,} queued, {missing:,} not submitted yet",
        "tokens": f"{state.prompt_tokens:,} prompt, {state.completion_tokens:,} generated",
        "workers": f"{live.workers} live, {live.tokens_per_second:,.0f} tokens/s" if live.workers else "none live",
    }
    if not live.workers and not state.complete:
        lines["workers"] += f"; start one with: draftmill worker --pair {shlex.quote(state.pair)}"
    for name, value in lines.items():
        click.echo(f"{name:<10}{value}")


@click.command("cancel")
@click.argument("batch", metavar="BATCH")
@options.redis_url
def cancel_command(batch: str, redis_url: str | None) -> None:
    """Cancel what BATCH has not finished. What is finished can still be collected.

    \b
    Example:
      draftmill cancel batch_0123456789abcdef01234567
    """
    redis = server.connect(redis_url)
    state = collect.status(redis, batch)
    if state.complete:
        click.echo(f"{batch} is complete already")
        return
    try:
        ended = batches.cancel(redis, batch)
    except redis_py.ResponseError as error:
        if not denied(error):
            raise
        click.echo("Cancelled; workers end its lines within seconds")
    else:
        click.echo(f"Cancelled {count(ended, 'queued line')}; running ones end within seconds")


@click.command("forget")
@click.argument("batch", metavar="BATCH")
@options.redis_url
def forget_command(batch: str, redis_url: str | None) -> None:
    """Drop all that Redis holds of BATCH, which must be complete or cancelled. Submitted again, it runs anew.

    \b
    Example:
      draftmill forget batch_0123456789abcdef01234567
    """
    redis = server.connect(redis_url)
    if not collect.status(redis, batch).complete:
        raise UserError(f"{batch} is not complete; `draftmill cancel {batch}` ends what is open")
    batches.forget(redis, batch)
    click.echo(f"Forgot {batch}")
