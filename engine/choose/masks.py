"""Masks: which tokens may come next. A token's bit is set if it may; the lowest bit of the first byte is token 0's."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import mlx.core as mx


def allows(mask: bytes | None, token: int) -> bool:
    """Whether a token may come; None allows all."""
    return mask is None or bool(mask[token // 8] >> token % 8 & 1)


def without(mask: bytes, tokens: Iterable[int]) -> bytes:
    """Allows what the mask does, less these tokens."""
    left = bytearray(mask)
    for token in tokens:
        left[token // 8] &= ~(1 << token % 8) & 0xFF
    return bytes(left)


def only(tokens: Iterable[int], vocabulary: int) -> bytes:
    """Allows these tokens."""
    return sum(1 << token for token in tokens).to_bytes(-(-vocabulary // 8), "little")


def all_but(tokens: Iterable[int], vocabulary: int) -> bytes:
    """Allows all tokens but these."""
    return without(b"\xff" * -(-vocabulary // 8), tokens)


def united(one: bytes, other: bytes) -> bytes:
    """Allows what either mask does."""
    size = max(len(one), len(other))
    return (int.from_bytes(one, "little") | int.from_bytes(other, "little")).to_bytes(size, "little")


def masked(logits: mx.array, masks: Sequence[bytes | None]) -> mx.array:
    """Logits [S, vocabulary] with those of tokens that may not come at minus infinity; a mask of None allows all."""
    given = [mask for mask in masks if mask is not None]
    if not given:
        return logits
    size = -(-logits.shape[-1] // 8)  # a grammar's tokenizer may have more
    data = b"".join(b"\xff" * size if mask is None else mask[:size] for mask in masks)
    rows: Any = memoryview(data).cast("B", (len(masks), size))  # [S, vocabulary / 8]
    bits = (mx.array(rows)[:, :, None] >> mx.arange(8, dtype=mx.uint8) & 1).reshape(len(masks), -1)
    return mx.where(bits[:, : logits.shape[-1]], logits, -mx.inf)
