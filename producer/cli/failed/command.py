"""`draftmill failures`: why lines of a batch failed, and which."""

from __future__ import annotations

import heapq
import shlex
import time
from collections.abc import Mapping
from typing import Any

import click

from ...client.follower import known
from ...queue.batches import BatchStatus
from ...queue.connect import connect
from ...queue.failed.failures import Failure, count, failures
from ...queue.failed.groups import Group, grouped
from ...queue.wire import slug
from .. import options
from ..report import print_json, print_table

Names = Mapping[str, str]
"""Pairs by how keys have them."""


@click.command("failures")
@options.batch()
@click.option("--reason", default="", metavar="TEXT", help="Only those that have TEXT in their code or message.")
@click.option("--pair", default="", metavar="NAME", help="Only those of one pair.")
@click.option("--lines", type=click.IntRange(1), metavar="N", help="List the first N lines instead of the reasons.")
@options.as_json
@options.redis_url
def failures_command(
    batch: str, reason: str, pair: str, lines: int | None, as_json: bool, redis_url: str | None
) -> None:
    """Show why lines of BATCH failed: how many for each reason and pair, or which with --lines.

    Reasons that differ in numbers and quoted words are shown as one. Failures stay as long as their batch, also after
    they were collected, until their lines are queued again: `draftmill submit INPUT --retry-failed --reason TEXT`.

    \b
    Examples:
      draftmill failures batch_0123456789abcdef01234567
      draftmill failures batch_0123456789abcdef01234567 --lines 20 --reason lost_leases
      draftmill failures batch_0123456789abcdef01234567 --json | jq '.[0].workers'
    """
    redis = connect(redis_url)
    state = known(redis, batch)
    names = {slug(name): name for name in state.pairs}
    found = (one for one in failures(redis, batch) if one.is_for(reason, pair and slug(pair)))
    if lines:
        _lines(heapq.nsmallest(lines, found, key=lambda one: one.n), lines, names, as_json)
    elif as_json:
        print_json([_group_report(group, names) for group in grouped(found)])
    else:
        _groups(grouped(found), state, count(redis, batch), names)


def _groups(groups: list[Group], state: BatchStatus, of: int, names: Names) -> None:
    found = sum(group.count for group in groups)
    if not found:
        click.echo("No line failed for that" if of else "No line failed")
        return
    click.echo(f"{found:,} of {of:,} failed lines" if found < of else f"{found:,} of {state.total:,} lines failed")
    rows = [
        (f"{group.count:,}", names.get(group.pair, group.pair), _where(group), group.kind or "not known here")
        for group in groups
    ]
    print_table(("LINES", "PAIR", "WORKER", "REASON"), rows)
    text = shlex.quote(groups[0].search(groups))
    click.echo(f"\nTo look at those of the first row: draftmill failures {state.id} --lines 20 --reason {text}")
    click.echo(f"To run them again, submit with the same options and: --retry-failed --reason {text}")


def _where(group: Group) -> str:
    return next(iter(group.workers), "") if len(group.workers) < 2 else f"{len(group.workers)} workers"


def _lines(found: list[Failure], most: int, names: Names, as_json: bool) -> None:
    if as_json:
        print_json([_line_report(one, names) for one in found])
        return
    if not found:
        click.echo("No line failed for that")
        return
    rows = [
        (
            f"{one.n:,}",
            one.custom_id,
            names.get(one.pair, one.pair),
            one.worker,
            f"{one.attempts}",
            time.strftime("%m-%d %H:%M", time.localtime(one.at)) if one.at else "",
            one.message or "not known here",
        )
        for one in found
    ]
    print_table(("LINE", "ID", "PAIR", "WORKER", "TRIES", "ENDED", "REASON"), rows)
    if len(found) == most:
        click.echo(f"The first {most:,}; a larger --lines shows more")


def _group_report(group: Group, names: Names) -> dict[str, Any]:
    return {
        "reason": group.kind,
        "pair": names.get(group.pair, group.pair),
        "lines": group.count,
        "workers": dict(group.workers.most_common()),
        "example": _line_report(group.first, names),
    }


def _line_report(one: Failure, names: Names) -> dict[str, Any]:
    return {
        "line": one.n,
        "custom_id": one.custom_id,
        "message": one.message,
        "pair": names.get(one.pair, one.pair),
        "worker": one.worker,
        "attempts": one.attempts,
        "at": one.at,
    }
