"""Entries of an MTP head that wait until their row drafts: the target's hidden states, and the tokens behind them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import mlx.core as mx

from ....kernels.packing import Packing, Span
from ...schedule.row import Row
from ...schedule.scheduler import Segment
from ..context import RoundTaps, RowTaps, Seen, WaitingContext


class EntryWrite(NamedTuple):
    """Entries to be written, row after row: hidden states [N, hidden], tokens [N], where they lie, and how many of each
    row's are of committed tokens [rows].
    """

    hidden: mx.array
    tokens: mx.array
    packing: Packing
    counts: mx.array


class WaitingEntries(WaitingContext):
    """The entries that are not written yet, row by row.

    What a constrained row emits is known to the host alone, once its round has been read. Until then its entries cannot
    be taken.
    """

    def __init__(self, most: int):
        super().__init__(most)
        self._last: dict[Row, Segment] = {}
        self._open: set[Row] = set()  # rows whose last tokens are not known yet
        self._drafted: dict[Row, int] = {}  # rows with drafts in the last round, and where these are in what it emits
        self._counts = mx.zeros(0, mx.int32)  # of what it emits

    def hold(self, seen: Seen) -> None:
        """Keep hidden states of a round, and the tokens behind them: of a prompt, or what is emitted."""
        places = {segment.row: m for m, segment in enumerate(seen.yielding)}
        width, emitted_end = seen.emitted.shape[-1], 1 + seen.emitted.size
        host: list[int] = []
        source: list[int] = []  # of each token, in a 0, all that is emitted, and what the host knows
        for segment in seen.segments:
            first, m = segment.first + 1, places.get(segment.row)
            known = segment.row.feed[first : first + segment.count] if segment.depth is None else ()
            source += range(emitted_end + len(host), emitted_end + len(host) + len(known))
            host += known
            others = segment.count - len(known)  # what the segment emits, if that is known
            source += [0] * others if m is None else range(1 + m * width + 1, 1 + m * width + 1 + others)
        table = [mx.zeros(1, mx.int32), seen.emitted.flatten(), mx.array(host, mx.int32)]
        tokens = mx.concatenate(table)[mx.array(source)]
        self._keep(RoundTaps([seen.hidden], seen.positions, len(seen.segments), tokens), seen.segments)
        self._last |= {segment.row: segment for segment in seen.segments}
        self._open |= {segment.row for segment in seen.segments if segment.late}
        self._drafted = {segment.row: m for m, segment in enumerate(seen.yielding) if segment.depth}
        self._counts = seen.emitted[:, 0] if seen.yielding else self._counts

    def settle(self, row: Row, tokens: Sequence[int]) -> None:
        """The row's last round turns out to emit these: what follows in it is not held any more."""
        if row not in self._rows or not tokens:
            return
        last, segment = self._rows[row][-1], self._last[row]
        kept = last.tokens if segment.depth is None else last.tokens[: len(tokens)]
        self._rows[row][-1] = RowTaps(last.taps, kept, tuple(tokens))
        self._open.discard(row)
        self._drafted.pop(row, None)

    def take(self, rows: Sequence[Row]) -> EntryWrite | None:
        """What these rows lack, as far as it is known, to be written to the pages that they have now."""
        rows = [row for row in rows if row in self._rows and row not in self._open]
        if not rows:
            return None
        begins: dict[RoundTaps, int] = {}  # of each round's tokens, in those of all rounds
        size = 0
        for taps in (taps for row in rows for taps, *_ in self._rows[row]):
            if taps not in begins:
                begins[taps] = size
                size += taps.positions.size
        host: list[int] = []
        spans: list[Span] = []
        states: list[int] = []  # of each entry, in the states of all rounds
        source: list[int] = []  # of its token, likewise, followed by what the host knows
        counts: list[int] = []
        for row in rows:
            segment, drafted, query = self._last[row], row in self._drafted, len(states)
            held = self.drop(row)
            for taps, tokens, known in held:
                places = [begins[taps] + token for token in tokens]
                states += places
                source += [*places[: len(places) - len(known)], *range(size + len(host), size + len(host) + len(known))]
                host += known
            count = len(states) - query
            length = segment.bound - (segment.count - len(held[-1].tokens))
            spans.append(Span(query, count, row.pages, length, segment.exact, segment.slot))
            counts.append(count - segment.count if drafted else count)
        emitted = [self._drafted.get(row, -1) for row in rows]
        valid = mx.array(counts, mx.int32)
        if any(m >= 0 for m in emitted):
            valid = valid + mx.where(mx.array(emitted) >= 0, self._counts[mx.array([max(0, m) for m in emitted])], 0)
        hidden = joined([taps.states[0] for taps in begins], states)
        positions = joined([taps.positions for taps in begins], states)
        every = [taps.tokens for taps in begins if taps.tokens is not None]
        tokens = joined([*every, mx.array(host, mx.int32)] if host else every, source)
        return EntryWrite(hidden, tokens, Packing.of(spans, positions), valid)

    def drop(self, row: Row) -> list[RowTaps]:
        self._last.pop(row, None)
        self._open.discard(row)
        return super().drop(row)


def joined(parts: list[mx.array], wanted: list[int]) -> mx.array:
    """These of the entries of all parts, which follow each other."""
    whole = parts[0] if len(parts) == 1 else mx.concatenate(parts)
    return whole if wanted == list(range(whole.shape[0])) else whole[mx.array(wanted)]
