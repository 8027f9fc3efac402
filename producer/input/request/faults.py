"""Faults of a line in plain words."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import orjson
from pydantic import ValidationError


class Fault(ValueError):
    """Why a line cannot be run."""


LIMITS = {
    "greater_than": "more than {gt}",
    "greater_than_equal": "at least {ge}",
    "less_than": "less than {lt}",
    "less_than_equal": "at most {le}",
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "finite_number": "a finite number",
    "bool_type": "true or false",
    "dict_type": "an object",
    "string_type": "a text",
    "string_too_short": "not empty",
    "tuple_type": "a list",
    "too_long": "at most {max_length} entries",
    "literal_error": "{expected}",
}
"""What a value must be, by pydantic's type of error."""

OWN = {"stop": "a text or a list of texts"}
"""What a value must be that pydantic has no words for."""


def reason(error: ValidationError, said: Mapping[str, str] | None = None) -> str:
    """The first thing that pydantic found, in words; `said` has the names by which the user called ours."""
    first = error.errors(include_url=False)[0]
    own, *inside = first["loc"]
    name = (said or {}).get(str(own), str(own)) + "".join(f"[{show(key)}]" for key in inside if key != "[key]")
    value = first["input"]
    if name == "role" and value is None:
        return "role is missing"
    bounds = {key: f"{bound}".removesuffix(".0") for key, bound in first.get("ctx", {}).items()}
    limit = LIMITS.get(first["type"], "").format(**bounds)
    if first["type"] == "tuple_type":
        limit = OWN.get(name, limit)
    return f"{name} is {show(value)}; it must be {limit}" if limit else f"{name}: {first['msg']}"


def show(value: Any) -> str:
    """A value as short JSON, or as Python has it where JSON does not: infinite, or an integer of more than 64 bits."""
    try:
        text = str(value) if isinstance(value, float) else orjson.dumps(value, default=str).decode()
    except orjson.JSONEncodeError:
        text = str(value)
    return text if len(text) <= 40 else f"{text[:37]}…"


def column_names(row: Mapping[str, Any]) -> str:
    """The first of a row's columns, to show what there is."""
    return ", ".join(list(row)[:12]) + (", …" if len(row) > 12 else "")


def kind(value: Any) -> str:
    """What sort of value it is, in words of JSON."""
    match value:
        case None:
            return "null"
        case bool():
            return "true or false"
        case int() | float():
            return "a number"
        case str():
            return "a text"
        case list():
            return "a list"
        case _:
            return "an object"
