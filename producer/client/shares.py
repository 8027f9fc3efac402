"""The pairs of a batch in the fleet: how many of its lines wait for each, and who works on them."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from dataclasses import dataclass

import redis as redis_py

from ..queue import fleet, wire
from ..queue.batches import BatchStatus
from ..queue.pair_names import canonical, unserved
from .submission import Submission


@dataclass(frozen=True)
class Share:
    """What of a batch is for one pair: lines in its queue, and lines that run; those set aside are neither."""

    pair: str
    queued: int
    running: int


def shares(redis: redis_py.Redis, state: BatchStatus) -> list[Share]:
    """The share of each pair, in the order in which the dataset names them."""
    if len(state.pairs) == 1:
        return [Share(state.pair, state.queued, state.running)]
    with redis.pipeline(transaction=True) as pipe:
        for pair in state.pairs:
            queue = wire.queue_name(pair, state.id)
            pipe.llen(f"rq:queue:{queue}")
            pipe.zcard(wire.leased_key(queue))
        counts = pipe.execute()
    return [Share(pair, *counts[2 * i : 2 * i + 2]) for i, pair in enumerate(state.pairs)]


def notes(redis: redis_py.Redis, submission: Submission) -> Iterator[str]:
    """What to say of workers when this is submitted: pairs on which nobody works, and models that lines name in vain
    although somebody works on a pair of that name.
    """
    served = fleet.served(redis)
    for pair in submission.info.pairs:
        if pair not in served:
            yield unserved(pair)
    named = submission.dataset.defaults.models
    for model, pair in submission.survey.notes.models.items():
        if canonical(model) in served - {pair} and model not in named:
            told = f"--models {shlex.quote(model)}"
            yield f"a live worker serves {model}, but lines that name it run on {pair}; {told} runs them there"
