"""Grammars: which tokens may come next for a row whose text must obey a JSON schema.

llguidance knows; it is imported with the first such row.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from copy import copy
from functools import cached_property
from typing import Any

import mlx.core as mx

from ..request import Grammar, RequestError

KEPT = 64
"""Compiled schemas that are kept: requests of a batch mostly share one."""

WHITESPACE = r" |\n[ \t]{0,40}"
"""What may stand between two parts of a JSON text: enough to indent it, too little to go on with for ever."""


class GrammarError(ValueError):
    """A row that cannot go on under its grammar; the message is one line."""


class Grammars:
    """JSON schemas, compiled for the tokens of one model.

    Args:
        tokenizer: mlx-lm's tokenizer wrapper.
        vocabulary: tokens that the model's logits cover.
    """

    def __init__(self, tokenizer: Any, vocabulary: int):
        self._tokenizer, self._vocabulary = tokenizer, vocabulary
        self._compiled: dict[Grammar, Any] = {}

    def matcher(self, grammar: Grammar) -> SchemaMatcher:
        """A matcher at the beginning of a text; raises RequestError."""
        if grammar not in self._compiled:
            compiled = self._compile(grammar)
            if len(self._compiled) == KEPT:
                del self._compiled[next(iter(self._compiled))]
            self._compiled[grammar] = compiled
        return SchemaMatcher(self._compiled[grammar].deep_copy(), frozenset(self._tokenizer.eos_token_ids))

    def _compile(self, asked: Grammar) -> Any:
        from llguidance import LLMatcher, LLParserLimits

        if asked.kind != "json":
            raise RequestError(f"a grammar of kind {asked.kind} cannot be enforced")
        tokens = self._tokens
        try:
            grammar = LLMatcher.grammar_from_json_schema(asked.text, overrides={"whitespace_pattern": WHITESPACE})
            matcher = LLMatcher(tokens, grammar, log_level=0, limits=LLParserLimits(verbose_errors=False))
            reason = matcher.get_error()
        except ValueError as error:
            matcher, reason = None, str(error)
        if reason:
            raise RequestError(f"the JSON schema of response_format cannot be enforced: {one_line(reason)}")
        return matcher

    @cached_property
    def _tokens(self) -> Any:
        """The model's vocabulary as llguidance wants it; takes about a second."""
        from llguidance import LLTokenizer

        backend = getattr(self._tokenizer, "backend_tokenizer", None)
        if backend is None:
            raise RequestError("this model's tokenizer cannot be used with response_format: it has no fast form")
        backend = copy(backend)
        backend.no_padding()
        backend.no_truncation()
        ends = sorted(self._tokenizer.eos_token_ids)
        return LLTokenizer(backend.to_str(), n_vocab=max(self._vocabulary, backend.get_vocab_size()), eos_token=ends)


class SchemaMatcher:
    """One row's place in its grammar: behind the tokens that it has generated.

    Args:
        inner: llguidance's matcher.
        ends: end tokens, which the grammar allows where the text may end.
    """

    def __init__(self, inner: Any, ends: frozenset[int]):
        self._inner, self._ends = inner, ends

    @property
    def complete(self) -> bool:
        """Whether nothing may follow any more."""
        return self._inner.is_stopped()

    def masks(self, drafts: Sequence[int]) -> list[bytes]:
        """What may come next, and what after each drafted token up to the first that is refused or ends the text.

        A token's bit is set if it may come; the lowest bit of the first byte is token 0's. Raises GrammarError.
        """
        masks, walked = [self._mask()], 0
        for token in drafts:
            if not has(masks[-1], token) or token in self._ends:
                break
            self.advance([token])
            walked += 1
            if self.complete:
                break
            masks.append(self._mask())
        self._inner.rollback(walked)
        return masks

    def advance(self, tokens: Sequence[int]) -> None:
        """The row emits these tokens, which are allowed; an end token leaves it where it is. Raises GrammarError."""
        self._inner.consume_tokens([token for token in tokens if token not in self._ends])
        self._check()

    def _mask(self) -> bytes:
        mask = self._inner.compute_bitmask()
        self._check()
        if mask.count(0) == len(mask):
            raise GrammarError("the JSON schema of response_format leaves no token that this model has")
        return mask

    def _check(self) -> None:
        if self._inner.is_error():
            raise GrammarError(f"the JSON schema of response_format is too hard: {one_line(self._inner.get_error())}")


def masked(logits: mx.array, masks: Sequence[bytes]) -> mx.array:
    """Logits [S, vocabulary] with those of tokens that may not come at minus infinity."""
    size = -(-logits.shape[-1] // 8)  # a grammar's tokenizer may have more
    rows: Any = memoryview(b"".join(mask[:size] for mask in masks)).cast("B", (len(masks), size))
    bits = (mx.array(rows)[:, :, None] >> mx.arange(8, dtype=mx.uint8) & 1).reshape(len(masks), -1)
    return mx.where(bits[:, : logits.shape[-1]], logits, -mx.inf)


def has(mask: bytes, token: int) -> bool:
    """Whether the mask lets the token come."""
    return bool(mask[token // 8] >> token % 8 & 1)


def without(mask: bytes, tokens: Iterable[int]) -> bytes:
    """The mask less these tokens."""
    left = bytearray(mask)
    for token in tokens:
        left[token // 8] &= ~(1 << token % 8) & 0xFF
    return bytes(left)


def one_line(text: str) -> str:
    """A library's message, on one line and not endless."""
    return " ".join(text.split())[:300].rstrip(".")
