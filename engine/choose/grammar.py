"""Grammars: which tokens may come next for a row whose answer must obey one.

llguidance knows; it is imported with the first such row.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from copy import copy
from functools import cached_property
from typing import Any

from ..request import Grammar, Request, RequestError
from ..schedule.row import Matcher
from .masks import allows
from .notation import notated
from .thoughts import Markers, ThoughtsMatcher

KEPT = 64
"""Compiled grammars, and reasons against others, that are kept: requests of a batch mostly share one."""

SECONDS = 10.0
"""A grammar must be compiled after so long; others take milliseconds, the largest JSON schemas a second."""

STACK = 256 * 2**20
"""Bytes of stack for compiling, which goes down by a step for each rule that names another. They are taken as used."""

LEXER_STATES = 50_000
"""Most states of a grammar's lexer, each of 1 to 2 KB."""


class GrammarError(ValueError):
    """A row that cannot go on under its grammar; the message is one line."""


class Grammars:
    """Grammars, compiled for the tokens of one model.

    Args:
        tokenizer: mlx-lm's tokenizer wrapper.
        vocabulary: tokens that the model's logits cover.
    """

    def __init__(self, tokenizer: Any, vocabulary: int):
        self._tokenizer, self._vocabulary = tokenizer, vocabulary
        self._compiled: dict[Grammar, Any] = {}  # a matcher, or the reason why there is none

    def matcher(self, request: Request) -> Matcher | None:
        """A matcher at the beginning of the request's text; None if no token is constrained. Raises RequestError."""
        inner = self._grammar(request.grammar) if request.grammar else None
        budget = request.sampling.thinking_budget
        if request.thinking == "none" or (inner is None and budget is None):
            return inner
        markers = self.markers
        if markers is None:
            what = "thinking_budget" if inner is None else f"a grammar ({inner.kind}) that begins after thoughts"
            raise RequestError(f"{what} cannot be enforced: this model's tokenizer has no markers of thoughts")
        return ThoughtsMatcher(markers, budget, inner, request.thinking == "open", self._ends, self._vocabulary)

    def _grammar(self, asked: Grammar) -> GrammarMatcher:
        if asked not in self._compiled:
            compiled = self._compile(asked)
            if len(self._compiled) == KEPT:
                del self._compiled[next(iter(self._compiled))]
            self._compiled[asked] = compiled
        compiled = self._compiled[asked]
        if isinstance(compiled, str):
            raise RequestError(f"the grammar ({asked.kind}) cannot be enforced: {compiled}")
        return GrammarMatcher(compiled.deep_copy(), asked.kind, self._ends)

    def _compile(self, asked: Grammar) -> Any:
        """llguidance's matcher, or one line that says why there is none."""
        from llguidance import LLMatcher, LLParserLimits

        tokens = self._tokens
        limits = LLParserLimits(verbose_errors=False, max_lexer_states=LEXER_STATES)

        def compiled() -> Any:
            try:
                matcher = LLMatcher(tokens, notated(asked), log_level=0, limits=limits)
                matcher.compute_bitmask()  # not before is it known whether the grammar has any text
            except Exception as error:  # a schema, choices or rules that it cannot even read
                return one_line(str(error))
            reason = matcher.get_error()
            return one_line("no text obeys it" if reason.startswith("NoExtension") else reason) or matcher

        return on_deep_stack(compiled) or f"it takes more than {SECONDS:.0f} seconds to compile; make it simpler"

    @cached_property
    def markers(self) -> Markers | None:
        """The marks of this model's thoughts, if its tokenizer has any."""
        return Markers.of(self._tokenizer)

    @property
    def _ends(self) -> frozenset[int]:
        return frozenset(self._tokenizer.eos_token_ids)

    @cached_property
    def _tokens(self) -> Any:
        """The model's vocabulary as llguidance wants it; takes about a second."""
        from llguidance import LLTokenizer

        backend = getattr(self._tokenizer, "backend_tokenizer", None)
        if backend is None:
            raise RequestError("this model's tokenizer cannot be used with a grammar: it has no fast form")
        backend = copy(backend)
        backend.no_padding()
        backend.no_truncation()
        ends = sorted(self._tokenizer.eos_token_ids)
        return LLTokenizer(backend.to_str(), n_vocab=max(self._vocabulary, backend.get_vocab_size()), eos_token=ends)


class GrammarMatcher:
    """One row's place in its grammar: behind the tokens that it has generated.

    Args:
        inner: llguidance's matcher.
        kind: of the grammar.
        ends: end tokens, which the grammar allows where the text may end.
    """

    free = 0.0
    watch = None

    def __init__(self, inner: Any, kind: str, ends: frozenset[int]):
        self._inner, self.kind, self._ends = inner, kind, ends
        self._forced: list[int] | None = None

    @property
    def complete(self) -> bool:
        """Whether nothing may follow any more."""
        return self._inner.is_stopped()

    @property
    def forced(self) -> list[int]:
        """The tokens that come next, as far as the grammar leaves no choice."""
        if self._forced is None:
            self._forced = forced = [] if self.complete else self._inner.compute_ff_tokens()
            return forced
        return self._forced

    def masks(self, drafts: Sequence[int]) -> list[bytes | None]:
        """What may come next, and what after each drafted token up to the first that is refused or ends the text.

        Raises GrammarError.
        """
        masks, walked = [self._mask()], 0
        for token in drafts:
            if token in self._ends or not allows(masks[-1], token):
                break
            self.advance([token])
            walked += 1
            if self.complete:
                break
            masks.append(self._mask())
        self._inner.rollback(walked)
        self._forced = None
        return [*masks]

    def advance(self, tokens: Sequence[int]) -> None:
        """The row emits these tokens, which are allowed; an end token leaves it where it is. Raises GrammarError."""
        self._forced = None
        self._inner.consume_tokens([token for token in tokens if token not in self._ends])
        self._check()

    def _mask(self) -> bytes:
        mask = self._inner.compute_bitmask()
        self._check()
        if mask.count(0) == len(mask):
            raise GrammarError(f"the grammar ({self.kind}) leaves no token that this model has")
        return mask

    def _check(self) -> None:
        if self._inner.is_error():
            raise GrammarError(f"the grammar ({self.kind}) is too hard: {one_line(self._inner.get_error())}")


def on_deep_stack(work: Callable[[], Any]) -> Any:
    """What `work` returns, on a thread of its own with a deep stack; None if it takes too long."""
    results: list[Any] = []
    before = threading.stack_size(STACK)
    try:
        thread = threading.Thread(target=lambda: results.append(work()), name="grammar", daemon=True)
        thread.start()
    finally:
        threading.stack_size(before)
    thread.join(SECONDS)
    return results[0] if results else None


def one_line(text: str) -> str:
    """A library's message, on one line and not endless."""
    return " ".join(text.replace("<non-verbose/>", "").split())[:300].rstrip(".")
