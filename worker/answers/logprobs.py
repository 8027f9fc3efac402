"""Log-probabilities in the two forms of the OpenAI API."""

from __future__ import annotations

import codecs
from collections.abc import Sequence
from typing import Any

from ...engine.answers.spelling import Spelling, spelling
from ...engine.request import TokenLogprob
from ...engine.text import Text

LEAST = -9999.0
"""What the API says for a token that cannot be; JSON has no infinity."""


def of_chat(logprobs: Sequence[TokenLogprob], text: Text) -> dict[str, Any]:
    """Of a chat's choice: for each token how it is spelled, and the likeliest ones at its place."""
    content = [
        {**_token(each.token, each.logprob, text), "top_logprobs": [_token(*top, text) for top in each.top]}
        for each in logprobs
    ]
    return {"content": content, "refusal": None}


def of_text(logprobs: Sequence[TokenLogprob], text: Text, begin: int) -> dict[str, Any]:
    """Of a text's choice, in which the first of these tokens is at the character `begin`.

    `top_logprobs` have the chosen token as well. A token that completes a character is at that character's place. Parts
    of characters are `bytes:` and their bytes, as in OpenAI's answers, for here tokens are known by their names alone.
    """
    read = codecs.getincrementaldecoder("utf-8")("replace")
    spellings = [spelling(each.token, text) for each in logprobs]
    offsets, place = [], begin
    for each in spellings:
        offsets.append(place)
        place += len(each.text if each.bytes is None else read.decode(each.bytes))
    return {
        "tokens": [_name(each) for each in spellings],
        "token_logprobs": [_finite(each.logprob) for each in logprobs],
        "top_logprobs": [_likeliest(each, text) for each in logprobs],
        "text_offset": offsets,
    }


def _likeliest(logprob: TokenLogprob, text: Text) -> dict[str, float]:
    found: dict[str, float] = {}
    for token, value in (*logprob.top, (logprob.token, logprob.logprob)):
        found.setdefault(_name(spelling(token, text)), _finite(value))  # the likelier of two that read alike
    return found


def _name(spelled: Spelling) -> str:
    if spelled.bytes is None or spelled.text.encode() == spelled.bytes:
        return spelled.text
    return "bytes:" + "".join(f"\\x{byte:02x}" for byte in spelled.bytes)


def _token(token: int, logprob: float, text: Text) -> dict[str, Any]:
    spelled = spelling(token, text)
    return {
        "token": spelled.text,
        "logprob": _finite(logprob),
        "bytes": None if spelled.bytes is None else list(spelled.bytes),
    }


def _finite(logprob: float) -> float:
    return max(logprob, LEAST)
