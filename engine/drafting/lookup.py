"""Drafts that are copied: what came after the last tokens of a row when they stood in its text before.

Summaries, extracts, edits and JSON repeat much of their prompts. Nothing is computed for such a draft but the search,
which runs on the device: the host learns one round late where a row is.
"""

from __future__ import annotations

from collections.abc import Sequence

import mlx.core as mx

from ...kernels.pages.places import Places
from ...kernels.pages.sizes import PAGE, pages_for
from .drafter import DraftRow
from .suffix import LEAST_MATCH, LONGEST_MATCH, MOST

SEARCHED = 2**19
"""Tokens that are searched at a time, unless a single row has more: many long rows come one after another."""


class Lookup:
    """The tokens of all rows, in the same pages as their keys and values, and drafts from them.

    They follow the rule of keys and values: every round writes the tokens that it packs, and what lies past a row's
    cursor is invisible and is overwritten. So rows share those of a prefix, too.

    Unlike keys and values they are written by an MLX operation that may copy them: 4 bytes a slot, a few microseconds.
    """

    most = MOST

    def __init__(self, pages: int):
        self.tokens = mx.zeros((pages, PAGE), mx.int32)

    @staticmethod
    def bytes_per_page() -> int:
        """Memory of the tokens in one page, and of their copy."""
        return 2 * PAGE * mx.int32.size

    @staticmethod
    def workspace(context_length: int) -> int:
        """Bytes that a search takes at most; texts are padded to less than twice their length."""
        return max(SEARCHED, 2 * context_length) * (LONGEST_MATCH * 5 + 16)

    def renew(self) -> None:
        """Forget all tokens."""
        self.tokens = mx.zeros_like(self.tokens)

    def grow(self, pages: int) -> None:
        """Make room for so many pages."""
        self.tokens = mx.pad(self.tokens, [(0, pages - self.tokens.shape[0]), (0, 0)])

    def write(self, tokens: mx.array, places: Places) -> None:
        """A round has these tokens [N] at these places."""
        self.tokens[places.slots // PAGE, places.slots % PAGE] = tokens

    def draft_blocks(self, rows: Sequence[DraftRow], anchors: mx.array, cursors: mx.array) -> mx.array:
        """Draft `depth` tokens for each row [F], row after row, from anchors and cursors [max_rows] on the device."""
        pages = [row.pages[: pages_for(row.bound + 1)] for row in rows]
        width = 1 << (max(map(len, pages)) - 1).bit_length()  # so that few shapes occur
        table = mx.array([[*own, *[0] * (width - len(own))] for own in pages])
        slots = mx.array([row.slot for row in rows])
        anchors, cursors = anchors[slots], cursors[slots]
        step = max(1, SEARCHED // (width * PAGE))
        found: list[mx.array] = []
        for begin in range(0, len(rows), step):
            some = slice(begin, begin + step)
            texts = self.tokens[table[some]].reshape(-1, width * PAGE)
            found.append(copies(texts, anchors[some], cursors[some]))
        wanted = mx.array([i * MOST + j for i, row in enumerate(rows) for j in range(row.depth)])
        return mx.concatenate(found).flatten()[wanted]


def copies(texts: mx.array, anchors: mx.array, cursors: mx.array) -> mx.array:
    """What follows each row's last tokens where most of them, up to LONGEST_MATCH, stand in its text before [M, MOST];
    of several such places the last.

    Behind the text's end it is taken to begin anew at that place, as in a loop. Where fewer than LEAST_MATCH tokens are
    alike, it is the anchor.

    Args:
        texts: tokens [M, C], valid before the cursor.
        anchors: the last token of each row [M], which lies at its cursor.
        cursors: [M], less than C.
    """
    rows, length = texts.shape
    at, ends = mx.arange(length), cursors[:, None]
    texts = mx.where(at == ends, anchors[:, None], texts)
    # The tokens that end at each place, as a view; before the text's begin is what no token equals.
    padded = mx.pad(texts, [(0, 0), (LONGEST_MATCH - 1, 0)], constant_values=mx.array(-1))
    shape, strides = (rows, length, LONGEST_MATCH), (padded.shape[1], 1, 1)
    windows = mx.as_strided(mx.contiguous(padded), shape, strides)
    last = mx.take_along_axis(padded, ends + mx.arange(LONGEST_MATCH), axis=1)
    alike = mx.cumprod((windows == last[:, None]).astype(mx.int32), axis=-1, reverse=True).sum(axis=-1)
    found = (at < ends) & (alike >= LEAST_MATCH)
    score = mx.where(found, alike * length + at, -1)
    best = mx.argmax(score, axis=1, keepdims=True)
    best = mx.where(mx.take_along_axis(score, best, axis=1) < 0, ends - 1, best.astype(mx.int32))
    return mx.take_along_axis(texts, best + 1 + mx.arange(MOST) % (ends - best), axis=1)
