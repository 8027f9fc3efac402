"""What must hold for a whole input file before any of its lines runs, and the errors of a batch that fails at it.

What is wrong with a single request (its messages, its sampling parameters) fails that request alone, later.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from ...input.compression import GZIP, ZSTD
from ...input.lines import Fault
from ...input.sources import NotLines, open_source
from ...queue.wire import MOST_ID_CHARACTERS

MOST_LINES = 50_000
MOST_ERRORS = 100
"""Errors that a batch shows; the rest is like them."""


@dataclass(frozen=True)
class LineError:
    """One entry of a batch's `errors.data`."""

    code: str
    message: str
    param: str | None = None
    line: int | None = None


@dataclass(frozen=True)
class Validated:
    """What validation learns: how many requests there are, their pair, what is wrong.

    `model` is what all of them call the pair; empty if they have several names for it. `models` are all those names.
    """

    total: int = 0
    model: str = ""
    pair: str = ""
    models: tuple[str, ...] = ()
    errors: tuple[LineError, ...] = ()


class Invalid(ValueError):
    """Why a line cannot be part of a batch."""

    def __init__(self, code: str, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.code, self.message, self.param = code, message, param


def validate(path: Path, endpoint: str, pair_of: Callable[[str], str | None]) -> Validated:
    """Reads a file of requests once, line by line; `pair_of` knows the pairs that models stand for."""
    if _is_compressed(path):  # it could become any size
        return _unreadable("The file is compressed; upload plain JSON lines.")
    try:
        return _validate(path, endpoint, pair_of)
    except NotLines as error:
        return _unreadable(f"The file is {error.reason}")


def _unreadable(message: str) -> Validated:
    return Validated(errors=(LineError("invalid_json_line", message),))


def _validate(path: Path, endpoint: str, pair_of: Callable[[str], str | None]) -> Validated:
    pair_of = cache(pair_of)
    total, models, errors, seen = 0, dict[str, str](), [], set()
    for number, line in open_source(str(path), "jsonl").rows():
        total += 1
        if total > MOST_LINES:
            errors.append(LineError("too_many_tasks", f"The file has more than {MOST_LINES:,} requests."))
            break
        try:
            name, asked = _check(line, endpoint)
            if name in seen:
                raise Invalid("duplicate_custom_id", f"An earlier line has the custom_id '{name}'.", "custom_id")
            seen.add(name)
            pair = pair_of(asked)
            if models and pair not in models.values():
                first = next(iter(models))
                message = f"The model '{asked}' is not '{first}', which this batch is for; a batch has one model."
                raise Invalid("mismatched_model", message, "body.model")
            if pair is None:
                message = f"The model '{asked}' is no known pair, and no live worker serves it."
                raise Invalid("model_not_found", message, "body.model")
            models[asked] = pair
        except Invalid as error:
            errors.append(LineError(error.code, error.message, error.param, number))
            if len(errors) >= MOST_ERRORS:
                break
    if not total:
        errors.append(LineError("empty_file", "The file has no requests."))
    first, pair = next(iter(models.items()), ("", ""))
    return Validated(total, first if len(models) == 1 else "", pair, tuple(models), tuple(errors))


def _is_compressed(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(4).startswith((GZIP, ZSTD))


def _check(line: dict[str, Any] | Fault, endpoint: str) -> tuple[str, str]:
    """The custom_id and the model of a line."""
    if isinstance(line, Fault):
        raise Invalid("invalid_json_line", f"This line is not parseable as valid JSON: {line}.")
    name = _text(line, "custom_id", "custom_id")
    if len(name) > MOST_ID_CHARACTERS:
        raise Invalid("invalid_value", f"The custom_id is longer than {MOST_ID_CHARACTERS} characters.", "custom_id")
    if _text(line, "method", "method") != "POST":
        raise Invalid("invalid_value", f"The method is {line['method']!r}; it must be 'POST'.", "method")
    if _text(line, "url", "url") != endpoint:
        raise Invalid("url_mismatch", f"The url is '{line['url']}', the endpoint of the batch '{endpoint}'.", "url")
    body = _given(line, "body", "body")
    if not isinstance(body, dict):
        raise Invalid("invalid_type", "'body' must be a JSON object.", "body")
    return name, _text(body, "model", "body.model")


def _given(source: dict[str, Any], name: str, param: str) -> Any:
    if source.get(name) is None:
        raise Invalid("missing_required_parameter", f"Missing required parameter: '{param}'.", param)
    return source[name]


def _text(source: dict[str, Any], name: str, param: str) -> str:
    value = _given(source, name, param)
    if not isinstance(value, str) or not value:
        raise Invalid("invalid_type", f"'{param}' must be a text that is not empty.", param)
    return value
