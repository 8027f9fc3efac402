"""Who takes part in the next round: decoding rows first, then prompt chunks, then new rows while memory lasts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from ...kernels.pages.sizes import PAGE, pages_for
from .pages import Pages
from .prefix import MOST, Prefix, PrefixCache
from .room import Room, TokenRoom, chunk_end
from .row import FROM_DRAFT, Row
from .waiting import OVERTAKING, Waiting

PREFILL_TOKENS = 512
"""Most prompt tokens in one round, so that decoding rows never wait long for a prompt."""

FORCED = 7
"""Tokens that are drafted because there is no choice, at most in a round of a row, where there is no draft."""

HEADROOM = 128
"""Tokens beyond its prompt for which a new row must find pages, so that it is not sent back at once."""


@dataclass(frozen=True)
class Segment:
    """One row's share of a round: `count` tokens from position `first` on, which is a bound where `row` has drafts
    in flight. A prompt chunk has depth None, and yields a token if it ends its prompt; other segments are an anchor
    and `depth` drafted tokens, and always yield.

    The first drafted tokens are those that are `forced`, if any; the others are of this `kind`. A `late` segment's
    tokens are constrained, so they are chosen once the round has run.

    A row goes on from the prefix `cached`, whose pages are its own first ones. With `keep` the chunk ends a prefix that
    others will go on from.
    """

    row: Row
    slot: int
    first: int
    count: int
    exact: bool
    depth: int | None
    yields: bool
    forced: tuple[int, ...] = ()
    late: bool = False
    kind: int = FROM_DRAFT
    cached: Prefix | None = None
    keep: Prefix | None = None

    @property
    def bound(self) -> int:
        """The most tokens that the row can have once this round's are written."""
        return self.first + self.count


@dataclass(frozen=True)
class Plan:
    """One round: its segments in packed order, and which rows had to give way."""

    segments: list[Segment] = field(default_factory=list)
    preempted: list[Row] = field(default_factory=list)


