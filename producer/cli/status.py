"""`draftmill status`: all batches, or one, once or until it is complete."""

from __future__ import annotations

import shlex
import time

import click
import redis as redis_py

from ..client.follower import Follower, known
from ..client.patience import Patience
from ..output.summary import count
from ..queue import batches
from ..queue.batches import BatchStatus
from ..queue.connect import connect
from . import options
from .progress import BatchProgress, describe_worker, rates, speed
from .report import batch_report, print_json, print_table, word


@click.command("status")
@options.batch(required=False)
@click.option("--watch", is_flag=True, help="Show progress until BATCH is complete.")
@options.as_json
@options.redis_url
def status_command(batch: str | None, watch: bool, as_json: bool, redis_url: str | None) -> None:
    """List the batches, or show one.

    With --json an object is printed for BATCH, and for each of its changes with --watch; without BATCH a list of all.

    \b
    Examples:
      draftmill status
      draftmill status batch_0123456789abcdef01234567 --watch
      draftmill status --json | jq -r '.[] | select(.state == "running").batch'
    """
    if watch and batch is None:
        raise click.UsageError("--watch needs a BATCH; `draftmill status` lists them")
    redis = connect(redis_url)
    if batch is not None:
        state = known(redis, batch)
        if watch:
            state = _watch(redis, state, as_json)
        _print(redis, state) if as_json else _show(redis, state)
    elif as_json:
        print_json([batch_report(state) for state in batches.list_batches(redis)])
    else:
        _list(redis, batches.list_batches(redis))


def _watch(redis: redis_py.Redis, state: BatchStatus, as_json: bool) -> BatchStatus:
    """Shows each new state until the batch is complete; returns the last one."""
    shown = None
    with BatchProgress(redis, state.pair) as progress:
        patience = Patience(redis, progress.note)
        follower = Follower(patience, state.id)
        for state in follower.states():
            if not as_json:
                progress(state)
            elif state != shown and not state.complete:
                patience(_print, patience.redis, state)
                shown = state
    return state


def _print(redis: redis_py.Redis, state: BatchStatus) -> None:
    print_json(batch_report(state, speed(redis, state.pair)))


def _list(redis: redis_py.Redis, states: list[BatchStatus]) -> None:
    if not states:
        click.echo("No batches here. Make one: draftmill submit prompts.jsonl")
        return
    rows = [
        (state.id, word(state), f"{state.ended:,}/{state.total:,}", f"{state.failed:,}", state.pair, state.source)
        for state in states
    ]
    print_table(("BATCH", "STATE", "ENDED", "FAILED", "PAIR", "SOURCE"), rows)
    if (live := speed(redis)).workers:
        click.echo(" · ".join([f"{count(len(live.workers), 'worker')} live", *rates(live)]))


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
        "workers": " · ".join([f"{len(live.workers)} live", *rates(live)]) if live.workers else "none live",
    }
    if not live.workers and not state.complete:
        lines["workers"] += f"; start one with: draftmill worker --pair {shlex.quote(state.pair)}"
    for name, value in lines.items():
        click.echo(f"{name:<10}{value}")
    for worker in live.workers:
        click.echo(f"{'':<10}{describe_worker(worker)}")
