"""The order of claims is that of a simple model, whatever is submitted, taken, ended, returned, cancelled or limited.

The model walks all flows and all batches for each job, which claim.lua must not do.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass, field

import pytest

from draftmill.producer.queue import batches, wire
from draftmill.producer.queue.leases import Claimed
from tests.producer.queue.helpers import outcome, queue
from tests.worker.conftest import Mill

COST = {"high": 1, "normal": 16, "low": 256}
USERS = ("ann", "bob", "cy", "dee")


@dataclass
class Flow:
    """What takes turns: the batches of one user and one priority. `turns` has when the next job of each is due."""

    name: str
    due: float
    turns: dict[str, float] = field(default_factory=dict)

    @property
    def user(self) -> str:
        return self.name.partition(":")[2]

    @property
    def cost(self) -> int:
        return COST[self.name.partition(":")[0]]


class Model:
    """Whose job is next, in plain Python."""

    def __init__(self) -> None:
        self.flows: dict[str, Flow] = {}
        self.queues: dict[str, list[str]] = {}
        self.flow_of: dict[str, str] = {}
        self.cancelled: set[str] = set()
        self.running: dict[str, str] = {}
        self.limits: dict[str, int] = {}

    def submit(self, batch: str, user: str, priority: str, jobs: list[str]) -> None:
        self.flow_of[batch] = f"{priority}:{user}"
        queued = self.queues.setdefault(batch, [])
        if queued:  # registered anew, perhaps with another priority
            self._take_turns(batch)
        queued += jobs
        if jobs:
            self._take_turns(batch)

    def put_back(self, batch: str, job: str) -> None:
        del self.running[job]
        self.queues[batch].insert(0, job)
        self._take_turns(batch)

    def cancel(self, batch: str) -> None:
        self.cancelled.add(batch)
        self.queues[batch] = []

    def _take_turns(self, batch: str) -> None:
        name = self.flow_of[batch]
        flow = self.flows.get(name) or Flow(
            name, min((f.due for f in self.flows.values()), default=0) + COST[name.split(":")[0]]
        )
        flow.turns.setdefault(batch, min(flow.turns.values(), default=0) + 1)
        self.flows[name] = flow

    def _room(self, user: str) -> float:
        cap = self.limits.get(user, self.limits.get("*", math.inf))
        return cap - sum(owner == user for owner in self.running.values())

    def claim(self, n: int) -> list[str]:
        claimed: list[str] = []
        clock = 0.0
        while len(claimed) < n:
            fit = [flow for flow in self.flows.values() if self._room(flow.user) > 0]
            if not fit:
                break
            flow = min(fit, key=lambda flow: (flow.due, flow.name))
            clock = flow.due
            batch = self._next_batch(flow)
            if batch is None:
                del self.flows[flow.name]
            elif not self.queues[batch]:
                del flow.turns[batch]
            else:
                job = self.queues[batch].pop(0)
                claimed.append(job)
                self.running[job] = flow.user
                flow.due += flow.cost
                flow.turns[batch] += 1
        for flow in self.flows.values():  # nobody saves up turns while at the limit
            if self._room(flow.user) <= 0:
                flow.due = max(flow.due, clock)
        return claimed

    def _next_batch(self, flow: Flow) -> str | None:
        while flow.turns:
            batch = min(flow.turns, key=lambda name: (flow.turns[name], name))
            if batch not in self.cancelled and self.flow_of[batch] == flow.name:
                return batch
            del flow.turns[batch]
        return None


@pytest.mark.parametrize("seed", range(6))
def test_claims_follow_the_model(mill: Mill, seed: int) -> None:
    choose = random.Random(seed)
    model, w = Model(), queue(mill, "w")
    owners: dict[str, str] = {}
    sizes: dict[str, int] = {}
    held: dict[str, Claimed] = {}
    for _ in range(150):
        match choose.choice(("submit", "submit", "claim", "claim", "claim", "end", "end", "return", "limit", "cancel")):
            case "submit":
                batch = f"b{choose.randrange(12)}"
                if batch in model.cancelled:
                    continue
                user = owners.setdefault(batch, choose.choice(USERS))
                priority = choose.choice(wire.PRIORITIES)
                before = sizes.get(batch, 0)
                sizes[batch] = before + choose.randrange(1, 12)
                mill.submit(sizes[batch], batch=batch, priority=priority, user=user)
                jobs = [wire.job_id(batch, f"r-{n}") for n in range(before, sizes[batch])]
                model.submit(batch, user, priority, jobs)
            case "claim":
                n = choose.randrange(1, 9)
                found = w.claim(n)
                held |= {job.id: job for job in found}
                assert [job.id for job in found] == model.claim(n)
            case "end" if held:
                job = held.pop(choose.choice(list(held)))
                assert w.commit([outcome(job)]) == [True]
                del model.running[job.id]
            case "return" if held:
                job = held.pop(choose.choice(list(held)))
                if job.batch in model.cancelled:
                    w.commit([outcome(job)])
                    del model.running[job.id]
                else:
                    assert w.release([job]) == 1
                    model.put_back(job.batch, job.id)
            case "limit":
                user, most = choose.choice((*USERS, "*")), choose.choice((0, 1, 2, 5, 20))
                model.limits[user] = most
                mill.redis.hset(wire.LIMITS, user, most)
            case "cancel" if sizes and choose.random() < 0.3:
                batch = choose.choice(list(sizes))
                model.cancel(batch)
                batches.cancel(mill.redis, batch)
            case _:
                pass
    mill.redis.delete(wire.LIMITS)
    model.limits.clear()
    while found := w.claim(7):
        assert [job.id for job in found] == model.claim(7)
    assert model.claim(7) == []
    assert mill.redis.keys("draftmill:parked:*") == mill.redis.keys("draftmill:turns:*") == []
    assert mill.redis.keys("draftmill:clock:*") == []
