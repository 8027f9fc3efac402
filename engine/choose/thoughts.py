"""Thoughts before an answer: where they end, how many tokens they may have, and that a grammar begins behind them."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from ..schedule.row import Matcher, Watch
from .masks import all_but, allows, only, united


@dataclass(frozen=True)
class Markers:
    """The tokens that begin thoughts and end them, and those that the chat template writes `behind` their end.

    `blank` says whether a token is whitespace.
    """

    start: tuple[int, ...]
    end: tuple[int, ...]
    behind: tuple[int, ...]
    blank: Callable[[int], bool]

    @staticmethod
    def of(tokenizer: Any) -> Markers | None:
        """Those of mlx-lm's tokenizer wrapper, if it knows any."""
        if not getattr(tokenizer, "think_end_tokens", None):
            return None
        # Templates write it in histories of chats, as '\n</think>\n\n' or the like.
        template = str(getattr(tokenizer, "chat_template", None))
        found = re.search(re.escape(tokenizer.think_end) + r"((?:\\n)+)", template)
        newlines = "\n" * (len(found[1]) // 2) if found else ""
        behind = tokenizer.encode(newlines, add_special_tokens=False) if newlines else []
        return Markers(
            tuple(tokenizer.think_start_tokens),
            tuple(tokenizer.think_end_tokens),
            tuple(behind),
            lambda token: tokenizer.decode([token]).isspace(),
        )


class Place(NamedTuple):
    """Where a text is: `before` thoughts that may come, so many tokens into the marker that begins them; `within` the
    thoughts, of which it has so many, the last tokens in `tail`; `closing` them with the tokens `rest`; or `answering`.
    """

    stage: Literal["before", "within", "closing", "answering"]
    length: int = 0
    tail: tuple[int, ...] = ()
    rest: tuple[int, ...] = ()


ANSWERING = Place("answering")


class ThoughtsMatcher:
    """One row's place in its thoughts, and in the grammar that its answer must obey, if there is one.

    After `budget` thoughts the marker that ends them is forced. With a grammar no end token may come before the answer,
    and where thoughts may come, the first token is either the grammar's or the start of the marker that begins them.
    What the template writes behind the end marker is forced where the budget or a grammar says what follows.

    Args:
        markers: of this model.
        budget: most tokens of thoughts; None for no limit.
        inner: the grammar's matcher, at its beginning.
        opened: whether the text begins within the thoughts.
        ends: end tokens.
        vocabulary: tokens that the logits cover.
    """

    def __init__(
        self,
        markers: Markers,
        budget: int | None,
        inner: Matcher | None,
        opened: bool,
        ends: frozenset[int],
        vocabulary: int,
    ):
        self._markers, self._inner, self._ends, self._vocabulary = markers, inner, ends, vocabulary
        self._no_ends = all_but(ends, vocabulary)
        self._budget = math.inf if budget is None else budget
        self._place = self._within(0, ()) if opened else Place("before")

    @property
    def complete(self) -> bool:
        """Whether nothing may follow any more."""
        return self._place == ANSWERING and self._inner is not None and self._inner.complete

    @property
    def free(self) -> float:
        """How many tokens may come next of which none is constrained, unless thoughts end before."""
        match self._place.stage:
            case "answering":
                return math.inf if self._inner is None else 0
            case "before" if self._inner is None:
                return len(self._markers.start) - self._place.length + self._budget
            case "within":
                return self._budget - self._place.length
            case _:
                return 0

    @property
    def watch(self) -> Watch | None:
        """The last token of the marker that ends the thoughts, if a grammar begins there."""
        return Watch(self._markers.end[-1], self._no_ends) if self._inner and self._place.stage == "within" else None

    @property
    def forced(self) -> Sequence[int]:
        """The tokens that come next, as far as there is no choice."""
        if self._place == ANSWERING:
            return self._inner.forced if self._inner else ()
        return self._place.rest

    def masks(self, drafts: Sequence[int]) -> list[bytes | None]:
        """What may come next, and what after each drafted token up to the first that is refused or ends the text.

        None allows all tokens. Raises GrammarError.
        """
        masks: list[bytes | None] = []
        place, begin = self._place, 0  # of the answer, among the drafts
        for i, token in enumerate([*drafts, -1]):
            if place == ANSWERING:
                inner = self._inner.masks(drafts[begin:]) if self._inner else [None] * (len(drafts) - begin + 1)
                return masks + inner[i - begin :]
            masks.append(mask := self._mask(place))
            if token < 0 or token in self._ends or not allows(mask, token):
                break
            begin = i if place.stage == "before" else i + 1
            place = self._after(place, token)
        return masks

    def advance(self, tokens: Sequence[int]) -> None:
        """The row emits these tokens, which are allowed; an end token leaves it where it is. Raises GrammarError."""
        for i, token in enumerate(tokens):
            before = self._place
            if before.stage != "answering" and token not in self._ends:
                self._place = self._after(before, token)
            if self._place == ANSWERING and before.stage in ("before", "answering"):
                if self._inner:
                    self._inner.advance(tokens[i:])
                return

    def _after(self, place: Place, token: int) -> Place:
        """The place behind a token."""
        markers = self._markers
        if place.stage == "before":
            if token == markers.start[place.length]:
                begun = place.length + 1 == len(markers.start)
                return self._within(0, ()) if begun else Place("before", place.length + 1)
            return place if not self._inner and not place.length and markers.blank(token) else ANSWERING
        if place.stage == "closing":
            return self._closing(place.rest[1:])
        tail = (*place.tail, token)[-len(markers.end) :]
        if tail == markers.end:
            return self._closing(markers.behind if self._inner else ())
        return self._within(place.length + 1, tail)

    def _within(self, count: int, tail: tuple[int, ...]) -> Place:
        if count < self._budget:
            return Place("within", count, tail)
        end = self._markers.end  # of which the last thoughts may be the beginning
        begun = next(length for length in range(len(end) - 1, -1, -1) if tail[len(tail) - length :] == end[:length])
        return self._closing(end[begun:] + self._markers.behind)

    def _closing(self, rest: tuple[int, ...]) -> Place:
        return Place("closing", rest=rest) if rest else ANSWERING

    def _mask(self, place: Place) -> bytes | None:
        """What may come before the answer."""
        start = self._markers.start
        if place.stage == "closing":
            return only(place.rest[:1], self._vocabulary)
        if self._inner is None:
            return None
        if place.stage == "within":
            return self._no_ends
        if place.length:
            return only([start[place.length]], self._vocabulary)
        first = self._inner.masks([])[0]
        return first and united(first, only(start[:1], self._vocabulary))
