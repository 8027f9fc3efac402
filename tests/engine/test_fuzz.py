"""Seven seeds of random load against mlx-lm, and that the comparison finds what is wrong; `make soak` runs 200."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from draftmill.engine.request import Completion, FinishReason, Request, Sampling

from .choose.test_grammar import VOCABULARY
from .drafting.test_speculation import BLOCK
from .expected import Expectations, Expected, Wrong
from .fuzz import MARKERS, READABLE, Machine, Tally, fuzz, tokenizer
from .load import FAMILIES, drawn
from .planted import ShiftedMask

KINDS = (
    "cached tokens",
    "accepted drafts",
    "copied drafts",
    "cancelled",
    "sampled",
    "constrained",
    "closed thoughts",
    "stopped",
    "changed",
    "with log-probabilities",
)
"""What a tally must have seen."""


def test_rows_get_the_tokens_of_mlx_lm_whatever_goes_on_beside_them() -> None:
    tally = fuzz(range(7))
    assert tally.holds, tally.report
    for kind in KINDS:
        assert tally.seen[kind] > 0, tally.report


def test_a_seed_draws_the_same_load_again_and_seven_meet_all_families() -> None:
    loads = [drawn(seed, READABLE, BLOCK, MARKERS) for seed in range(7)]
    assert loads == [drawn(seed, READABLE, BLOCK, MARKERS) for seed in range(7)]
    assert {load.family for load in loads} == set(FAMILIES)


@pytest.mark.parametrize("by", [1, -1])
def test_a_wrong_mask_is_found(by: int) -> None:
    machine = Machine(drawn(0, READABLE, BLOCK, MARKERS), Counter())
    machine.target.operations = ShiftedMask(by=by)
    assert any("from token" in fault for fault in machine.run())


def test_a_tally_with_many_near_ties_does_not_hold() -> None:
    for near, holds in ((2, True), (3, False)):
        assert Tally(Counter({"rows": 100, "near-ties": near})).holds == holds


def word(text: str) -> tuple[int, ...]:
    return tuple(tokenizer().encode(text))


WORD = word("abcdefgh")
REQUEST = Request("r", (1, 2), Sampling(len(WORD)))


def flipped(tokens: tuple[int, ...], reason: FinishReason = "length", text: str | None = None, stop: str = "") -> bool:
    """Whether these are taken for the tokens of "abcdefgh" but for a near-tie, as "d" and "z" are in its place."""

    def alone(request: Request, chunk: int) -> Completion:
        raise AssertionError("the request is greedy")

    logits = [np.full(VOCABULARY, -10, np.float32) for _ in WORD]
    for place, token in enumerate(WORD):
        logits[place][token] = 9
    logits[3][word("z")[0]] = 8.999
    expectations = Expectations(None, tokenizer(), VOCABULARY, 512, alone)
    request = replace(REQUEST, sampling=replace(REQUEST.sampling, stop=(stop,) if stop else ()))
    shown = expectations.decode(tokens) if text is None else text
    return expectations.flipped(request, Expected(WORD, False, logits), Completion("r", shown, tokens, reason, 2))


def test_completions_that_are_as_expected() -> None:
    assert not flipped(WORD)
    assert not flipped(WORD[:3], "cancelled")
    assert not flipped((), "cancelled")
    assert not flipped(WORD[:5], "stop", "abc", stop="de")


def test_a_near_tie_is_told_from_a_wrong_token() -> None:
    assert flipped(word("abczefgh"))
    assert flipped(word("abcz"), "cancelled")
    for wrong in ("abzdefgh", "abcxefgh"):
        with pytest.raises(Wrong, match=r"from token [23] on"):
            flipped(word(wrong))


@pytest.mark.parametrize(
    ("text", "reason", "shown", "stop"),
    [
        ("abcde", "length", "abcde", ""),  # too short
        ("abcde", "stop", "abcde", ""),  # an end token that was far from chosen
        ("abcdefgh", "stop", "abcdefgh", ""),
        ("abcdefgh", "length", "abc", "de"),  # its stop was seen at the end only
        ("abcdef", "stop", "abc", "de"),  # one token late
        ("abcdef", "cancelled", "abcdef", "de"),
        ("abcde", "stop", "abcd", "de"),  # cut at the wrong place
        ("abcx", "cancelled", "abcx", ""),
        ("abcde", "error", "abcde", ""),
    ],
)
def test_what_is_wrong_is_found(text: str, reason: FinishReason, shown: str, stop: str) -> None:
    with pytest.raises(Wrong):
        flipped(word(text), reason, shown, stop)
