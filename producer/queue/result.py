"""A line of results as a typed object."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import orjson


@dataclass(frozen=True)
class Usage:
    """Tokens of one request. `accepted` and `rejected` are drafted ones, which the target took and did not take."""

    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int = 0
    accepted: int = 0
    rejected: int = 0


@dataclass(frozen=True)
class Error:
    """Why a request has no completion: a `code` for programs, a `message` for people."""

    code: str
    message: str


@dataclass(frozen=True)
class Result:
    """What became of one line of a batch: a completion (`text`, `finish_reason`, `usage`), or an `error`.

    `line` is its number in the input, `keep` what `keep` asked to hand back, `raw` the line in the form of the OpenAI
    Batch API. `entry` marks the place in the batch's results: `Batch.results(after=entry)` goes on behind it.
    """

    custom_id: str
    text: str | None
    finish_reason: str | None
    usage: Usage | None
    error: Error | None
    keep: dict[str, Any] | None
    line: int
    entry: str
    raw: bytes

    @classmethod
    def parse(cls, entry: str, raw: bytes, line: int) -> Result:
        value = orjson.loads(raw)
        text = finish_reason = usage = error = None
        if value["error"] is not None:
            error = Error(value["error"]["code"], value["error"]["message"])
        else:
            body = value["response"]["body"]
            choice = body["choices"][0]
            text = choice["message"]["content"] if "message" in choice else choice["text"]
            finish_reason, usage = choice["finish_reason"], _usage(body["usage"])
        return cls(value["custom_id"], text, finish_reason, usage, error, value.get("keep"), line, entry, raw)


def _usage(value: dict[str, Any]) -> Usage:
    drafted = value.get("completion_tokens_details", {})
    return Usage(
        value["prompt_tokens"],
        value["completion_tokens"],
        value.get("prompt_tokens_details", {}).get("cached_tokens", 0),
        drafted.get("accepted_prediction_tokens", 0),
        drafted.get("rejected_prediction_tokens", 0),
    )
