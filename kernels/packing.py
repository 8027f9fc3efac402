"""How the tokens of a round are packed: which belong to which row, where they lie in a pool, what they may see."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import accumulate
from typing import Any

import mlx.core as mx

from .gpu.launch import CONSTANT_SIZE, on_device
from .pages.places import Places, tabled
from .pages.pool import Rows
from .pages.sizes import pages_for

FEW = 32
"""Most queries of a span that decodes, rather than prefills."""

PAD_KEYS = 128
"""Padded rows have a multiple of so many keys, so that few shapes occur: each new one costs a GPU its plan."""


@dataclass(frozen=True)
class Span:
    """One row's share of a round: `count` packed queries from `query` on, over the row's `pages`.

    `length` is the host's upper bound of the row's keys after this round. It is `exact` when the queries are known
    to be the row's last `count` tokens; otherwise positions, which live on the device, decide what is visible.

    For recurrent layers: `row` is the place of the row's state; a `fresh` row starts from zeros; the steps of a
    `final` span (prefill) are all there to stay, those of another one wait on its tape until they are accepted.
    """

    query: int
    count: int
    pages: Sequence[int]
    length: int
    exact: bool = True
    row: int = 0
    fresh: bool = False
    final: bool = True


@dataclass(frozen=True)
class Padded:
    """Spans as a rectangle: packed indices of `queries` [R, T], over so many keys of each.

    `order` [N] finds each packed token in the rectangle; None where the packed tokens are the rectangle as they come.
    """

    queries: mx.array
    length: int
    order: mx.array | None
    _masks: dict[int | None, mx.array] = field(default_factory=dict)

    def spread(self, packed: mx.array) -> mx.array:
        """What packed tokens have [N, …], as a rectangle [R, T, …]."""
        return packed.reshape(*self.queries.shape, *packed.shape[1:]) if self.order is None else packed[self.queries]

    def pack(self, outputs: mx.array) -> mx.array:
        """What the tokens of the rectangle have [R, T, …], packed [N, …]."""
        flat = outputs.flatten(0, 1)
        return flat if self.order is None else flat[self.order]

    def mask(self, packing: Packing, window: int | None) -> mx.array:
        """What each query sees [R, T, L]."""
        if window not in self._masks:
            positions, limits = packing.positions[self.queries], packing.seen[self.queries]
            self._masks[window] = visible(positions, limits, mx.arange(self.length), window)
        return self._masks[window]


@dataclass(frozen=True)
class Packing:
    """How the N tokens of a round are packed: spans in packed order, and what each token needs to find its place.

    `places` tell where each token's key and value are written, and its absolute position; `firsts` where each span's
    pages begin in their table; `replay` [spans] int32 counts the steps of each row's last tape that were accepted and
    must be replayed first. A query sees keys up to its own position or, where `limits` [N] are given (a draft's block),
    up to its limit.
    """

    spans: tuple[Span, ...]
    places: Places
    firsts: tuple[int, ...]
    replay: mx.array | None = None
    limits: mx.array | None = None
    _masks: dict[tuple[int, int | None], mx.array | str | None] = field(default_factory=dict)
    _sees: dict[int | None, mx.array] = field(default_factory=dict)
    _tiles: dict[int, tuple[int, mx.array]] = field(default_factory=dict)
    kept: dict[Any, Any] = field(default_factory=dict)  # by operations: how this packing is launched

    @staticmethod
    def of(
        spans: Sequence[Span], positions: mx.array, replay: mx.array | None = None, limits: mx.array | None = None
    ) -> Packing:
        """Spans in packed order, whose tokens have these positions [N] int32."""
        table, firsts = tabled([span.pages[: pages_for(span.length)] for span in spans])
        starts = on_device([first for first, span in zip(firsts, spans, strict=True) for _ in range(span.count)])
        return Packing(tuple(spans), Places(table, starts, positions), tuple(firsts), replay, limits)

    def limited(self, limits: mx.array) -> Packing:
        """The same tokens, which see as far as these limits [N]."""
        return Packing(self.spans, self.places, self.firsts, self.replay, limits)

    @property
    def positions(self) -> mx.array:
        """The absolute position of each token [N] int32."""
        return self.places.positions

    @cached_property
    def rows(self) -> Rows:
        """The rows of all spans."""
        pages, lengths = zip(*((span.pages, span.length) for span in self.spans), strict=True)
        return Rows(self.places.table, self.firsts, pages, lengths)

    def row(self, index: int) -> Rows:
        """The row of one span."""
        span = self.spans[index]
        return Rows(self.places.table, (self.firsts[index],), (span.pages,), (span.length,))

    @cached_property
    def kind(self) -> tuple[int, int, int]:
        """Roughly how many rows there are, how many queries each has, and how many keys: the nearest raced numbers."""
        rows, queries = len(self.spans), max(span.count for span in self.spans)
        keys = 512 if max(span.length for span in self.spans) <= 2048 else 4096
        if queries > FEW:
            return min(rows, 2), 256, keys
        return 1 if rows == 1 else 8 if rows <= 16 else 32, 1 if queries == 1 else 16, keys

    @cached_property
    def halves(self) -> tuple[tuple[Packing, mx.array], tuple[Packing, mx.array]] | None:
        """Spans with few queries and spans with many, packed by themselves, with their tokens' places here [n].

        None where all are of one kind.
        """
        few, many = (
            [i for i, span in enumerate(self.spans) if (span.count <= FEW) is short] for short in (True, False)
        )
        return (self._only(few), self._only(many)) if few and many else None

    @cached_property
    def order(self) -> mx.array:
        """Where each token is when the tokens of both `halves` follow each other [N]."""
        assert self.halves
        return mx.argsort(mx.concatenate([tokens for _, tokens in self.halves]))

    def _only(self, wanted: list[int]) -> tuple[Packing, mx.array]:
        spans = [self.spans[i] for i in wanted]
        tokens = mx.array([i for span in spans for i in range(span.query, span.query + span.count)])
        queries = accumulate((span.count for span in spans), initial=0)
        packed = tuple(replace(span, query=query) for span, query in zip(spans, queries, strict=False))
        limits = None if self.limits is None else self.limits[tokens]
        places = replace(self.places, starts=self.places.starts[tokens], positions=self.positions[tokens])
        return Packing(packed, places, tuple(self.firsts[i] for i in wanted), limits=limits), tokens

    @cached_property
    def padded(self) -> Padded:
        """The spans, padded to one rectangle."""
        counts = {span.count for span in self.spans}
        rows, width = len(self.spans), max(counts)
        length = -(-max(span.length for span in self.spans) // PAD_KEYS) * PAD_KEYS
        if len(counts) == 1:
            return Padded(mx.arange(rows * width).reshape(rows, width), length, None)
        queries = mx.array([[span.query + min(t, span.count - 1) for t in range(width)] for span in self.spans])
        order = [i * width + t for i, span in enumerate(self.spans) for t in range(span.count)]
        return Padded(queries, length, mx.array(order))

    @cached_property
    def even(self) -> bool:
        """Whether there are several spans, all with few queries, and their rectangle has at most twice the scores that
        they have.
        """
        rows, width = len(self.spans), max(span.count for span in self.spans)
        if rows == 1 or width > FEW:
            return False
        longest = max(span.length for span in self.spans)
        return rows * width * longest <= 2 * sum(span.count * span.length for span in self.spans)

    def mask(self, index: int, window: int | None) -> mx.array | str | None:
        """The mask of span `index` over its row: [count, length] boolean, "causal", or None where all is visible.

        A key at position j is visible to a query at position i when j <= i (or its limit) and, in a sliding layer,
        i - j < window. Limits of an exact span reach its end.
        """
        key = (index, window)
        if key not in self._masks:
            self._masks[key] = self._build_mask(self.spans[index], window)
        return self._masks[key]

    def _build_mask(self, span: Span, window: int | None) -> mx.array | str | None:
        if span.exact and (window is None or span.length <= window):
            return None if span.count == 1 or self.limits is not None else "causal"
        queries = slice(span.query, span.query + span.count)
        return visible(self.positions[queries], self.seen[queries], mx.arange(span.length)[None], window)

    def sees(self, window: int | None) -> mx.array:
        """The first and the last position that each query sees [N or more, 2] int32: all that kernels know of masks."""
        if window not in self._sees:
            first = mx.zeros_like(self.seen) if window is None else mx.maximum(self.positions - (window - 1), 0)
            sees = mx.stack([first, self.seen], axis=1)
            lacking = max(0, CONSTANT_SIZE // 2 - sees.shape[0])
            self._sees[window] = mx.pad(sees, [(0, lacking), (0, 0)]) if lacking else sees
        return self._sees[window]

    def tiles(self, most: int) -> tuple[int, mx.array]:
        """The spans in pieces of at most so many queries: how many there are, and of each [4] int32 the first query,
        the count, the first page in the table, the length.
        """
        if most not in self._tiles:
            tiles = [
                (span.query + done, min(most, span.count - done), first, span.length)
                for span, first in zip(self.spans, self.firsts, strict=True)
                for done in range(0, span.count, most)
            ]
            lacking = max(0, CONSTANT_SIZE // 4 - len(tiles))
            self._tiles[most] = len(tiles), on_device(tiles + [(0, 0, 0, 0)] * lacking)
        return self._tiles[most]

    @property
    def seen(self) -> mx.array:
        """The last position that each query sees [N]."""
        return self.positions if self.limits is None else self.limits


def visible(positions: mx.array, limits: mx.array, keys: mx.array, window: int | None) -> mx.array:
    """Which keys, by position [..., L], queries with these positions and limits [..., T] see: [..., T, L]."""
    seen = keys <= limits[..., None]
    return seen if window is None else seen & (positions[..., None] - keys < window)
