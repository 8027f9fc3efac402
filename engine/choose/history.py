"""The changes of all rows that have some: made when a row starts, moved by what each round emits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache, partial

import mlx.core as mx

from ..schedule.row import Row
from ..schedule.scheduler import Segment
from .change import PORTION, Change

KEPT = 8
"""Biases that are kept for the rows to come: those of a batch mostly share one."""


class Histories:
    """What rows change, with what they have generated, on the device.

    A history is made of what the host knows when the row's first token since it started, or started again, is chosen.
    From then on each round moves it, read or not.
    """

    def __init__(self, vocabulary: int):
        self._vocabulary = vocabulary
        self._changes: dict[Row, Change] = {}
        self._bias = lru_cache(KEPT)(partial(bias_of, vocabulary))

    @staticmethod
    def workspace(max_rows: int, vocabulary: int) -> int:
        """Bytes that changes take at most: of each row a bias and a history, and the one that this was a round before;
        and what a portion takes, as much again if plain MLX draws from it.
        """
        return 2 * PORTION + (3 * max_rows + KEPT) * vocabulary * 4

    @property
    def arrays(self) -> list[mx.array]:
        """What a round evaluates, so that the next one need not."""
        return [x for change in self._changes.values() for x in (change.bias, change.history) if x is not None]

    def start(self, segments: Sequence[Segment]) -> None:
        """Rows choose their first token, or their first one since they were sent back, in these segments if they end a
        prompt.
        """
        for segment in segments:
            if segment.depth is None and segment.yields and (change := self._made(segment.row)):
                self._changes[segment.row] = change

    def of(self, row: Row) -> Change | None:
        """What the row changes from here on; None if nothing."""
        change = self._changes.get(row)
        if change and change.ends and len(row.generated) >= row.request.sampling.min_tokens:
            change = replace(change, ends=())
            if change.bias is None and change.history is None:
                del self._changes[row]
                return None
            self._changes[row] = change
        return change

    def move(self, segments: Sequence[Segment], emitted: mx.array, counts: mx.array) -> None:
        """The rows of these segments emit counts [M] of tokens [M, W]."""
        moving = [(m, segment.row) for m, segment in enumerate(segments) if self._history(segment.row) is not None]
        if moving:
            twice = 2 * (mx.arange(emitted.shape[1]) < counts[:, None]).astype(mx.int32)
            for m, row in moving:
                self._add(row, emitted[m], twice[m])

    def put(self, row: Row, tokens: list[int]) -> None:
        """A row of which no round is in flight emits these tokens."""
        if self._history(row) is not None:
            self._add(row, mx.array(tokens), mx.array(2))

    def make_anew(self, row: Row) -> None:
        """What a round in flight has added to a row's history is not what the row emits: take what the host knows."""
        if row in self._changes and (change := self._made(row)):
            self._changes[row] = change

    def drop(self, row: Row) -> None:
        """Forget a row that ends, or that will start again."""
        self._changes.pop(row, None)

    def clear(self) -> None:
        self._changes.clear()

    def _history(self, row: Row) -> mx.array | None:
        change = self._changes.get(row)
        return change.history if change else None

    def _add(self, row: Row, tokens: mx.array, twice: mx.array) -> None:
        change = self._changes[row]
        assert change.history is not None
        self._changes[row] = replace(change, history=change.history.at[tokens].add(twice))

    def _made(self, row: Row) -> Change | None:
        """What the row changes, by all that it has generated so far; None if nothing."""
        asked, prompt = row.request.sampling, row.request.tokens
        early = len(row.generated) < asked.min_tokens
        change = Change(
            bias=self._bias(asked.logit_bias, asked.allowed_token_ids, row.banned),
            repetition=asked.repetition_penalty,
            presence=asked.presence_penalty,
            frequency=asked.frequency_penalty,
            ends=tuple(row.ends) if early else (),
            until=len(prompt) + asked.min_tokens if early else 0,
        )
        if asked.repetition_penalty != 1 or asked.presence_penalty or asked.frequency_penalty:
            history = mx.zeros(self._vocabulary, mx.int32)
            if asked.repetition_penalty != 1:
                history = history.at[mx.array(prompt)].maximum(1)
            if row.generated:
                history = history.at[mx.array(row.generated)].add(2)
            change = replace(change, history=history)
        changes = change.bias is not None or change.history is not None or change.ends
        return change if changes else None


def bias_of(
    vocabulary: int, biases: tuple[tuple[int, float], ...], allowed: tuple[int, ...], banned: tuple[int, ...]
) -> mx.array | None:
    """What is added to logits: `biases`, and minus infinity for what is not `allowed`, or `banned`; [vocabulary]."""
    if not (biases or allowed or banned):
        return None
    bias = mx.zeros(vocabulary)
    if allowed:
        bias = mx.full(vocabulary, -mx.inf)
        bias[mx.array(allowed)] = 0
    if biases:
        tokens, values = zip(*biases, strict=True)
        bias = bias.at[mx.array(tokens)].add(mx.array(values, mx.float32))
    if banned:
        bias[mx.array(banned)] = -mx.inf
    return bias
