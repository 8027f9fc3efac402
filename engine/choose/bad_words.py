"""Words that may not come: their tokens, and a matcher that forbids the last of each behind the others."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..schedule.row import Matcher
from .grammar import GrammarError
from .masks import all_but, allows, without


def spelled(words: Sequence[str], tokenizer: Any) -> list[tuple[int, ...]]:
    """The tokens of each word, and, as in vLLM, those of the word behind a space if they are as many and begin with
    another one.
    """
    sequences: list[tuple[int, ...]] = []
    for word in words:
        plain, spaced = (
            tuple(tokenizer.encode(text, add_special_tokens=False)) for text in (word.lstrip(), " " + word.lstrip())
        )
        sequences.append(plain)
        if len(spaced) == len(plain) and spaced[:1] != plain[:1]:
            sequences.append(spaced)
    return [sequence for sequence in dict.fromkeys(sequences) if sequence]


class Forbidding:
    """A row's place in its text, where bad words of several tokens may not come, nor what its grammar does not allow.

    Args:
        sequences: tokens of words, two or more of each.
        vocabulary: tokens that the model's logits cover.
        grammar: the matcher of the row's grammar, if it has one.
    """

    free = 0.0
    watch = None

    def __init__(self, sequences: Sequence[tuple[int, ...]], vocabulary: int, grammar: Matcher | None = None):
        self._sequences, self._grammar = sequences, grammar
        self._longest = max(map(len, sequences)) - 1
        self._any = all_but((), vocabulary)
        self._last: list[int] = []  # tokens, as many as a word has before its last one

    @property
    def complete(self) -> bool:
        """Whether nothing may follow any more."""
        return self._grammar is not None and self._grammar.complete

    @property
    def forced(self) -> Sequence[int]:
        """The tokens that come next, as far as there is no choice and no bad word among them."""
        return self._grammar.forced if self._grammar else ()

    def masks(self, drafts: Sequence[int]) -> list[bytes | None]:
        """What may come next, and what after each drafted token up to the first refused one. Raises GrammarError."""
        allowed = self._grammar.masks(drafts) if self._grammar else [None] * (len(drafts) + 1)
        masks: list[bytes | None] = []
        for place, mask in enumerate(allowed):
            masks.append(self._without_words(mask or self._any, [*self._last, *drafts[:place]]))
            if place < len(drafts) and not allows(masks[-1], drafts[place]):
                break
        return masks

    def advance(self, tokens: Sequence[int]) -> None:
        """The row emits these tokens, which are allowed. Raises GrammarError."""
        self._last = [*self._last, *tokens][-self._longest :]
        if self._grammar:
            self._grammar.advance(tokens)

    def _without_words(self, mask: bytes, before: Sequence[int]) -> bytes:
        """The mask without the tokens that would end a word behind these."""
        left = without(mask, [last for *first, last in self._sequences if list(before[-len(first) :]) == first])
        if not any(left):
            raise GrammarError("bad_words and the grammar leave no token that may come")
        return left
