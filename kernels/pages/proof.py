"""Whether kernels may write pools in place on this machine: tried, with several rounds in flight."""

from __future__ import annotations

import mlx.core as mx

from ..gpu.source import Launch
from .places import Places, tabled
from .pool import LayerPool, Rows

LAYERS, ROUNDS, TOKENS, HEADS, DIM = 24, 12, 16, 2, 64

MODULUS = 251
"""Numbers stay whole and below this, so that sums are exact on every device."""

PAGES = (3, 1, 4, 0)


def flaw(launch: Launch) -> str | None:
    """What is wrong with pools that `launch` writes, in one line; None if they hold what scattering leaves."""
    try:
        found = _rounds(launch)
        mx.eval(found)
    except Exception as error:  # whatever a compiler or driver objects to
        return f"it fails: {(str(error) or type(error).__name__).splitlines()[0][:200]}"
    with mx.stream(mx.cpu):
        expected = _rounds(None)
        wrong = [i for i, (a, b) in enumerate(zip(found, expected, strict=True)) if not mx.array_equal(a, b)]
    return f"round {wrong[0] + 1} of {ROUNDS} read other keys than it wrote" if wrong else None


def _rounds(launch: Launch | None) -> list[mx.array]:
    """What each round makes of the one before it; each is launched at once, and reads all that was written so far."""
    pools = [LayerPool(max(PAGES) + 1, HEADS, DIM, mx.float32, launch) for _ in range(LAYERS)]
    table, _ = tabled([PAGES])
    x = (mx.arange(TOKENS * HEADS * DIM).reshape(TOKENS, HEADS, DIM) % MODULUS).astype(mx.float32)
    outputs: list[mx.array] = []
    for turn in range(ROUNDS):
        # Half of what a round writes is overwritten by the next one, as drafts are that were not accepted.
        first = turn * (TOKENS // 2)
        positions = first + mx.arange(TOKENS, dtype=mx.int32)
        places = Places(table, mx.zeros(TOKENS, mx.int32), positions)
        rows = Rows(table, (0,), (PAGES,), (first + TOKENS,))
        for pool in pools:
            pool.write(places, x, (3 * x + 1) % MODULUS)
            keys, values = pool.gather(rows, first + TOKENS, {})
            x = (x + (keys + values).sum(axis=2)) % MODULUS
        outputs.append(x)
        if launch:
            mx.async_eval(x)
        else:
            mx.eval(x)
    return outputs
