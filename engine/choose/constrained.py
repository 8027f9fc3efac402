"""The late half of a round: constrained rows choose their tokens once the host has read what was drafted."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import mlx.core as mx

from ..schedule.scheduler import Segment
from ..state.row_ends import End
from .grammar import GrammarError
from .masks import masked
from .sampling import choose
from .scored import Scored


@dataclass
class Choice:
    """What a constrained segment emits: `tokens`, the first `accepted` of them drafted; or why its row cannot go on.

    `masks` are of its first slots: those behind drafts that the grammar allows, one after the other.
    """

    segment: Segment
    drafted: list[int]
    masks: list[bytes | None] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)
    accepted: int = 0
    error: GrammarError | None = None

    @property
    def first(self) -> int:
        """The position of the first token that it emits."""
        return self.segment.bound if self.segment.depth is None else self.segment.row.cursor + 1

    @property
    def end(self) -> End:
        """Where its row goes on."""
        segment, count = self.segment, len(self.tokens)
        return End(segment.slot, self.tokens[-1], segment.row.cursor, count if segment.depth else 0)


class Chooser:
    """Chooses for rounds that have run. While another round runs, it computes beside it: on a stream of its own."""

    def __init__(self) -> None:
        self._stream: mx.Stream | None = None

    def choose(self, scored: Scored, wanted: Callable[[Segment], bool] = lambda segment: True) -> list[Choice]:
        """What the wanted segments emit; the matchers of their rows are then behind it.

        As in `verify`, the target chooses its own token for every slot, here among those that the matcher allows there,
        and drafts are accepted as long as they are that token.
        """
        drafts = iter([] if scored.drafts is None else tokens_of(scored.drafts))
        choices = [Choice(segment, list(islice(drafts, segment.depth or 0))) for segment in scored.segments]
        for choice in choices:
            row = choice.segment.row
            if wanted(choice.segment) and row.matcher and row.finish_reason is None:
                try:
                    choice.masks = row.matcher.masks(choice.drafted)
                except GrammarError as error:
                    choice.error = error
        chosen = iter(self._choose(scored, choices))
        for choice in choices:
            row = choice.segment.row
            if row.matcher and choice.masks:
                own = list(islice(chosen, len(choice.masks)))
                pairs = zip(own, choice.drafted, strict=False)
                most = min(len(own), len(choice.drafted))
                choice.accepted = next((i for i, (token, draft) in enumerate(pairs) if token != draft), most)
                choice.tokens = own[: choice.accepted + 1]
                try:
                    row.matcher.advance(choice.tokens)
                except GrammarError as error:
                    choice.error = error
        return [choice for choice in choices if wanted(choice.segment)]

    def _choose(self, scored: Scored, choices: list[Choice]) -> list[int]:
        """The token of every slot that has a mask."""
        wanted: list[int] = []
        begin = 0
        for choice in choices:
            wanted.extend(range(begin, begin + len(choice.masks)))
            begin += len(choice.drafted) + 1
        if not wanted:
            return []
        masks = [mask for choice in choices for mask in choice.masks]
        samplings = [choice.segment.row.request.sampling for choice in choices for _ in choice.masks]
        positions = [choice.first + i for choice in choices for i in range(len(choice.masks))]
        if self._stream is None:
            self._stream = mx.new_stream(mx.default_device())
        with mx.stream(self._stream):
            logits = masked(scored.logits[mx.array(wanted)], masks)
            return tokens_of(choose(logits, samplings, mx.array(positions), scored.operations))


def tokens_of(array: mx.array) -> list[int]:
    """Tokens on the host, once they are computed."""
    tokens: Any = array.tolist()
    return tokens
