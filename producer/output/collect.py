"""Copies a batch's results out of Redis into OUT, as far as they are, or following the batch to its end."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import orjson
import redis as redis_py

from ..queue import batches, wire
from ..queue.batches import BatchStatus
from ..queue.errors import UserError
from .output import Output

POLL_SECONDS = 0.25


def status(redis: redis_py.Redis, batch: str) -> BatchStatus:
    """The state of a batch that must exist."""
    found = batches.status(redis, batch)
    if found is None:
        raise UserError(f"no batch {batch!r} here; `draftmill status` lists the batches of this Redis")
    return found


def reconcile(redis: redis_py.Redis, output: Output) -> None:
    """Starts OUT over if this Redis does not hold the result that was written last; call it before the first `step`.

    So it is when the batch runs anew on another Redis, or when Redis lost its last second in a power failure:
    going on would write some lines twice. Refuses what can never be complete: results that another file holds, and
    an OUT that is complete of an earlier run.
    """
    manifest, state = output.manifest, batches.status(redis, output.manifest.batch)
    if state is None:
        if not manifest.complete and not manifest.untouched:
            output.start_over()
        return
    if manifest.created not in (0, state.created):
        if manifest.complete:
            raise UserError(
                f"{str(output.path)!r} is complete, and {state.id} was run again since; "
                "choose another file or overwrite it with --force"
            )
        output.start_over()
    elif not manifest.complete and manifest.after != manifest.complete_to and not _holds(redis, output):
        refuse_collected(state)
        if manifest.after != "0-0":
            output.start_over()


def _holds(redis: redis_py.Redis, output: Output) -> bool:
    """Whether Redis has the result that was written last."""
    after = output.manifest.after
    if after == "0-0":
        return False
    return bool(redis.xrange(wire.results_key(output.manifest.batch), after, after))


def refuse_collected(state: BatchStatus) -> None:
    """Results that another file holds by now cannot be written again."""
    if state.collected:
        when = time.strftime("%Y-%m-%d %H:%M", time.localtime(state.collected))
        raise UserError(
            f"the results of {state.id} were collected on {when} and are no longer in Redis; "
            f"to generate them anew: draftmill forget {state.id}, and submit it again"
        )


def step(redis: redis_py.Redis, output: Output) -> BatchStatus:
    """Writes the results that are new, and returns the state of the batch as it was before them.

    So if that state is complete, OUT has every result. If failures were queued again, they leave the error file first,
    and an OUT that was complete goes on.
    """
    state = status(redis, output.manifest.batch)
    output.manifest.created = output.manifest.created or state.created
    if state.failed + state.cancelled < output.manifest.failed:
        _take_back(redis, output, state)
    if output.manifest.complete:
        return state
    for result in batches.results(redis, output.manifest.batch, after=output.manifest.after):
        output.write(result)
        output.save_sometimes()
    output.flush()
    output.save_sometimes()
    return state


def _take_back(redis: redis_py.Redis, output: Output, state: BatchStatus) -> None:
    """Clears the error file of failures that were queued again. Those that failed again are read again."""
    read_to = _place(output.manifest.after)

    def stands(lines: Sequence[dict[str, Any]]) -> list[bool]:
        jobs = [wire.job_id(state.id, line["custom_id"]) for line in lines]
        found: Any = redis.hmget(wire.failures_key(state.id), jobs)
        return [bool(failure) and _place(failure.decode().split()[2]) <= read_to for failure in found]

    output.take_back(0, stands)


def _place(entry: str) -> tuple[int, ...]:
    """A stream entry's id as it sorts."""
    return tuple(int(part) for part in entry.split("-"))


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
) -> bool:
    """Marks OUT as complete, in input order if asked; then drops the results from Redis unless others need them.

    `numbers` has the line number of each custom_id; by default the results in Redis tell. False if failures of the
    batch were queued again meanwhile, or OUT lacks some result: then it is to be followed further.
    """
    manifest, state = output.manifest, status(redis, output.manifest.batch)
    if not state.complete:
        return False
    sorting = in_order and not manifest.in_order
    if manifest.done + manifest.failed < state.ended:
        refuse_collected(state)
        return False
    if sorting:
        output.sort(numbers or _numbers(redis, output))
    if sorting or not manifest.complete:
        output.complete()
    if not leave:
        batches.acknowledge(redis, output.manifest.batch, list(batches.results(redis, output.manifest.batch)))
    return True


def _numbers(redis: redis_py.Redis, output: Output) -> dict[str, int]:
    """The line numbers that the results in Redis have."""
    results = batches.results(redis, output.manifest.batch)
    numbers = {orjson.loads(result.line)["custom_id"]: result.n for result in results}
    if len(numbers) < output.manifest.done:
        raise UserError(
            f"Redis no longer knows the order of all lines of {output.manifest.batch}; run again without --sorted, "
            "or let `draftmill run` sort them by its INPUT"
        )
    return numbers
