"""A row: a request being generated, as the host knows it (one round behind the device)."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from .extents import Extent
from .request import Completion, FinishReason, Request


@dataclass(eq=False)
class Row:
    """Host-side state of one request.

    `limit` is the most tokens it may generate. `feed` is what must be prefilled: the prompt and, after a preemption,
    what had been generated. `cursor` counts the tokens whose keys are written or will be by rounds in flight;
    `in_flight` counts its rounds launched and not read.
    """

    request: Request
    limit: int
    generated: list[int] = field(default_factory=list)
    feed: tuple[int, ...] = ()
    slot: int = -1
    extent: Extent | None = None
    cursor: int = 0
    in_flight: int = 0
    rounds: int = 0
    finish_reason: FinishReason | None = None
    started: float = field(default_factory=time.monotonic)

    @property
    def prefilling(self) -> bool:
        return self.cursor < len(self.feed)

    @property
    def spent(self) -> bool:
        """Whether the rounds in flight will bring it to its limit: each decoding round yields at least one token."""
        return len(self.generated) + self.in_flight >= self.limit

    @property
    def largest(self) -> int:
        """The most slots it can ever need; its last token is never written."""
        return len(self.request.tokens) + self.limit - 1

    def completion(self, text: str) -> Completion:
        assert self.finish_reason is not None
        return Completion(
            id=self.request.id,
            text=text,
            tokens=tuple(self.generated),
            finish_reason=self.finish_reason,
            prompt_tokens=len(self.request.tokens),
            rounds=self.rounds,
            seconds=time.monotonic() - self.started,
        )
