"""Copies a batch's results out of Redis into OUT, as far as they are, or following the batch to its end."""

from __future__ import annotations

import time
from collections.abc import Callable

import orjson
import redis as redis_py

from . import batches, contract
from .batches import BatchStatus
from .errors import UserError
from .output import Output

POLL_SECONDS = 0.25


def status(redis: redis_py.Redis, batch: str) -> BatchStatus:
    """The state of a batch that must exist."""
    found = batches.status(redis, batch)
    if found is None:
        raise UserError(f"no batch {batch!r} here; `draftmill status` lists the batches of this Redis")
    return found


def reconcile(redis: redis_py.Redis, output: Output) -> None:
    """Starts OUT over if this Redis does not hold the result that was written last.

    So it is when the batch runs anew on another Redis, or when Redis lost its last second in a power failure:
    going on would write some lines twice. An OUT that is complete needs nothing of Redis.
    """
    after = output.manifest.after
    if output.manifest.complete:
        return
    if after != "0-0" and not redis.xrange(contract.results_key(output.manifest.batch), after, after):
        refuse_collected(status(redis, output.manifest.batch))
        output.start_over()


def refuse_collected(state: BatchStatus) -> None:
    """Results that another file holds by now cannot be written again."""
    if state.collected:
        when = time.strftime("%Y-%m-%d %H:%M", time.localtime(state.collected))
        raise UserError(
            f"the results of {state.id} were collected on {when} and are no longer in Redis; "
            f"to generate them anew: draftmill forget {state.id}, and submit it again"
        )


def step(redis: redis_py.Redis, output: Output) -> BatchStatus:
    """Writes the results that are new, and returns the state of the batch as it was before them."""
    state = status(redis, output.manifest.batch)
    for result in batches.results(redis, output.manifest.batch, after=output.manifest.after):
        output.write(result)
        output.save_sometimes()
    output.save_sometimes()
    return state


def follow(redis: redis_py.Redis, output: Output, tick: Callable[[BatchStatus], None]) -> BatchStatus:
    """Writes results until every line of the batch has one; calls `tick` with each new state."""
    while True:
        state = step(redis, output)
        tick(state)
        if state.complete:
            return state
        time.sleep(POLL_SECONDS)


def finish(
    redis: redis_py.Redis,
    output: Output,
    in_order: bool,
    leave: bool = False,
    numbers: dict[str, int] | None = None,
) -> None:
    """Marks OUT as complete, in input order if asked; then drops the results from Redis unless others need them.

    `numbers` has the line number of each custom_id; by default the results in Redis tell.
    """
    state = status(redis, output.manifest.batch)
    sorting = in_order and not output.manifest.in_order
    if output.manifest.done + output.manifest.failed < state.ended or (sorting and numbers is None):
        refuse_collected(state)
    if sorting:
        numbers = numbers or {
            orjson.loads(result.line)["custom_id"]: result.n for result in batches.results(redis, output.manifest.batch)
        }
        output.sort(numbers)
    output.manifest.complete = True
    output.save()
    if not leave:
        batches.drop_results(redis, output.manifest.batch)
