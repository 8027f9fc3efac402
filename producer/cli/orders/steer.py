"""`draftmill pause`, `resume` and `priority`: orders about a batch that is not complete."""

from __future__ import annotations

import click
import redis as redis_py

from ...client.follower import known
from ...queue.batches import BatchStatus
from ...queue.connect import connect
from ...queue.errors import UserError
from ...queue.orders import steer
from ...queue.wire import PRIORITIES
from .. import options


@click.command("pause")
@options.batch()
@options.redis_url
def pause_command(batch: str, redis_url: str | None) -> None:
    """Let workers take no more lines of BATCH. Lines that run finish, and their results can be collected.

    \b
    Example:
      draftmill pause batch_0123456789abcdef01234567
    """
    redis = connect(redis_url)
    state = _steered(redis, batch, steer.pause(redis, batch))
    click.echo(f"Paused; {state.running:,} running lines finish. To go on: draftmill resume {batch}")


@click.command("resume")
@options.batch()
@options.redis_url
def resume_command(batch: str, redis_url: str | None) -> None:
    """Let workers take lines of BATCH again, which was paused.

    \b
    Example:
      draftmill resume batch_0123456789abcdef01234567
    """
    redis = connect(redis_url)
    was_paused = known(redis, batch).is_paused
    state = _steered(redis, batch, steer.resume(redis, batch))
    click.echo(f"Resumed; {state.queued:,} lines are queued" if was_paused else f"{batch} was not paused")


@click.command("priority")
@options.batch()
@click.argument("priority", type=click.Choice(PRIORITIES))
@options.redis_url
def priority_command(batch: str, priority: str, redis_url: str | None) -> None:
    """Give BATCH another priority, from the next line on.

    \b
    Example:
      draftmill priority batch_0123456789abcdef01234567 high
    """
    redis = connect(redis_url)
    state = _steered(redis, batch, steer.prioritize(redis, batch, priority))
    click.echo(f"{state.queued:,} queued lines have priority {priority}")


def _steered(redis: redis_py.Redis, batch: str, done: bool) -> BatchStatus:
    """The state of a batch that took an order."""
    state = known(redis, batch)
    if not done:
        raise UserError(f"{batch} is {'cancelled' if state.is_cancelled else 'complete'} already")
    return state
