"""Prompts that are read together, and the beginning of one that is kept for those to come."""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass
from functools import reduce
from itertools import takewhile
from typing import Any

import mlx.core as mx
from mlx_lm.models.cache import can_trim_prompt_cache, make_prompt_cache, trim_prompt_cache

from ..schedule.row import Row
from .caches import Caches, Footprint, empty, join, pick, states
from .ways import Ways, read

WORTH = 64
"""A shared beginning of fewer tokens is read again."""

Tokens = tuple[int, ...]


@dataclass(frozen=True)
class Prefix:
    """The beginning of a prompt that was read, with caches of one row behind it."""

    tokens: Tokens = ()
    caches: Caches | None = None

    def bytes(self, footprint: Footprint) -> int:
        """What it takes."""
        return footprint.bytes(len(self.tokens)) if self.caches else 0

    def begun(self, tokens: Tokens) -> tuple[int, Caches] | None:
        """How many tokens these share with the prefix, and caches that go on from there; None if they are too few, or
        if the caches cannot go back so far.
        """
        count = common([self.tokens, tokens])
        missing = len(self.tokens) - count
        if not self.caches or count < WORTH or (missing and not can_trim_prompt_cache(self.caches)):
            return None
        caches = deepcopy(self.caches)
        trim_prompt_cache(caches, missing)
        return count, caches


class Prefill:
    """Reads the prompts of rows, each different one once: first what all of them share, then the rest of each.

    Of each the last token is left: with it the row takes part in its first round. Once all are read, `caches` are the
    rows', in their order.

    Args:
        rows: that start, with what must be prefilled in `feed`.
        kept: the beginning of a prompt before; replaced by what these share unless they begin with it.
    """

    def __init__(self, model: Any, ways: Ways, rows: Sequence[Row], kept: Prefix):
        self.rows, self.kept = list(rows), kept
        self._model = model
        self._feeds: list[Tokens] = list(dict.fromkeys(row.feed[:-1] for row in rows))
        self._shared = common(self._feeds)
        begun = kept.begun(self._feeds[0][: self._shared])
        self._read, self.caches = begun or (0, empty(model, 1) if ways.batched else make_prompt_cache(model))
        self._keeps = self._shared >= WORTH and not (kept.caches and self._read == len(kept.tokens))
        self._open: list[Tokens] = []  # the prompts of the rows that `caches` have, once they go different ways
        self._ended: list[tuple[list[Tokens], Caches]] = []  # those that are read
        self._note_cached()
        self._part()

    @property
    def done(self) -> bool:
        """Whether all prompts are read."""
        return sum(len(feeds) for feeds, _ in self._ended) == len(self._feeds)

    def step(self, most: int) -> int:
        """Read the next chunk, of so many tokens at most; returns how many it had."""
        feeds = self._open or [self._feeds[0][: self._shared]]
        end = self._read + max(1, most // len(feeds))
        chunks = [feed[self._read : end] for feed in feeds]
        read(self._model, chunks, self.caches)
        self._read += max(map(len, chunks))
        mx.async_eval(states(self.caches))
        self._part()
        return sum(map(len, chunks))

    def _part(self) -> None:
        """At the end of what they share, prompts go different ways; those that are read are set aside."""
        if self._read < self._shared:
            return
        if not self._open and not self._ended:
            self._open = self._feeds
            if self._keeps:
                self.kept = Prefix(self._feeds[0][: self._shared], deepcopy(self.caches))
            if len(self._feeds) > 1:
                pick(self.caches, [0] * len(self._feeds))
        ended = [place for place, feed in enumerate(self._open) if len(feed) <= self._read]
        going_on = [place for place, feed in enumerate(self._open) if len(feed) > self._read]
        if not ended:
            return
        aside = deepcopy(self.caches) if going_on else self.caches
        if going_on:
            pick(aside, ended)
            pick(self.caches, going_on)
        self._ended.append(([self._open[place] for place in ended], aside))
        self._open = [self._open[place] for place in going_on]
        if self.done:
            self._bring_together()

    def _bring_together(self) -> None:
        """Let caches have a row for each of the rows, in their order."""
        self.caches = reduce(join, (caches for _, caches in self._ended))
        order = [feed for feeds, _ in self._ended for feed in feeds]
        places = [order.index(row.feed[:-1]) for row in self.rows]
        if places != list(range(len(order))):
            pick(self.caches, places)

    def _note_cached(self) -> None:
        """Tell rows how many tokens of their prompts others have read for them."""
        seen: set[Tokens] = set()
        for row in self.rows:
            saved = len(row.feed) - 1 if row.feed in seen else self._shared if seen else self._read
            row.cached = min(saved, len(row.request.tokens))
            seen.add(row.feed)


def common(sequences: Sequence[Tokens]) -> int:
    """How many tokens all of them begin with."""
    first, *others = sequences
    return sum(1 for _ in takewhile(lambda tokens: len(set(tokens)) == 1, zip(first, *others, strict=False)))
