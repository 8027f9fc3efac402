"""Whether a worker takes jobs: it is drained or refuses if operators, or the schedule of pairs, say so."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ..producer.queue.fleet import Orders
from ..producer.queue.wire import slug


@dataclass(frozen=True)
class Duty:
    """What a worker is to do, and why; `draining` covers `drained`, which is the same with nothing in flight.

    `restart` asks the worker to end when it has drained, so that whatever watches it starts it with another pair.
    """

    state: Literal["working", "draining", "refusing"]
    reason: str = ""
    restart: bool = False

    @property
    def takes_jobs(self) -> bool:
        return self.state == "working"


UNHEARD = Duty("refusing", "has not heard from Redis yet")
"""Until the first heartbeat: nobody knows whether the worker is drained."""


def duty(orders: Orders, version: str, pair: str, auto: bool) -> Duty:
    """What `orders` mean for a worker of this version that has loaded `pair`; `auto` if its pair is by schedule."""
    if orders.version and orders.version != version:
        return Duty("refusing", f"is version {version}, the fleet requires {orders.version}")
    if orders.pair and slug(orders.pair) != slug(pair):
        if auto:
            return Duty("draining", f"the schedule says {orders.pair}", restart=True)
        return Duty("refusing", f"serves {pair}, the schedule says {orders.pair}")
    if orders.drained:
        return Duty("draining", "drained by an operator")
    return Duty("working")
