"""What the worker asks of an engine; `draftmill.engine` has two, one of them plain, and the tests bring another."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

from ..engine.request import Adapters, Completion, Request
from ..engine.stats import Stats
from ..engine.text import Text
from ..engine.verdict import Verdict


class Engine(Protocol):
    """A generator that is driven round by round, all from one thread."""

    @property
    def max_rows(self) -> int: ...

    @property
    def stats(self) -> Stats: ...

    @property
    def verdict(self) -> Verdict | None:
        """How near its logits are to mlx-lm's on this machine; None if nobody has looked."""
        ...

    @property
    def remark(self) -> str | None:
        """What there is to know of how its model runs, in one line; None if nothing."""
        ...

    @property
    def precision(self) -> str | None:
        """In which type of number its models run, and why, in one line; None if in their own."""
        ...

    adapters: Adapters
    """The LoRA adapters that requests may name."""

    text: Text
    """Between text and tokens."""

    may_start: Callable[[Sequence[str]], bool]
    """Asked in `step` whether these requests may be in rows from this round on; else they are asked for again."""

    @property
    def busy(self) -> bool:
        """Whether `step` has anything to do."""
        ...

    def add(self, request: Request) -> None:
        """Queue a request; raises RequestError if it could never be served."""
        ...

    def cancel(self, id: str) -> None:
        """Stop a request; its completion comes out with finish reason "cancelled"."""
        ...

    def resize(self, share: float) -> None:
        """Have this part of the rows and of the memory that it began with; rows may begin anew for it."""
        ...

    def step(self) -> list[Completion]:
        """Run one round; returns the requests that finished.

        One with which alone rounds fail ends with finish reason "failed". Raises EngineFailed if all rounds fail.
        """
        ...


def report(engine: Engine) -> dict[str, Any]:
    """What each heartbeat says of an engine."""
    verdict, stats = engine.verdict, engine.stats
    return {
        "adapters": ",".join(engine.adapters.folders),
        "check": str(verdict or engine.remark or ""),
        "stock": ", ".join(verdict.dropped) if verdict else "",
        "rounds": stats.rounds,
        "generated_tokens": stats.generated_tokens,
        "row_rounds": stats.row_rounds,
        "drafted": stats.drafted,
        "accepted": stats.accepted,
    }
