"""A line of results as a typed object."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import orjson


@dataclass(frozen=True)
class Usage:
    """Tokens of one request. `accepted` and `rejected` are drafted ones, which the target took and did not take;
    `reasoning_tokens` of the completion's are thoughts.
    """

    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int = 0
    accepted: int = 0
    rejected: int = 0
    reasoning_tokens: int = 0


@dataclass(frozen=True)
class Error:
    """Why a request has no completion: a `code` for programs, a `message` for people."""

    code: str
    message: str


@dataclass(frozen=True)
class Choice:
    """One answer. `text` is None if there is nothing but `tool_calls`, `reasoning` if there are no thoughts.

    `tool_calls` and `logprobs` are in the form of the OpenAI API.
    """

    text: str | None
    finish_reason: str
    reasoning: str | None = None
    tool_calls: tuple[dict[str, Any], ...] = ()
    logprobs: dict[str, Any] | None = None


@dataclass(frozen=True)
class Result:
    """What became of one line of a batch: a completion (`choices`, `usage`), or an `error`.

    `text`, `finish_reason`, `reasoning` and `tool_calls` are the first choice's. `notes` say what of the request its
    model could not do. `line` is its number in the input, `keep` what `keep` asked to hand back, `raw` the line in the
    form of the OpenAI Batch API. `entry` marks the place in the batch's results: `Batch.results(after=entry)` goes on
    behind it.
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
    reasoning: str | None = None
    tool_calls: tuple[dict[str, Any], ...] = ()
    choices: tuple[Choice, ...] = ()
    notes: tuple[str, ...] = ()

    @classmethod
    def parse(cls, entry: str, raw: bytes, line: int) -> Result:
        value = orjson.loads(raw)
        where = (value.get("keep"), line, entry, raw)
        if value["error"] is not None:
            error = Error(value["error"]["code"], value["error"]["message"])
            return cls(value["custom_id"], None, None, None, error, *where)
        body = value["response"]["body"]
        choices = tuple(map(_choice, body["choices"]))
        first, notes = choices[0], tuple(body.get("draftmill", {}).get("notes", ()))
        own = (first.text, first.finish_reason, _usage(body["usage"]), None)
        return cls(value["custom_id"], *own, *where, first.reasoning, first.tool_calls, choices, notes)


def _choice(value: dict[str, Any]) -> Choice:
    message = value.get("message", {})
    return Choice(
        message["content"] if message else value["text"],
        value["finish_reason"],
        message.get("reasoning"),
        tuple(message.get("tool_calls") or ()),
        value.get("logprobs"),
    )


def _usage(value: dict[str, Any]) -> Usage:
    details = value.get("completion_tokens_details", {})
    return Usage(
        value["prompt_tokens"],
        value["completion_tokens"],
        value.get("prompt_tokens_details", {}).get("cached_tokens", 0),
        details.get("accepted_prediction_tokens", 0),
        details.get("rejected_prediction_tokens", 0),
        details.get("reasoning_tokens", 0),
    )
