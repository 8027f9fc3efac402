"""What a model's rows can do together: found out as it is loaded, by comparing them with rows that run alone.

mlx-lm runs far more architectures than anybody has tried in a ragged batch. A cache that cannot be merged, a mask or a
position that is the same for all rows: such a model runs one row at a time.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import isnan
from statistics import median
from typing import Any

import mlx.core as mx
from mlx.utils import tree_flatten
from mlx_lm.models.cache import make_prompt_cache

from ..models.folder import first_line
from ..models.load_check import distances, excused_error, noise
from .caches import Caches, Footprint, empty, join, pick, states

STEPS = 4
"""Tokens that each text decodes, after its prompt."""

LENGTHS = (13, 7, 2, 9)
"""Tokens of the texts."""

Step = tuple[int, int]
"""A text, and a place in it."""


@dataclass(frozen=True)
class Ways:
    """Whether rows of a model decode together (`batched`), and whether prompts of different lengths are read together
    (`ragged`); if not, `reason` says why. A row takes `footprint`, and a token `activations` bytes while it is read;
    logits cover `vocabulary` tokens, and numbers are of type `dtype`.
    """

    batched: bool
    ragged: bool
    reason: str
    footprint: Footprint
    activations: int
    vocabulary: int
    dtype: mx.Dtype


def find_ways(model: Any) -> Ways:
    """Run fixed texts through a model, alone and together. Raises whatever keeps it from running at all."""
    first = make_prompt_cache(model)
    vocabulary = model(mx.array([[0, 1]]), cache=first).shape[-1]
    mx.eval(states(first))
    texts = [[(7919 * i + 101 * row + 13) % vocabulary for i in range(n)] for row, n in enumerate(LENGTHS)]
    expected: dict[Step, mx.array] = {}
    for row, text in enumerate(texts):
        expected.update(_alone(model, row, text))
    if bool(mx.isnan(mx.stack(list(expected.values()))).any(axis=-1).all()):
        raise ValueError("its logits are not numbers")
    dtype, whole = number_type(model), model(mx.array(texts[:1]), cache=make_prompt_cache(model))[0]
    excused = excused_error(dtype, noise(model, texts[0], whole))
    batched = _flaw(lambda: _together(model, texts), expected, excused, dtype)
    ragged = batched or _flaw(lambda: _ragged(model, texts), expected, excused, dtype)
    return Ways(not batched, not ragged, ragged, Footprint.of(first, 2), _activations(model), vocabulary, dtype)


def _activations(model: Any) -> int:
    """Bytes that a token takes at most while it is read."""
    caches, count = make_prompt_cache(model), 32
    before = mx.get_active_memory()
    mx.reset_peak_memory()
    model(mx.array([list(range(count))]), cache=caches)
    mx.eval(states(caches))
    return (mx.get_peak_memory() - before) // count


def try_out(model: Any) -> None:
    """Run a few tokens of one row; raises whatever keeps rounds from running."""
    mx.eval(list(_alone(model, 0, list(range(5))).values()))


def number_type(model: Any) -> mx.Dtype:
    """The type in which a model computes: the narrowest that its weights have."""
    weights: Any = tree_flatten(model.parameters())
    kinds = {array.dtype for _, array in weights}
    return next((kind for kind in (mx.bfloat16, mx.float16) if kind in kinds), mx.float32)


def _alone(model: Any, row: int, text: Sequence[int]) -> dict[Step, mx.array]:
    """Logits [vocabulary] of a text's last tokens, which it decodes after its prompt, with nobody beside it."""
    cache, begin = make_prompt_cache(model), max(1, len(text) - STEPS)
    model(mx.array([text[:begin]]), cache=cache)
    return {
        (row, place): model(mx.array([[token]]), cache=cache)[0, -1] for place, token in enumerate(text[begin:], begin)
    }


def _together(model: Any, texts: Sequence[Sequence[int]]) -> dict[Step, mx.array]:
    """The same of texts that decode together: two begin, two join them, and one after the other ends."""
    prompts: list[Caches] = []
    for text in texts:
        prompts.append(empty(model, 1))
        model(mx.array([text[: max(1, len(text) - STEPS)]]), cache=prompts[-1])
    rows, caches = [0, 1], join(prompts[0], prompts[1])
    places = [max(1, len(text) - STEPS) for text in texts]
    logits = _decoded(model, texts, rows, places, caches)
    rows, caches = [0, 1, 2, 3], join(caches, join(prompts[2], prompts[3]))
    while rows:
        going_on = [place for place, row in enumerate(rows) if places[row] < len(texts[row])]
        if len(going_on) < len(rows):
            rows = [rows[place] for place in going_on]
            if not rows:
                break
            pick(caches, going_on)
        logits |= _decoded(model, texts, rows, places, caches)
    return logits


def _ragged(model: Any, texts: Sequence[Sequence[int]]) -> dict[Step, mx.array]:
    """The same of texts whose prompts are read together."""
    begins = [max(1, len(text) - STEPS) for text in texts]
    caches = empty(model, len(texts))
    read(model, [text[:begin] for text, begin in zip(texts, begins, strict=True)], caches)
    rows, places = list(range(len(texts))), list(begins)
    return _decoded(model, texts, rows, places, caches)


def read(model: Any, chunks: Sequence[Sequence[int]], caches: Caches) -> None:
    """Take in the next tokens of each row, of which some may have more than others.

    Shorter chunks are filled up on the right; mlx-lm's caches then put what they have to the right place.
    """
    lengths = [len(chunk) for chunk in chunks]
    most = max(lengths)
    if padded := min(lengths) < most:
        padding = [most - length for length in lengths]
        for cache in caches:
            cache.prepare(lengths=lengths, right_padding=padding)
    model(mx.array([[*chunk, *[0] * (most - len(chunk))] for chunk in chunks]), cache=caches)
    if padded:
        for cache in caches:
            cache.finalize()


def _decoded(
    model: Any, texts: Sequence[Sequence[int]], rows: Sequence[int], places: list[int], caches: Caches
) -> dict[Step, mx.array]:
    """Logits of the next token of each of these rows, whose places move on."""
    logits = model(mx.array([[texts[row][places[row]]] for row in rows]), cache=caches)[:, -1]
    done = {(row, places[row]): logits[i] for i, row in enumerate(rows)}
    for row in rows:
        places[row] += 1
    return done


def _flaw(run: Any, expected: dict[Step, mx.array], excused: float, dtype: mx.Dtype) -> str:
    """Why this way is none: what it raises, or how far its logits are from those that are expected."""
    try:
        found = run()
        steps = list(found)
        errors = distances(mx.stack([found[step] for step in steps]), mx.stack([expected[step] for step in steps]))
    except Exception as error:  # whatever a cache or a model objects to
        return first_line(error)
    # In half precision, with experts, a near tie may send single tokens elsewhere.
    worst = max(errors) if dtype == mx.float32 else median(errors)
    return "" if worst <= excused and not isnan(worst) else f"logits are off by {worst:.1e} beside other rows"
