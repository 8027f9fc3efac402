"""What a request asks to change in logits, by mlx-lm's own processors and samplers where it has them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import mlx.core as mx
import numpy as np
from mlx_lm.models.cache import make_prompt_cache
from mlx_lm.sample_utils import apply_min_p, apply_top_k, apply_top_p, make_logits_processors

from draftmill.engine.choose.sampling import setting
from draftmill.engine.request import Request, Sampling, TokenLogprob
from draftmill.kernels.choose.noise import gumbel
from tests.engine.small import identity

ALL = 10**6
"""A context that has all tokens there are."""


def processed(
    request: Request,
    generated: Sequence[int],
    logits: mx.array,
    ends: frozenset[int],
    words: Sequence[tuple[int, ...]] = (),
) -> mx.array:
    """Logits [1, vocabulary] as the request changes them behind these tokens. Bad words are given by their tokens."""
    sampling, own = request.sampling, list(generated)
    everything = [*request.tokens, *own]
    logits = mx.array(logits)  # processors write to theirs
    bias = make_logits_processors(logit_bias=dict(sampling.logit_bias))
    repetition = make_logits_processors(repetition_penalty=sampling.repetition_penalty, repetition_context_size=ALL)
    others = make_logits_processors(
        presence_penalty=sampling.presence_penalty,
        presence_context_size=ALL,
        frequency_penalty=sampling.frequency_penalty,
        frequency_context_size=ALL,
    )
    for tokens, processors in ((own, bias), (everything, repetition), (own, others)):
        for process in processors if tokens or processors is bias else ():
            logits = process(mx.array(tokens, mx.int32), logits)
    never = np.zeros(logits.shape[-1], bool)
    if sampling.allowed_token_ids:
        never[:] = True
        never[list(sampling.allowed_token_ids)] = False
    if len(own) < sampling.min_tokens:
        never[list(ends)] = True
    for *first, last in words:
        if own[len(own) - len(first) :] == first:
            never[last] = True
    return mx.where(mx.array(never), -mx.inf, logits)


def chosen(sampling: Sampling, logits: mx.array, position: int) -> int:
    """The token of logits [1, vocabulary]: the likeliest, or a draw with the engine's noise and mlx-lm's cuts."""
    if sampling.greedy:
        return int(mx.argmax(logits))
    x = logits * (1 / sampling.temperature)
    x = x - mx.logsumexp(x, keepdims=True)
    if sampling.min_p:
        x = apply_min_p(x, sampling.min_p)
    if sampling.top_k:
        x = apply_top_k(x, sampling.top_k)
    if sampling.top_p < 1:
        x = apply_top_p(x, sampling.top_p)
    return int(mx.argmax(x + gumbel(mx.array([setting(sampling).seed], mx.uint32), mx.array([position]), x.shape[-1])))


KNOWN: dict[tuple[str, Request, frozenset[int]], tuple[list[int], list[TokenLogprob]]] = {}
"""Continuations by what the model is, request and end tokens."""


def continuation(
    model: Any, request: Request, ends: frozenset[int] = frozenset()
) -> tuple[list[int], list[TokenLogprob]]:
    """Tokens by mlx-lm's own model up to an end token, and the log-probabilities of these and of the likeliest ones.

    Bad words are spelled with numbers. Each is computed once.
    """
    key = identity(model), request, ends
    if key not in KNOWN:
        KNOWN[key] = _continued(model, request, ends)
    tokens, given = KNOWN[key]
    return list(tokens), list(given)


def _continued(model: Any, request: Request, ends: frozenset[int]) -> tuple[list[int], list[TokenLogprob]]:
    words = [tuple(int(number) for number in word.split()) for word in request.sampling.bad_words]
    sampling, cache, feed = request.sampling, make_prompt_cache(model), request.tokens
    tokens: list[int] = []
    given: list[TokenLogprob] = []
    while len(tokens) < sampling.max_tokens:
        raw = model(mx.array([feed]), cache=cache)[:, -1].astype(mx.float32)
        logits = processed(request, tokens, raw, ends, words)
        token = chosen(sampling, logits, len(request.tokens) + len(tokens))
        if token in ends:
            break
        tokens.append(token)
        given.append(told(raw[0], token, sampling.logprobs or 0))
        feed = (token,)
    return tokens, given


def told(logits: mx.array, token: int, most: int) -> TokenLogprob:
    """As mlx-lm has them: logits less their logsumexp."""
    values = np.array(logits - mx.logsumexp(logits))
    best = np.argsort(-values, kind="stable")[:most]
    return TokenLogprob(token, float(values[token]), tuple((int(i), float(values[i])) for i in best))
