"""The engine's greedy tokens beside mlx-lm's own, and its logits in every family.

Where two tokens are nearly as good, rounding decides. So a row that goes another way is judged by mlx-lm's logits of
what it says: each of its tokens must be the best there, or as good but for rounding.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import mlx.core as mx
from mlx_lm.generate import generate_step

from ...kernels.operations import Operations
from ..bench.shapes import SHAPES
from ..drafting.load import type_name
from ..models.load_check import Reference, distances, excused_error
from ..models.targets import adapt
from ..request import Request
from .boxed_pair import BoxedPair
from .check import Wrong

FAMILIES = ("tiny-qwen3", "tiny-qwen3.5", "tiny-qwen3.5-moe")
"""Shapes of the bench: dense, with recurrent layers, and with experts as well."""

SPREAD = 6.0
"""By so many times the error that is excused of a logit two of them may change places: three times either's."""


class Greedy(NamedTuple):
    """What mlx-lm generates, and its log-probabilities [T, vocabulary] before each token."""

    tokens: list[int]
    logprobs: mx.array


class Outcome(NamedTuple):
    """How many of a row's tokens were nearly as good as mlx-lm's, and what is wrong with one, if anything is."""

    near_ties: int = 0
    wrong: str | None = None


def greedy(model: Any, request: Request) -> Greedy:
    """mlx-lm's own greedy text, token by token."""
    steps = list(generate_step(mx.array(request.tokens), model, max_tokens=request.sampling.max_tokens))
    return Greedy([int(token) for token, _ in steps], mx.stack([logprobs for _, logprobs in steps]))


def compare_tokens(pair: BoxedPair, requests: Sequence[Request], expected: Sequence[Greedy], depth: int | None) -> str:
    """Generate all requests together, with so many drafted tokens of each verified in a round, or whole blocks.

    Raises:
        Wrong: a token is neither mlx-lm's nor nearly as good, or nothing was drafted although it should have been.
    """
    engine, done = pair.engine(len(requests), depth), dict[str, list[int]]()
    for request in requests:
        engine.add(request)
    while engine.busy:
        done.update({completion.id: list(completion.tokens) for completion in engine.step()})
    if depth != 0 and not engine.stats.drafted:
        raise Wrong("nothing was drafted")
    outcomes = [judged(pair, *each, done[each[0].id]) for each in zip(requests, expected, strict=True)]
    if wrong := [
        f"row {n + 1} of {len(requests)}, {outcome.wrong}" for n, outcome in enumerate(outcomes) if outcome.wrong
    ]:
        raise Wrong(wrong[0])
    equal = sum(done[request.id] == each.tokens for request, each in zip(requests, expected, strict=True))
    count, dtype = sum(map(len, done.values())), type_name(pair.target.dtype)
    found = f"{dtype}: {equal} of {len(requests)} rows are mlx-lm's, {count} tokens in all"
    if near := sum(outcome.near_ties for outcome in outcomes):
        found += f"; {near} near ties in the others"
    if depth != 0:
        found += f"; {1 + engine.stats.accepted / engine.stats.row_rounds:.1f} tokens per round"
    return found


def judged(pair: BoxedPair, request: Request, expected: Greedy, own: list[int]) -> Outcome:
    """Judge a row's own tokens."""
    if own == expected.tokens:
        return Outcome()
    if len(own) != len(expected.tokens):
        return Outcome(wrong=f"it has {len(own)} tokens, mlx-lm's {len(expected.tokens)}")
    first = next(i for i, (a, b) in enumerate(zip(own, expected.tokens, strict=True)) if a != b)
    text, prompt = [*request.tokens, *own], len(request.tokens)
    logits = pair.model(mx.array([text]))[0, prompt - 1 : -1].astype(mx.float32)  # [tokens, vocabulary]
    noise = distances(logits[first : first + 1], expected.logprobs[first : first + 1])[0]
    ties = 0
    for place in range(first, len(own)):
        at = logits[place]
        behind = float(at.max() - at[own[place]])
        excused = SPREAD * excused_error(pair.target.dtype, noise) * float(mx.sqrt(mx.var(at)))
        if not behind <= excused:
            best = int(mx.argmax(at))
            how = f"{behind:.2g} behind in mlx-lm's logits, {excused:.2g} is excused"
            return Outcome(ties, f"token {place + 1} is {own[place]}, not {best}: {how}")
        ties += behind > 0
    return Outcome(ties)


def compare_family(name: str, plant: Callable[[Any], None] = lambda target: None) -> str:
    """Compare logits of one of the `FAMILIES` with plain MLX's forms of all operations; `plant` may change the target.

    Raises:
        Wrong: they are not mlx-lm's.
    """
    target = adapt(SHAPES[name].build(dtype=mx.float32))
    target.operations = Operations(in_place=False)
    reference = Reference.of(target)
    plant(target)
    verdict = reference.check(target)
    if not verdict.good:
        raise Wrong(f"{verdict} in {verdict.where}")
    return f"logits are off by {verdict.error:.1e} at most"
