"""A thinking budget whose end of thoughts could never come is refused by name, not in the middle of a text."""

from __future__ import annotations

from typing import Any

import pytest

from draftmill.engine.request import Request, RequestError, Sampling
from tests.engine.choose.test_thoughts import END, START, engine, tokenizer
from tests.engine.small import run

TOKENS: dict[Any, int] = {
    "start": tokenizer().convert_tokens_to_ids(START),
    "end": tokenizer().convert_tokens_to_ids(END),
    "newlines": tokenizer().encode("\n\n", add_special_tokens=False)[0],
}


def request(thinking: Any, allowed: tuple[Any, ...] = (), stops: tuple[str, ...] = (), **sampling: Any) -> Request:
    """With these tokens allowed and those to stop at, by number or by name."""
    ids = {"allowed_token_ids": allowed, "stop_token_ids": stops}
    named = {name: tuple(TOKENS.get(token, token) for token in tokens) for name, tokens in ids.items()}
    return Request("r", (1,), Sampling(20, thinking_budget=5, **named, **sampling), thinking=thinking)


@pytest.mark.parametrize(
    "asked",
    [
        request("open", (1, 2)),
        request("open", (1, 2, "end")),  # behind the marker come two newlines
        request("open", bad_words=(END,)),
        request("open", stops=("end",), min_tokens=6),
        request("may", (1, 2, "start")),
    ],
)
def test_a_budget_is_refused_whose_end_of_thoughts_may_not_come(asked: Request) -> None:
    with pytest.raises(RequestError, match=r"^thinking_budget forces the end of thoughts, but .* token \d+; allow it"):
        engine().add(asked)


@pytest.mark.parametrize(
    "asked",
    [
        request("open", (1, 2, "end", "newlines")),
        request("open", stops=("end",), min_tokens=5),
        request("may", (1, 2)),  # thoughts cannot begin
        request("may", bad_words=(START, END)),
        request("none", (1, 2)),
    ],
)
def test_others_are_served(asked: Request) -> None:
    assert run(engine(), [asked])["r"].finish_reason in ("length", "stop")
