"""Copied drafts: the search on the device against one written apart."""

from __future__ import annotations

from random import Random
from typing import Any

import mlx.core as mx
import pytest

from draftmill.engine.drafting.drafter import DraftRow
from draftmill.engine.drafting.lookup import Lookup, copies
from draftmill.engine.drafting.suffix import LEAST_MATCH, LONGEST_MATCH, MOST, Suffix
from draftmill.engine.request import Request
from draftmill.kernels.pages.places import Places, tabled
from draftmill.kernels.pages.sizes import pages_for


def alike(text: list[int], place: int) -> int:
    """How many tokens that end at a place are also the text's last ones, up to LONGEST_MATCH."""
    return next(
        (i for i in range(min(LONGEST_MATCH, place + 1)) if text[place - i] != text[-1 - i]),
        min(LONGEST_MATCH, place + 1),
    )


def copied(text: list[int]) -> list[int] | None:
    """What follows the last of the longest matches, token by token into a text that grows; None without a match."""
    matches = [(alike(text, place), place) for place in range(len(text) - 1)]
    length, place = max(matches, default=(0, 0))
    if length < LEAST_MATCH:
        return None
    grown = list(text)
    for i in range(MOST):
        grown.append(grown[place + 1 + i])
    return grown[len(text) :]


def drawn(draw: Random) -> list[int]:
    """A text of 1 to 150 tokens, some of few kinds, some with a repeated part."""
    kinds = draw.choice((1, 2, 3, 10, 1000))
    text = [draw.randrange(kinds) for _ in range(draw.randint(1, 100))]
    if draw.random() < 0.5:
        begin = draw.randrange(len(text))
        text += text[begin : begin + draw.randint(1, 50)]
    return text


def test_copies_are_those_of_a_search_token_by_token() -> None:
    draw = Random(1)
    found = 0
    for _ in range(60):
        texts = [drawn(draw) for _ in range(draw.choice((1, 3, 8)))]
        width = max(map(len, texts)) + draw.randint(0, 9)
        rubbish = [[*text[:-1], *(draw.randrange(3) for _ in range(width - len(text) + 1))] for text in texts]
        anchors, cursors = [text[-1] for text in texts], [len(text) - 1 for text in texts]
        made: Any = copies(mx.array(rubbish), mx.array(anchors), mx.array(cursors)).tolist()
        for text, drafts in zip(texts, made, strict=True):
            expected = copied(text)
            assert drafts == ([text[-1]] * MOST if expected is None else expected), text
            found += expected is not None
    assert found > 100


@pytest.mark.parametrize("searched", [1, 2**19])
def test_rows_of_ragged_depths_draft_from_their_own_pages(searched: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """All at a time, or one after another."""
    monkeypatch.setattr("draftmill.engine.drafting.lookup.SEARCHED", searched)
    draw = Random(2)
    texts = [drawn(draw) for _ in range(5)]
    free = list(range(1, 40))
    draw.shuffle(free)
    pages = [[free.pop() for _ in range(pages_for(len(text) + 1))] for text in texts]
    lookup = Lookup(10)
    lookup.grow(40)
    table, firsts = tabled(pages)
    starts = [first for first, text in zip(firsts, texts, strict=True) for _ in text]
    positions = [i for text in texts for i in range(len(text))]
    tokens = [token for text in texts for token in [*text[:-1], 77]]  # the anchor is not written yet
    lookup.write(mx.array(tokens), Places(table, mx.array(starts), mx.array(positions)))
    depths = [1, 15, 4, 7, 2]
    rows = [
        DraftRow(Request("", (0,)), 4 - i, pages[i], len(texts[i]) + draw.randint(0, 60), False, depths[i])
        for i in range(5)
    ]
    anchors, cursors = [text[-1] for text in texts][::-1], [len(text) - 1 for text in texts][::-1]
    expected = [
        token
        for text, depth in zip(texts, depths, strict=True)
        for token in (copied(text) or [text[-1]] * MOST)[:depth]
    ]
    assert lookup.draft_blocks(rows, mx.array(anchors), mx.array(cursors)).tolist() == expected


@pytest.mark.parametrize("step", [1, 4])
def test_the_host_sees_a_match_where_there_is_one(step: int) -> None:
    draw = Random(3)
    for _ in range(200):
        text = drawn(draw)
        suffix = Suffix(text[:step])
        for begin in range(step, len(text), step):
            suffix.extend(text[begin : begin + step])
        longest = max((alike(text, place) for place in range(len(text) - 1)), default=0)
        assert len(suffix) == len(text)
        assert (suffix.match >= LEAST_MATCH) == (longest >= LEAST_MATCH)
        assert suffix.match <= longest
        assert suffix.match == 0 or suffix.match >= LEAST_MATCH
