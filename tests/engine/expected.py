"""What a request must yield: by mlx-lm's own model if it is greedy, else by an engine that has nothing else to do."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import mlx.core as mx
import numpy as np
from mlx_lm.models.cache import make_prompt_cache

from draftmill.engine.choose.bad_words import spelled
from draftmill.engine.choose.grammar import Grammars
from draftmill.engine.choose.masks import masked
from draftmill.engine.request import Completion, FinishReason, Request
from draftmill.engine.schedule.row import Matcher

from .processors import processed

NEAR = 1e-3
"""Two logits this close, as a part of the largest one, may change places: float32 adds in another order."""

ENDED = -1
"""An end token, whichever it is."""

Alone = Callable[[Request, int], Completion]
"""Serves one request in an engine of its own, without a draft, in prompt chunks of so many tokens."""


@dataclass(frozen=True)
class Expected:
    """The tokens of a request whose stop strings are left out, and whether an end token or a whole JSON text ended it.

    `logits` [tokens, or one more where an end token is chosen, vocabulary] are those of greedy tokens, with what the
    request changes in them and what the grammar forbids at minus infinity; a sampled request has none.
    """

    tokens: tuple[int, ...]
    ended: bool
    logits: list[np.ndarray] | None = None


@dataclass(frozen=True)
class Outcome:
    """What a completion must be: its tokens, its text and why it ended."""

    tokens: tuple[int, ...]
    text: str
    reason: FinishReason


class Wrong(AssertionError):
    """A completion is not what it must be; the message says where."""


class Expectations:
    """The expected tokens of one model's requests, and whether completions agree with them.

    Args:
        model: as mlx-lm makes it.
        tokenizer: mlx-lm's wrapper, with one end token.
        vocabulary: tokens that the model's logits cover.
        context: most tokens of prompt and completion together.
        alone: serves sampled requests, whose random numbers mlx-lm does not have.
    """

    def __init__(self, model: Any, tokenizer: Any, vocabulary: int, context: int, alone: Alone):
        self._model, self._tokenizer, self._context, self._alone = model, tokenizer, context, alone
        self._grammars = Grammars(tokenizer, vocabulary)
        (self._end,) = tokenizer.eos_token_ids

    def of(self, request: Request) -> Expected:
        """What the request yields without its stop strings."""
        endless = replace(request, sampling=replace(request.sampling, stop=()))
        if request.sampling.greedy:
            return self._by_mlx_lm(endless)
        return expected(self._alone(endless, 512))

    def outcome(self, request: Request, expected: Expected) -> Outcome:
        """The same with its stop strings: it ends with the first token that completes one."""
        sampling = request.sampling
        spared = len(self.decode(expected.tokens[: sampling.min_tokens]).rstrip("\ufffd"))
        for count in range(sampling.min_tokens + 1, len(expected.tokens) + 1) if sampling.stop else ():
            text = self.decode(expected.tokens[:count])
            places = [(begin, begin + len(stop)) for stop in sampling.stop for begin in range(len(text))]
            if found := [(begin, end) for begin, end in places if text[begin:end] in sampling.stop and end > spared]:
                return Outcome(expected.tokens[:count], text[: min(found)[sampling.include_stop]], "stop")
        return Outcome(expected.tokens, self.decode(expected.tokens), "stop" if expected.ended else "length")

    def decode(self, tokens: tuple[int, ...]) -> str:
        return self._tokenizer.decode(list(tokens), skip_special_tokens=True)

    def flipped(self, request: Request, expected: Expected, completion: Completion) -> bool:
        """Whether the completion left the expected tokens at a near-tie, so that nothing can be said of what follows.

        Raises:
            Wrong: the completion is not what the request must yield.
        """
        wanted = self.outcome(request, expected)
        got = Outcome(completion.tokens, completion.text, completion.finish_reason)
        if got.reason == "cancelled":
            wanted = self._until(wanted, len(got.tokens))
        if got == wanted:
            return False
        place = common(got.tokens, expected.tokens)
        ours, theirs = self._at(got.tokens, place), self._at(expected.tokens, place)
        chosen = place < len(got.tokens) or got.reason == "stop"  # not cut there by its limit or a cancel
        if chosen and ours != theirs and self._near(request, expected, got.tokens[:place], ours, theirs):
            return True
        raise Wrong(f"{told(request)}, from token {place} on: {got}; expected: {wanted}")

    def _until(self, outcome: Outcome, count: int) -> Outcome:
        """The same, cancelled after so many of its tokens."""
        tokens = outcome.tokens[:count]
        return Outcome(tokens, self.decode(tokens), "cancelled")

    def check_logprobs(self, request: Request, completion: Completion) -> None:
        """Compare log-probabilities with those of mlx-lm's own model over the whole text; raises Wrong."""
        if request.sampling.logprobs is None:
            return
        prompt, tokens = list(request.tokens), list(completion.tokens)
        raw = np.array(self._model(mx.array([prompt + tokens]))[0, len(prompt) - 1 :])
        raw -= np.logaddexp.reduce(raw, axis=-1, keepdims=True)
        if [each.token for each in completion.logprobs] != tokens:
            raise Wrong(f"{told(request)}: log-probabilities are not those of its tokens")
        for own, each in zip(raw, completion.logprobs, strict=False):
            pairs = [(each.logprob, own[each.token]), *((value, own[token]) for token, value in each.top)]
            best = np.sort(own)[::-1][: request.sampling.logprobs]
            pairs += zip((value for _, value in each.top), best, strict=True)
            if any(abs(ours - theirs) > 10 * NEAR * np.abs(own).max() for ours, theirs in pairs):
                raise Wrong(f"{told(request)}: log-probabilities {each}, expected others")

    def _ends(self, request: Request) -> frozenset[int]:
        own = frozenset(request.sampling.stop_token_ids)
        return own if request.sampling.ignore_eos else own | {self._end}

    def _at(self, tokens: tuple[int, ...], place: int) -> int:
        """The token at a place; ENDED behind the last."""
        return tokens[place] if place < len(tokens) else ENDED

    def _near(self, request: Request, expected: Expected, same: tuple[int, ...], ours: int, theirs: int) -> bool:
        """Whether the target could as well choose our token behind those that are the same."""
        if expected.logits is None:
            return any(self._draws(request, (*same, ours), chunk) for chunk in (1, 2, 3, 5, 16, 64))
        if len(same) == len(expected.logits):  # the JSON text was whole
            return False
        logits = expected.logits[len(same)]
        scale = np.abs(logits[np.isfinite(logits)]).max()
        end = max((logits[token] for token in self._ends(request)), default=-np.inf)
        a, b = (end if token == ENDED else logits[token] for token in (ours, theirs))
        return bool(abs(a - b) < NEAR * scale)

    def _draws(self, request: Request, tokens: tuple[int, ...], chunk: int) -> bool:
        """Whether the request draws these tokens, the end token among them, when its prompt comes in such chunks.

        The noise of a draw is the engine's secret, so its margin is not known; but other chunks add in another order.
        """
        endless = replace(request, sampling=replace(request.sampling, stop=()))
        drawn = expected(self._alone(endless, chunk))
        return (*drawn.tokens, ENDED)[: len(tokens)] == tokens

    def _by_mlx_lm(self, request: Request) -> Expected:
        """The likeliest tokens that the grammar allows, by mlx-lm's own model and cache."""
        matcher = self._grammars.matcher(request)
        cache, ends = make_prompt_cache(self._model), self._ends(request)
        tokens: list[int] = []
        logits: list[np.ndarray] = []
        feed = request.tokens
        for _ in range(min(request.sampling.max_tokens, self._context - len(request.tokens))):
            raw = self._model(mx.array([feed]), cache=cache)[:, -1]  # [1, vocabulary]
            logits.append(self._changed(request, tokens, raw, matcher))
            feed = (int(logits[-1].argmax()),)
            if feed[0] in ends:
                return Expected(tuple(tokens), True, logits)
            tokens += feed
            if matcher:
                matcher.advance(feed)
                if matcher.complete:
                    return Expected(tuple(tokens), True, logits)
        return Expected(tuple(tokens), False, logits)

    def _changed(self, request: Request, tokens: list[int], raw: mx.array, matcher: Matcher | None) -> np.ndarray:
        """Logits [vocabulary] behind these tokens as the request and its grammar leave them."""
        words = spelled(request.sampling.bad_words, self._tokenizer)
        scores = processed(request, tokens, raw, self._ends(request), words)
        if not matcher:
            return np.array(scores[0])
        (mask,) = matcher.masks([])
        left = np.array(masked(scores, [mask])[0])
        if np.isfinite(left).any():
            return left
        # Where the grammar allows the end alone, it comes.
        late = replace(request, sampling=replace(request.sampling, min_tokens=0))
        return np.array(masked(processed(late, tokens, raw, self._ends(request), words), [mask])[0])


def told(request: Request) -> str:
    """A request in few words."""
    return (
        f"{request.id} ({len(request.tokens)} prompt tokens, {request.sampling}, {request.grammar}, {request.thinking})"
    )


def expected(completion: Completion) -> Expected:
    """What a request yielded that was served alone."""
    return Expected(completion.tokens, completion.finish_reason == "stop")


def common(a: Sequence[object], b: Sequence[object]) -> int:
    """How many first tokens, or characters, of both are the same."""
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
