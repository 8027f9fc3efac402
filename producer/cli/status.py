"""`draftmill status`: all batches, or one, once or until it is complete."""

from __future__ import annotations

import shlex
import time
from dataclasses import asdict

import click
import redis as redis_py

from ..client.follower import Follower, known
from ..client.patience import Patience
from ..client.shares import Share, shares
from ..output.summary import count
from ..queue import batches, fleet
from ..queue.batches import BatchStatus
from ..queue.connect import connect
from ..queue.fleet import Spent
from ..queue.rest import duty
from . import options
from .progress import BatchProgress, Speed, describe_worker, rates, speed
from .report import batch_report, print_json, print_table, user_report, word

MOST_LISTED = 100
"""Batches that a list shows unless all are asked for."""


@click.command("status")
@options.batch(required=False)
@click.option("--watch", is_flag=True, help="Show progress until BATCH is complete.")
@click.option("--all", "is_all", is_flag=True, help=f"List all batches, not the newest {MOST_LISTED}; --json does.")
@click.option("--users", is_flag=True, help="Show tokens and watt-hours of each user so far.")
@options.as_json
@options.redis_url
def status_command(
    batch: str | None, watch: bool, is_all: bool, users: bool, as_json: bool, redis_url: str | None
) -> None:
    """List the batches, the newest first, or show one, or who had how much.

    With --json an object is printed for BATCH, and for each of its changes with --watch; without BATCH a list of all.

    \b
    Examples:
      draftmill status
      draftmill status batch_0123456789abcdef01234567 --watch
      draftmill status --users
      draftmill status --json | jq -r '.[] | select(.state == "running").batch'
    """
    if watch and batch is None:
        raise click.UsageError("--watch needs a BATCH; `draftmill status` lists them")
    if is_all and batch is not None:
        raise click.UsageError("--all lists batches: leave BATCH out")
    if users and batch is not None:
        raise click.UsageError("--users is about all batches; leave out BATCH")
    redis = connect(redis_url)
    if users:
        _users(fleet.spent(redis), as_json)
    elif batch is not None:
        state = known(redis, batch)
        if watch:
            state = _watch(redis, state, as_json)
        _print(redis, state) if as_json else _show(redis, state)
    elif as_json:
        print_json([batch_report(state) for state in batches.list_batches(redis)])
    else:
        names = batches.newest(redis, None if is_all else MOST_LISTED + 1)
        _list(redis, batches.statuses(redis, names if is_all else names[:MOST_LISTED]))
        if not is_all and len(names) > MOST_LISTED:
            click.echo(f"The newest {MOST_LISTED}; draftmill status --all lists the older ones too")


def _watch(redis: redis_py.Redis, state: BatchStatus, as_json: bool) -> BatchStatus:
    """Shows each new state until the batch is complete; returns the last one."""
    shown = None
    with BatchProgress(redis, *state.pairs) as progress:
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
    by_pair = [asdict(share) for share in shares(redis, state)]
    print_json(batch_report(state, speed(redis, *state.pairs)) | {"by_pair": by_pair})


def _list(redis: redis_py.Redis, states: list[BatchStatus]) -> None:
    if not states:
        click.echo("No batches here. Make one: draftmill submit prompts.jsonl")
        return
    rows = [
        (
            state.id,
            word(state),
            f"{state.ended:,}/{state.total:,}",
            f"{state.failed:,}",
            ", ".join(state.pairs),
            state.source,
        )
        for state in states
    ]
    print_table(("BATCH", "STATE", "ENDED", "FAILED", "PAIR", "SOURCE"), rows)
    if (live := speed(redis)).workers:
        click.echo(" · ".join([f"{count(len(live.workers), 'worker')} live", *rates(live)]))


def _users(spent: list[Spent], as_json: bool) -> None:
    if as_json:
        print_json([user_report(found) for found in spent])
        return
    if not spent:
        click.echo("Nobody had any tokens here")
        return
    rows = [
        (f"{found.prompt_tokens:,}", f"{found.generated_tokens:,}", _watt_hours(found), found.user) for found in spent
    ]
    print_table(("PROMPT TOKENS", "GENERATED", "WATT-HOURS", "USER"), rows)
    metered, generated = sum(found.metered_tokens for found in spent), sum(found.generated_tokens for found in spent)
    click.echo(
        f"Watt-hours are of machines whose power is known: {metered:,} of {generated:,} generated tokens are theirs"
    )


def _watt_hours(found: Spent) -> str:
    return "-" if found.watt_hours is None else f"{found.watt_hours:,.3f}"


def _show(redis: redis_py.Redis, state: BatchStatus) -> None:
    live = speed(redis, *state.pairs)
    created = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(state.created))
    missing = max(0, state.total - state.submitted)
    lines = {
        "batch": state.id,
        "state": word(state),
        "source": state.source,
        "pair": ", ".join(state.pairs),
        "priority": state.priority,
        "user": state.user,
        "submitted": created,
        "lines": f"{state.total:,}",
        "ended": f"{state.done:,} done, {state.failed:,} failed, {state.cancelled:,} cancelled",
        "open": f"{state.running:,} running, {state.queued:,} queued, {missing:,} not submitted yet",
        "tokens": f"{state.prompt_tokens:,} prompt, {state.completion_tokens:,} generated",
        "workers": " · ".join([f"{len(live.workers)} live", *rates(live)]) if live.workers else "none live",
    }
    if not live.workers and not state.complete and len(state.pairs) == 1:
        lines["workers"] += f"; start one with: draftmill worker --pair {shlex.quote(state.pair)}"
    if state.failed:
        lines["failures"] = f"draftmill failures {state.id} says why"
    if unfed := duty.unfed(redis, state.id):
        lines["feeder"] = unfed
    for name, value in lines.items():
        click.echo(f"{name:<10}{value}")
    if len(state.pairs) > 1 and not state.complete:
        _show_shares(shares(redis, state), live)
    for worker in live.workers:
        click.echo(f"{'':<10}{describe_worker(worker)}")


def _show_shares(shares: list[Share], live: Speed) -> None:
    """A line for each pair of a batch that has several: what is left, and who works on it."""
    for share in shares:
        workers = sum(worker.pair == share.pair for worker in live.workers)
        at_work = count(workers, "live worker") if workers else "no live worker"
        if share.queued and not workers:
            at_work += f"; start one with: draftmill worker --pair {shlex.quote(share.pair)}"
        click.echo(f"{'':<10}{share.pair}: {share.running:,} running, {share.queued:,} queued, {at_work}")
