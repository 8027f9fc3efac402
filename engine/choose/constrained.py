"""The late half of a round: constrained rows choose their tokens once the host has read what was drafted."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Any

import mlx.core as mx

from ..request import TokenLogprob
from ..schedule.row import Row
from ..schedule.scheduler import Segment
from ..state.row_ends import End
from .change import Slot, choose_changed
from .grammar import GrammarError
from .logprobs import logprobs
from .masks import allows, without
from .scored import Scored

NONE_LEFT = "the grammar, allowed_token_ids and bad_words together leave no token that may come"

_of_thread = threading.local()


@dataclass
class Choice:
    """What a constrained segment emits: `tokens`, the first `accepted` of them drafted; or why its row cannot go on.

    `masks` are of its first slots: those behind drafts that the grammar allows, one after the other. If the row asks
    for them, the tokens have `logprobs`.
    """

    segment: Segment
    drafted: list[int]
    masks: list[bytes | None] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)
    accepted: int = 0
    logprobs: list[TokenLogprob] = field(default_factory=list)
    error: GrammarError | None = None

    @property
    def first(self) -> int:
        """The position of the first token that it emits."""
        return self.segment.bound if self.segment.depth is None else self.segment.row.cursor + 1

    @property
    def most(self) -> int | None:
        """How many of the likeliest tokens' log-probabilities its row asks for."""
        return self.segment.row.request.sampling.logprobs

    @property
    def end(self) -> End:
        """Where its row goes on."""
        segment, count = self.segment, len(self.tokens)
        return End(segment.slot, self.tokens[-1], segment.row.cursor, count if segment.depth else 0)


def choose(scored: Scored, wanted: Callable[[Segment], bool] = lambda segment: True) -> list[Choice]:
    """What the wanted segments of a round that has run emit; the matchers of their rows are then behind it. While
    another round runs, this computes beside it.

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
    chosen = iter(_choose(scored, choices))
    for choice in choices:
        row = choice.segment.row
        if row.matcher and choice.masks:
            own = list(islice(chosen, len(choice.masks)))
            pairs = zip(own, choice.drafted, strict=False)
            most = min(len(own), len(choice.drafted))
            choice.accepted = next((i for i, (token, draft) in enumerate(pairs) if token != draft), most)
            choice.tokens = own[: choice.accepted + 1]
            if not all(may_come(row, *pair) for pair in zip(choice.tokens, choice.masks, strict=False)):
                choice.error = GrammarError(NONE_LEFT)
                continue
            try:
                row.matcher.advance(choice.tokens)
            except GrammarError as error:
                choice.error = error
    _add_logprobs(scored, choices)
    return [choice for choice in choices if wanted(choice.segment)]


def _choose(scored: Scored, choices: list[Choice]) -> list[int]:
    """The token of every slot that has a mask."""
    wanted = [begin + i for begin, choice in begun(choices) for i in range(len(choice.masks))]
    if not wanted:
        return []
    masks = [mask for choice in choices for mask in choice.masks]
    all_slots = scored.slots
    slots = [under(mask, all_slots[place]) for place, mask in zip(wanted, masks, strict=True)]
    samplings = [choice.segment.row.request.sampling for choice in choices for _ in choice.masks]
    positions = [choice.first + i for choice in choices for i in range(len(choice.masks))]
    with mx.stream(beside()):
        logits = scored.logits[mx.array(wanted)]
        places = mx.array(positions)
        return tokens_of(choose_changed(logits, samplings, places, slots, scored.drafts, scored.operations))


def _add_logprobs(scored: Scored, choices: list[Choice]) -> None:
    """Give tokens their log-probabilities where rows ask for them."""
    asking = [(place, choice) for place, choice in begun(choices) if choice.most is not None and choice.tokens]
    if not asking:
        return
    slots = [place + i for place, choice in asking for i in range(len(choice.tokens))]
    tokens = [token for _, choice in asking for token in choice.tokens]
    most = [choice.most or 0 for _, choice in asking for _ in choice.tokens]
    with mx.stream(beside()):
        listed = iter(logprobs(scored.logits, slots, mx.array(tokens), max(most)).listed(most))
    for _, choice in asking:
        choice.logprobs = list(islice(listed, len(choice.tokens)))


def beside() -> mx.Stream:
    """The second stream of this thread. MLX never ends a stream, so that engines that follow each other share it."""
    if not hasattr(_of_thread, "stream"):
        _of_thread.stream = mx.new_stream(mx.default_device())
    return _of_thread.stream


def may_come(row: Row, token: int, mask: bytes | None) -> bool:
    """Whether a token that was chosen is one that may; where none may, any is."""
    allowed = row.request.sampling.allowed_token_ids
    return allows(mask, token) and token not in row.banned and (not allowed or token in allowed)


def under(mask: bytes | None, slot: Slot) -> Slot:
    """A slot with its mask. Where the grammar allows the end alone, that comes, however early."""
    change = slot.change
    if mask and change and change.ends and not any(without(mask, change.ends)):
        change = replace(change, ends=())
    return slot._replace(change=change, mask=mask)


def begun(choices: list[Choice]) -> Iterator[tuple[int, Choice]]:
    """Where the slots of each choice begin."""
    slot = 0
    for choice in choices:
        yield slot, choice
        slot += len(choice.drafted) + 1


def tokens_of(array: mx.array) -> list[int]:
    """Tokens on the host, once they are computed."""
    tokens: Any = array.tolist()
    return tokens