class Scheduler:
    """Rows in order of admission, requests that wait, and the pages of the pool. Knows no MLX.

    Args:
        pages: of the pool.
        max_rows: most rows in a round.
        block: tokens that a draft writes past a row's cursor, 0 without a draft.
        depths: how many drafted tokens of each decoding row to verify in a round of so many prompt tokens besides.
        forced: tokens of a row at most that are drafted because there is no choice, if `depths` says fewer.
        prefixes: how many prefixes that prompts share are kept at most.
    """

    def __init__(
        self,
        pages: int,
        max_rows: int,
        block: int = 0,
        depths: Callable[[Sequence[Row], int], Sequence[int]] = lambda rows, prompt: [0] * len(rows),
        prefixes: int = MOST,
        forced: int = 0,
    ):
        self.pages = Pages(pages)
        self.max_rows = max_rows
        self.block = block
        self.depths = depths
        self.forced = forced
        self.prefill_tokens = PREFILL_TOKENS
        self.room: Callable[[Sequence[Row]], Room] = lambda decoding: TokenRoom(self.prefill_tokens)
        """What a round in which these rows decode has room for besides."""
        self.may_start: Callable[[Sequence[Row]], bool] = lambda rows: True
        """Whether these rows may take part in the next round; else they wait for another one."""
        self.rows: list[Row] = []
        self.prefixes = PrefixCache(self.pages, prefixes)
        self.waiting = Waiting(OVERTAKING * max_rows, self._rounds)
        self.preempted = 0
        self._free = list(range(max_rows - 1, -1, -1))

    def plan(self) -> Plan:
        """The next round; what it will do to its rows is noted in them.

        While a suspect of failed rounds runs, all other rows sit out.
        """
        plan = Plan()
        preempted = self.preempted
        suspect = next((row for row in self.rows if row.suspect), None)
        if not suspect and self._next_is_suspect and (admitted := self._admit()):
            return self._start([(*admitted, self._chunk(admitted[0], self.room([])))], plan)
        rows = [suspect] if suspect else self.rows
        decoding = [row for row in rows if not row.prefilling and row.ready]
        room = self.room(decoding)
        chunks = {row: self._chunk(row, room) for row in rows if row.prefilling and room.left}
        for row, depth in zip(decoding, self.depths(decoding, sum(chunks.values())), strict=True):
            depth = self._depth(row, depth)
            # A row before it may have taken its place.
            if row.running and self._reserve(row, row.bound + max(depth + 1, self.block if depth else 0), plan):
                plan.segments.append(self._decode(row, depth))
                room.draft(depth)
        plan.segments.extend(self._prefill(row, None, count) for row, count in chunks.items() if row.running)
        if suspect:
            return plan
        starting: list[tuple[Row, Prefix | None, int]] = []
        # A preempted row's last round must be read before the row can start again.
        while room.left and self.preempted == preempted and not self._next_is_suspect and (admitted := self._admit()):
            starting.append((*admitted, self._chunk(admitted[0], room)))
        return self._start(starting, plan)

    def add(self, row: Row) -> None:
        """Queue a request."""
        self.prefixes.note(row.request.tokens, row.adapter)
        self.waiting.add(row)

    def largest(self, row: Row) -> int:
        """The most slots the row can ever need; its last token is never written."""
        return len(row.request.tokens) + row.limit - 1 + self.block

    def remove(self, row: Row) -> None:
        """Take a row out, running or waiting, and free what it holds.

        Rounds in flight may still write to its pages; they run before anything that a new owner writes.
        """
        if not row.running:
            self.waiting.remove(row)
            return
        while row.prefixes:  # that it will not reach
            self.prefixes.drop(row.prefixes.pop())
        self.rows.remove(row)
        self.pages.release(row.pages)
        self._free.append(row.slot)
        row.slot, row.pages = -1, []

    def resize(self, rows: int, pages: int) -> None:
        """Have so many rows and pages at most. For fewer than there were, no row may run and no prefix be kept."""
        taken = {row.slot for row in self.rows}
        self.max_rows = rows
        self._free = [slot for slot in range(rows - 1, -1, -1) if slot not in taken]
        self.pages.resize(pages)

    def start_over(self) -> list[Row]:
        """Send all running rows back, the first to be the first again, after what they held is lost; returns them."""
        rows = self.rows[::-1]
        for row in rows:
            self._preempt(row)
        return rows

    @property
    def starts_suspect(self) -> bool:
        """Whether a suspect of failed rounds is to start: none runs, and the next row that waits is one."""
        return self._next_is_suspect and not any(row.suspect for row in self.rows)

    @property
    def _next_is_suspect(self) -> bool:
        row = self.waiting.next
        return row is not None and row.suspect

    @property
    def _next(self) -> Row | None:
        """The row to start next. Where no request waits for a row, prompts are read in order of length: so more rows
        decode while the long ones are read, and the first answers come soon.
        """
        return self.waiting.next if len(self.waiting) > len(self._free) else self.waiting.shortest

    def _start(self, starting: Sequence[tuple[Row, Prefix | None, int]], plan: Plan) -> Plan:
        """Let rows begin with so many tokens each of their prompts; they wait again if they may not start yet."""
        rows = [row for row, *_ in starting]
        if rows and self.may_start(rows):
            plan.segments.extend(self._prefill(*each) for each in starting)
        else:
            for row in reversed(rows):
                self._send_back(row)
        return plan

    def _depth(self, row: Row, asked: int) -> int:
        """How many drafted tokens of a row to verify: as asked, but at least those that are forced.

        While a round is in flight, none that may be constrained by what that one emits.
        """
        depth = min(max(asked, min(len(row.forced), self.forced)), row.left - 1)
        return int(min(depth, row.free - 1)) if row.in_flight else depth

    def _decode(self, row: Row, depth: int) -> Segment:
        late, forced = row.free < depth + 1, row.forced[:depth]
        segment = Segment(row, row.slot, row.bound, depth + 1, row.exact, depth, True, forced, late, row.kind)
        row.in_flight.append(depth + 1)
        return segment

    def _chunk(self, row: Row, room: Room) -> int:
        """How many tokens of its prompt a row has in a round with such room."""
        return room.take(row.cursor, chunk_end(row) - row.cursor)

    def _prefill(self, row: Row, cached: Prefix | None, count: int) -> Segment:
        first, end = row.cursor, chunk_end(row)
        row.cursor += count
        keep = row.prefixes.pop(0) if row.prefixes and row.cursor == end else None
        if keep:
            self.prefixes.keep(keep, row.pages)
        yields, late = not row.prefilling, row.free < 1
        if yields:
            row.in_flight.append(0)  # yields a token without moving the cursor
        return Segment(row, row.slot, first, count, True, None, yields, (), late, cached=cached, keep=keep)

    def _admit(self) -> tuple[Row, Prefix | None] | None:
        """Start the next waiting row if a place and pages are free; it goes on from the longest prefix kept.

        A row waits for a prefix that another is about to bring: meanwhile that one has the round's prompt tokens.
        """
        row = self._next
        if not row or not self._free:
            return None
        feed = row.request.tokens + tuple(row.generated)
        cached, soon = self.prefixes.find(feed, row.adapter)
        if soon:
            return None
        shared = list(cached.pages) if cached else []
        self.pages.share(shared)  # before another prefix gives way for the rest
        own = self._allocate(pages_for(min(len(feed) + HEADROOM, self.largest(row))) - len(shared))
        if own is None:
            self.pages.release(shared)
            return None
        self.waiting.remove(row)
        row.feed, row.pages, row.slot = feed, shared + own, self._free.pop()
        row.cursor = len(shared) * PAGE
        row.cached = min(row.cursor, len(row.request.tokens))
        row.prefixes = self.prefixes.reserve(feed, cached, row.adapter)
        self.rows.append(row)
        return row, cached

    def _allocate(self, count: int) -> list[int] | None:
        """So many pages, for which prefixes give way; None if that is not enough."""
        while (pages := self.pages.allocate(count)) is None and self.prefixes.give_way():
            pass
        return pages

    def _reserve(self, row: Row, length: int, plan: Plan) -> bool:
        """Make the row's pages hold `length` tokens, or preempt the youngest rows for it.

        False when the row itself had to give way.
        """
        while row.running and (missing := pages_for(length) - len(row.pages)) > 0:
            if pages := self._allocate(missing):
                row.pages += pages
            else:
                plan.preempted.append(self.rows[-1])
                self._preempt(self.rows[-1])
        return row.running

    def _preempt(self, row: Row) -> None:
        """Send a running row back; what it generated becomes part of its prefill."""
        self._send_back(row)
        self.preempted += 1

    def _send_back(self, row: Row) -> None:
        """Let a row wait at the head of the queue."""
        self.remove(row)
        self.waiting.put_back(row)

    def _rounds(self, row: Row) -> int:
        """The rounds that a row takes at most: one for each chunk of its prompt and for each token."""
        return -(-len(row.request.tokens) // self.prefill_tokens) + row.limit
