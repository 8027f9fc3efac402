"""The caches of rows that run together, as mlx-lm makes them: how rows join and leave, and what they take."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from math import inf
from typing import Any

from mlx_lm.models.cache import ArraysCache, make_prompt_cache

Caches = list[Any]
"""One cache of mlx-lm's for each layer, with the keys and values, or the memory, of all rows."""

STEP = 256
"""Tokens by which mlx-lm's caches grow."""


def empty(model: Any, rows: int) -> Caches:
    """Caches of rows that have no tokens yet.

    Raises whatever says that caches of this model cannot be merged.
    """
    each = [make_prompt_cache(model) for _ in range(rows)]
    if unable := next((type(cache).__name__ for cache in each[0] if not hasattr(cache, "merge")), None):
        raise TypeError(f"mlx-lm cannot merge a {unable}")
    return [layer[0].merge(list(layer)) for layer in zip(*each, strict=True)]


def join(caches: Caches, others: Caches) -> Caches:
    """Caches with these rows, then those."""
    for cache, other in zip(caches, others, strict=True):
        cache.extend(other)
    return caches


def pick(caches: Caches, rows: Sequence[int]) -> None:
    """Let caches have these of their rows, in this order; one that is named twice is there twice."""
    for cache in caches:
        cache.filter(list(rows))


def states(caches: Caches) -> list[Any]:
    """What to evaluate, so that nothing of a round is left to later ones."""
    return [cache.state for cache in caches]


@dataclass(frozen=True)
class Footprint:
    """Bytes that one row's caches take: `fixed` ones, and of each of the `layers` so many for a token, up to so many
    tokens.
    """

    fixed: int
    layers: tuple[tuple[float, float], ...]

    @staticmethod
    def of(caches: Caches, tokens: int) -> Footprint:
        """Read from caches of one row that has so many tokens."""
        fixed, layers = 0, []
        for cache in _leaves(caches):
            if isinstance(cache, ArraysCache):
                fixed += cache.nbytes
            elif not cache.empty():
                room = cache.keys.shape[2] if hasattr(cache, "keys") else tokens
                layers.append((cache.nbytes / room, getattr(cache, "max_size", inf)))
        return Footprint(fixed, tuple(layers))

    def bytes(self, tokens: int) -> int:
        """Of one row with so many tokens."""
        room = tokens + STEP
        return self.fixed + int(sum(each * min(room, most) for each, most in self.layers))


def _leaves(caches: Iterable[Any]) -> Iterator[Any]:
    """Caches, those inside lists of caches among them."""
    for cache in caches:
        if inner := getattr(cache, "caches", None):
            yield from _leaves(inner)
        else:
            yield cache
