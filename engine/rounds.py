"""Rounds: a plan's segments as packed tokens, and what is in flight of them until the host reads it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import accumulate, islice
from typing import Any

import mlx.core as mx

from ..kernels.gpu.launch import on_device
from ..kernels.operations import Operations
from ..kernels.packing import Packing, Span
from ..kernels.products.low_rank import Chosen
from .choose.constrained import Choice, choose
from .choose.grammar import GrammarError
from .choose.history import Histories
from .choose.scored import Accepted, Scored
from .depth.round_times import Forecast
from .request import NO_ADAPTER, TokenLogprob
from .schedule.row import Row
from .schedule.scheduler import Segment
from .state.row_ends import RowEnds


@dataclass(frozen=True)
class Emitted:
    """What a segment has emitted: tokens, the first `accepted` of them drafted, and their log-probabilities if its row
    asks for them.
    """

    segment: Segment
    tokens: list[int]
    accepted: int
    logprobs: list[TokenLogprob]
    error: GrammarError | None = None


@dataclass(frozen=True)
class Round:
    """A round in flight: the segments that yield, and what they emit, on the device.

    What constrained segments emit is chosen of their `late` share once the round has run. So it is with those of the
    `watched` share whose rows are constrained by what the round before turns out to emit. `forecast` is how the round
    was priced, if it was.
    """

    yielding: list[Segment] = field(default_factory=list)
    accepted: Accepted = field(default_factory=Accepted)
    late: Scored | None = None
    watched: Scored | None = None
    forecast: Forecast | None = None

    @property
    def arrays(self) -> list[mx.array]:
        return [*self.accepted.arrays, *(self.late.arrays if self.late else [])]

    @property
    def overtaken(self) -> set[Row]:
        """Rows that were free when the round was launched, and are not any more."""
        rows = [segment.row for segment in self.watched.segments] if self.watched else []
        return {row for row in rows if row.matcher and row.matcher.free < 1}

    def choices(self, overtaken: set[Row]) -> list[Choice]:
        """What constrained segments emit, those of the overtaken rows among them."""
        choices = choose(self.late) if self.late else []
        if self.watched and overtaken:
            choices += choose(self.watched, lambda segment: segment.row in overtaken)
        return choices

    def emitted(self) -> list[Emitted]:
        """What its segments have emitted but for the late ones, once it has run."""
        emitted: Any = self.accepted.emitted.tolist()
        most = [segment.row.request.sampling.logprobs for segment in self.yielding]
        asked: list[int | None] = []  # of all slots that have log-probabilities
        for segment, number, (count, *_) in zip(self.yielding, most, emitted, strict=True):
            if number is not None:
                asked += [number] * count + [None] * ((segment.depth or 0) + 1 - count)
        listed = iter(self.accepted.logprobs.listed(asked) if self.accepted.logprobs else ())
        return [
            Emitted(segment, own[:count], count - 1, [] if number is None else list(islice(listed, count)))
            for segment, (count, *own), number in zip(self.yielding, emitted, most, strict=True)
        ]


def chosen(
    yielding: list[Segment],
    logits: mx.array,
    drafts: mx.array | None,
    operations: Operations,
    ends: RowEnds,
    histories: Histories,
) -> Round:
    """The round in which these segments yield, from logits [S, vocabulary] of their slots and drafts [F]; it moves the
    ends of rows that are not constrained.
    """
    histories.start(yielding)
    changes = [histories.of(segment.row) for segment in yielding]
    free, late = Scored(yielding, logits, drafts, operations, changes).split()
    if not free:
        return Round(late=late)
    watched = free if free.watched else None
    return Round(free.segments, free.accept(ends, histories), late, watched)


def settle(
    read: Round,
    emitted: list[Emitted],
    take: Callable[[Emitted | Choice], None],
    ends: RowEnds,
    histories: Histories,
) -> None:
    """Let rows take what a round that has run `emitted`, then what its constrained segments choose now."""
    overtaken = read.overtaken
    for each in emitted:
        if each.segment.row not in overtaken:
            each.segment.row.follow(each.tokens)
            take(each)
    choices = read.choices(overtaken)
    for choice in choices:
        take(choice)
    going_on = [choice for choice in choices if choice.segment.slot == choice.segment.row.slot]
    ends.put([choice.end for choice in going_on])
    for choice in going_on:
        row = choice.segment.row
        if row in overtaken:
            histories.make_anew(row)
        else:
            histories.put(row, choice.tokens)


def in_order(segments: list[Segment], asked: list[Segment], drafts: list[mx.array]) -> mx.array:
    """All drafts [F] of segments: of each what is forced, then what was drafted for it, where it was `asked` for: one
    segment after another in that order, in `drafts` that follow each other.
    """
    if len(drafts) == 1 and asked == segments and not any(s.forced for s in segments):
        return drafts[0]
    begins = dict(zip((s.slot for s in asked), accumulate((s.depth or 0 for s in asked), initial=0), strict=False))
    drafted, forced = sum(s.depth or 0 for s in asked), list[int]()
    source: list[int] = []  # of each draft, in all that was drafted, followed by what is forced
    for s in segments:
        known, begin = len(s.forced), begins.get(s.slot, 0)
        source.extend(range(drafted + len(forced), drafted + len(forced) + known))
        source.extend(range(begin + known, begin + (s.depth or 0)))
        forced.extend(s.forced)
    return mx.concatenate([*drafts, mx.array(forced, mx.int32)])[mx.array(source)]


def adapters_of(segments: list[Segment]) -> Chosen | None:
    """The LoRA adapters of a round's tokens, in their order; None if no row has one."""
    adapters = [s.row.adapter for s in segments for _ in range(s.count)]
    return None if set(adapters) == {NO_ADAPTER} else Chosen(on_device(adapters))


def pack(segments: list[Segment], drafted: mx.array | None, ends: RowEnds) -> tuple[mx.array, Packing]:
    """Tokens [N] and packing of a round: prompt tokens come from the host, anchors and drafts from the device."""
    spans: list[Span] = []
    prompt: list[int] = []
    source: list[int] = []  # of every packed token, in the anchors followed by the drafts and the prompt tokens
    offsets: list[int] = []  # from the row's cursor; absolute in a prompt chunk
    on_device: list[bool] = []
    drafts = sum(segment.depth or 0 for segment in segments)
    next_draft, next_prompt = ends.anchors.size, ends.anchors.size + drafts
    for s in segments:
        final = not s.depth
        spans.append(Span(len(source), s.count, s.row.pages, s.bound, s.exact, s.slot, fresh=s.first == 0, final=final))
        if s.depth is None:
            source.extend(range(next_prompt, next_prompt + s.count))
            prompt.extend(s.row.feed[s.first : s.first + s.count])
            offsets.extend(range(s.first, s.first + s.count))
            next_prompt += s.count
        else:
            source.extend([s.slot, *range(next_draft, next_draft + s.depth)])
            offsets.extend(range(s.count))
            next_draft += s.depth
        on_device.extend([s.depth is not None] * s.count)
    table = [ends.anchors, *([] if drafted is None else [drafted]), mx.array(prompt, mx.int32)]
    rows = mx.array([s.slot for s in segments for _ in range(s.count)])
    positions = mx.array(offsets, mx.int32) + mx.where(mx.array(on_device), ends.cursors[rows], 0)
    replay = ends.replay[mx.array([s.slot for s in segments])]
    return mx.concatenate(table)[mx.array(source)], Packing.of(spans, positions, replay)
