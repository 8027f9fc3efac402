"""Whether a worker takes jobs: it is drained or refuses if operators, or the schedule of pairs, say so."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from typing import Literal

from ..producer.queue.fleet import Orders
from ..producer.queue.wire import WIRE, slug

VERSIONS = {name: version(name) for name in ("draftmill", "mlx", "rq")} | {"wire": str(WIRE)}
"""Of this worker, as operators can require them."""


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


def duty(orders: Orders, versions: Mapping[str, str], pair: str, auto: bool) -> Duty:
    """What `orders` mean for a worker of these `versions` that serves `pair`; `auto` if its pair is by schedule."""
    wrong = {name: wanted for name, wanted in orders.versions.items() if versions[name] != wanted}
    if wrong:
        has = " and ".join(f"{name} {versions[name]}" for name in wrong)
        return Duty("refusing", f"has {has}; the fleet requires {' and '.join(wrong.values())}")
    if orders.pair and slug(orders.pair) != slug(pair):
        if auto:
            return Duty("draining", f"the schedule says {orders.pair}", restart=True)
        return Duty("refusing", f"serves {pair}, the schedule says {orders.pair}")
    if orders.drained:
        return Duty("draining", "drained by an operator")
    return Duty("working")
