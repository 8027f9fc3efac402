"""What the worker asks of an engine; `draftmill.engine.engine.Engine` is one, the tests bring another."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

from ..engine.request import Completion, Request


class EngineStats(Protocol):
    """Counters since the engine was made; `rows` is the sum over rounds.

    `row_rounds` counts, over rows, the rounds that decoded; `drafted` and `accepted` the draft tokens verified and
    accepted in them, `accepted_per_position` by their place in the block.
    """

    rounds: int
    rows: int
    prompt_tokens: int
    generated_tokens: int
    drafted: int
    accepted: int
    row_rounds: int
    accepted_per_position: list[int]


class Engine(Protocol):
    """A generator that is driven round by round, all from one thread."""

    @property
    def max_rows(self) -> int: ...

    @property
    def stats(self) -> EngineStats: ...

    @property
    def busy(self) -> bool:
        """Whether `step` has anything to do."""
        ...

    def encode(self, messages: Sequence[Mapping[str, str]] | None, prompt: str | None) -> list[int]:
        """Tokens of a chat or of a plain prompt; raises RequestError."""
        ...

    def add(self, request: Request) -> None:
        """Queue a request; raises RequestError if it could never be served."""
        ...

    def cancel(self, id: str) -> None:
        """Stop a request; its completion comes out with finish reason "cancelled"."""
        ...

    def step(self) -> list[Completion]:
        """Run one round; returns the requests that finished."""
        ...
