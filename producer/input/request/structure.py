"""What an answer must obey: a JSON schema, a regular expression, choices or a grammar, under the names of all APIs."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

import orjson

from ...queue.wire import MOST_GRAMMAR_CHARACTERS, Grammar
from .asked import Asked, named
from .faults import Fault, kind, show

Kind = Literal["json", "regex", "choice", "lark"]

ANY_OBJECT = '{"type":"object"}'
"""The schema of response_format's type json_object."""

WRAPPER = frozenset(("type", "json_schema", "name", "description", "strict", "schema"))
"""What stands around a schema in OpenAI's APIs. A schema has other names, or another type than json_schema."""

NAMES: dict[str, Kind] = {
    "guided_json": "json",
    "json_schema": "json",
    "guided_regex": "regex",
    "regex": "regex",
    "guided_choice": "choice",
    "guided_grammar": "lark",
    "grammar": "lark",
    "ebnf": "lark",
}
"""Fields that are a grammar, of which kind."""

IN_STRUCTURED_OUTPUTS: dict[str, Kind] = {
    "json": "json",
    "regex": "regex",
    "choice": "choice",
    "grammar": "lark",
}

OFF = {"grammar": ""}
"""What says that there is none: llama.cpp has it so. Of all other names an empty value is refused, as vLLM does."""

HARMLESS = {
    "disable_any_whitespace": False,
    "disable_additional_properties": False,
    "disable_fallback": False,
    "json_object": False,
}
"""Options of structured_outputs that are not served unless they have this value."""


def grammar(asked: Asked, default: Grammar | None) -> Grammar | None:
    """What the answer must obey, under whatever name, else `default`; raises Fault if there are two different ones."""
    found: dict[str, Grammar] = dict(_all(asked))
    names = list(found)
    for name in names[1:]:
        if found[name] != found[names[0]]:
            raise Fault(f"has both {names[0]} and {name}; keep one")
    if found:
        return found[names[0]]
    return None if "response_format" in asked else default


def _all(asked: Asked) -> Iterator[tuple[str, Grammar]]:
    if (given := asked.get("response_format")) is not None and (grammar := _response_format(given)):
        yield "response_format", grammar
    if (given := asked.get("structured_outputs")) is not None:
        yield "structured_outputs", _structured_outputs(given)
    for name, of in NAMES.items():
        if (given := asked.get(name)) is not None and given != OFF.get(name):
            yield name, made(of, given, name)


def made(of: Kind, value: Any, name: str) -> Grammar:
    """The grammar that stands under `name`; raises Fault. Whether it can be enforced is seen by those who do."""
    match of:
        case "json":
            return Grammar(kind=of, text=schema_text(_parsed(value, name), name))
        case "choice":
            return Grammar(kind=of, text=_checked(_choices(value, name), name))
        case _:
            return Grammar(kind=of, text=_checked(_text(value, name), name))


def schema_text(schema: Any, name: str) -> str:
    """The JSON schema that stands under `name`, as text. Whether it can be enforced is seen by those who do.

    What OpenAI's APIs wrap around a schema is taken off: read as a schema it would allow any JSON.
    """
    schema = _unwrapped(schema, name)
    if not isinstance(schema, dict):
        raise Fault(f"{name} is {kind(schema)} instead of a JSON schema, an object")
    return _checked(orjson.dumps(schema).decode(), name)


def _checked(text: str, name: str) -> str:
    if len(text) > MOST_GRAMMAR_CHARACTERS:
        raise Fault(f"{name} has {len(text):,} characters; at most {MOST_GRAMMAR_CHARACTERS:,} are allowed")
    return text


def _unwrapped(given: Any, name: str) -> Any:
    """The schema in a `response_format`, in its `json_schema` or in the Responses API's `format`; else `given`."""
    if not isinstance(given, dict) or not given.keys() <= WRAPPER or given.keys() <= {"description"}:
        return given
    if given.get("type", "json_schema") != "json_schema":
        return given
    inner = given.get("json_schema", given.get("schema"))
    if inner is None:
        raise Fault(f"{name} has OpenAI's wrapper, and no schema in it")
    return _unwrapped(inner, name)


def _parsed(value: Any, name: str) -> Any:
    """A schema, which some APIs take as a text."""
    if not isinstance(value, str):
        return value
    _refuse_empty(value, name)
    try:
        return orjson.loads(value)
    except orjson.JSONDecodeError as error:
        raise Fault(f"{name} is not JSON: {error.msg} at column {error.colno}") from None


def _text(value: Any, name: str) -> str:
    if not isinstance(value, str):
        raise Fault(f"{name} is {kind(value)} instead of a text")
    _refuse_empty(value, name)
    return value


def _refuse_empty(text: str, name: str) -> None:
    if not text:
        raise Fault(f"{name} is empty; remove it")


def _choices(value: Any, name: str) -> str:
    texts = list(value) if isinstance(value, list | tuple) else []
    if not texts or not all(isinstance(text, str) and text for text in texts):
        raise Fault(f"{name} is {show(value)}; it must be a list of texts that are not empty")
    return orjson.dumps(texts).decode()


def _response_format(given: Any) -> Grammar | None:
    match given:
        case {"type": "text"}:
            return None
        case {"type": "json_object", "schema": schema} if schema is not None:
            return made("json", schema, "response_format.schema")
        case {"type": "json_object"}:
            return Grammar(kind="json", text=ANY_OBJECT)
        case {"type": "json_schema", "json_schema": {"schema": schema}}:
            return Grammar(kind="json", text=schema_text(schema, "response_format.json_schema.schema"))
        case {"type": "json_schema"}:
            raise Fault("response_format has no json_schema.schema")
        case {"type": "regex", "regex": text} | {"type": "regex", "pattern": text} | {"type": "regex", "value": text}:
            return made("regex", text, "response_format.regex")
        case {"type": "grammar", "grammar": text} | {"type": "grammar", "value": text}:
            return made("lark", text, "response_format.grammar")
        case {"type": ("regex" | "grammar") as type}:
            raise Fault(f"response_format has no {type}")
        case {"type": type}:
            types = '"json_schema", "json_object", "regex", "grammar" or "text"'
            raise Fault(f"response_format.type is {show(type)}; it must be {types}")
        case _:
            raise Fault(f"response_format is {show(given)}; it must be an object with a type")


def _structured_outputs(given: Any) -> Grammar:
    """vLLM's object, which has one grammar and options."""
    options = {key: value for key, value in named("structured_outputs", given).items() if value is not None}
    if options.get("json_object") is True:
        options = {key: value for key, value in options.items() if key != "json_object"} | {"json": {"type": "object"}}
    kinds = [key for key in options if key in IN_STRUCTURED_OUTPUTS]
    for key, value in options.items():
        if key not in kinds and not (key in HARMLESS and value is HARMLESS[key]):
            raise Fault(f"structured_outputs.{key} = {show(value)} is not supported; remove it")
    if len(kinds) != 1:
        raise Fault(f"structured_outputs has {' and '.join(kinds) or 'no grammar'}; it must have one of "
                    f"{', '.join(IN_STRUCTURED_OUTPUTS)}")  # fmt: skip
    return made(IN_STRUCTURED_OUTPUTS[kinds[0]], options[kinds[0]], f"structured_outputs.{kinds[0]}")
