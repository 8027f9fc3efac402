"""A row: a request being generated, as the host knows it (one round behind the device)."""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from math import inf
from typing import NamedTuple, Protocol

from ..request import NO_ADAPTER, Completion, FinishReason, Origin, Request, TokenLogprob
from .prefix import Prefix

FROM_DRAFT = 0
"""The kind of drafts that a pair's draft writes; other kinds are copied from the row's own text."""

RELIEF = 8
"""Rounds after which one that failed no longer speaks against a row that took part in it."""


class Watch(NamedTuple):
    """A token after which others may be constrained, and the mask of what may come until then."""

    token: int
    mask: bytes


class Matcher(Protocol):
    """A row's place in what its text must obey, behind the tokens that it has generated."""

    @property
    def complete(self) -> bool:
        """Whether nothing may follow any more."""
        ...

    @property
    def free(self) -> float:
        """How many tokens may come next that need not wait for each other, unless the one to `watch` comes before."""
        ...

    @property
    def watch(self) -> Watch | None:
        """The token to watch for, if there is one."""
        ...

    @property
    def forced(self) -> Sequence[int]:
        """The tokens that come next, as far as there is no choice."""
        ...

    def masks(self, drafts: Sequence[int]) -> list[bytes | None]:
        """What may come next, and what after each drafted token that is allowed; None allows all tokens."""
        ...

    def advance(self, tokens: Sequence[int]) -> None:
        """The row emits these tokens, which are allowed."""
        ...


@dataclass(eq=False)
class Row:
    """Host-side state of one request.

    `limit` is the most tokens it may generate; one of `ends` ends it before, and of `banned` none may come. `feed` is
    what must be prefilled: the prompt and, after a preemption, what had been generated. `cursor`
    counts its committed tokens: prompt tokens as soon as they are launched, generated ones when their round is read.
    `in_flight` holds, for each round launched and not read that yields tokens, how far it may move the cursor. Its
    tokens lie in `pages`, of which the first may be others' too.

    `cached` prompt tokens were not prefilled but shared; `prefixes` are those that its prefill will reach and that are
    to be kept, shortest first. With a `matcher`, tokens obey what it says: it is always behind those generated. If the
    request asks for them, these have `logprobs`. `adapter` is the place of its LoRA adapter, or NO_ADAPTER. Its next
    round drafts tokens of this `kind`.

    Rounds in flight that were lost might have brought it to `lost_at` generated tokens. So many `failures` of rounds
    that it took part in followed each other closely, and nobody was to blame in between. The last of them might have
    brought it to `failed_at` generated tokens; it came after `failed_after` rounds, when so many were `blamed`.
    """

    request: Request
    limit: int
    matcher: Matcher | None = None
    ends: frozenset[int] = frozenset()
    banned: tuple[int, ...] = ()
    adapter: int = NO_ADAPTER
    kind: int = FROM_DRAFT
    generated: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprob] = field(default_factory=list)
    feed: tuple[int, ...] = ()
    slot: int = -1
    pages: list[int] = field(default_factory=list)
    cursor: int = 0
    in_flight: deque[int] = field(default_factory=deque)
    cached: int = 0
    prefixes: list[Prefix] = field(default_factory=list)
    rounds: int = 0
    drafted: int = 0
    accepted: int = 0
    accepted_by: Counter[str] = field(default_factory=Counter)
    finish_reason: FinishReason | None = None
    error: str | None = None
    lost_at: int = 0
    failures: int = 0
    failed_at: int = 0
    failed_after: int = 0
    blamed: int = 0
    started: float = field(default_factory=time.monotonic)

    def allows(self, origin: Origin) -> bool:
        """Whether drafts of this origin may be made for it."""
        return self.request.drafts is None or origin in self.request.drafts

    @property
    def running(self) -> bool:
        return self.slot >= 0

    @property
    def prefilling(self) -> bool:
        return self.cursor < len(self.feed)

    @property
    def ready(self) -> bool:
        """Whether it can take part in the next round: to constrain it, what the last one emits must first be known."""
        return self.left > 0 and not (self.in_flight and self.free < 1)

    @property
    def free(self) -> float:
        """How many tokens it can choose, after those in flight, before any may be constrained."""
        return self.matcher.free - sum(max(1, reach) for reach in self.in_flight) if self.matcher else inf

    @property
    def forced(self) -> tuple[int, ...]:
        """The tokens that come next, as far as it is known that there is no choice."""
        return tuple(self.matcher.forced) if self.matcher and not self.in_flight else ()

    @property
    def bound(self) -> int:
        """The most tokens that can be committed once the rounds in flight have run."""
        return self.cursor + sum(self.in_flight)

    @property
    def exact(self) -> bool:
        """Whether the cursor will be at its bound: no round in flight verifies drafts."""
        return all(reach <= 1 for reach in self.in_flight)

    @property
    def left(self) -> int:
        """The most tokens it may still emit after the rounds in flight, of which each yields at least one."""
        return self.limit - len(self.generated) - len(self.in_flight)

    @property
    def suspect(self) -> bool:
        """Whether it must run alone: it took part when rounds failed twice, and has not come as far as these since."""
        return self.failures > 1 and len(self.generated) < self.failed_at

    def follow(self, tokens: Sequence[int]) -> None:
        """Let the matcher be behind tokens that were chosen freely."""
        if self.matcher and self.finish_reason is None:
            self.matcher.advance(tokens)

    def lose_rounds(self) -> None:
        """Its rounds in flight will not be read."""
        self.lost_at = len(self.generated) + sum(max(1, reach) for reach in self.in_flight)
        self.in_flight.clear()

    def note_failure(self, blamed: int) -> None:
        """A round that it took part in has failed, when so many requests had been to blame for others."""
        if not self.suspect and (self.rounds >= self.failed_after + RELIEF or blamed > self.blamed):
            self.failures = 0
        self.failures += 1
        self.failed_at = max(self.lost_at, len(self.generated) + 1)
        self.failed_after, self.blamed = self.rounds, blamed

    def completion(self, text: str) -> Completion:
        assert self.finish_reason is not None
        return Completion(
            id=self.request.id,
            text=text,
            tokens=tuple(self.generated),
            finish_reason=self.finish_reason,
            prompt_tokens=len(self.request.tokens),
            cached_tokens=self.cached,
            rounds=self.rounds,
            drafted=self.drafted,
            accepted=self.accepted,
            accepted_by=dict(self.accepted_by),
            seconds=time.monotonic() - self.started,
            error=self.error,
            logprobs=tuple(self.logprobs),
        )
