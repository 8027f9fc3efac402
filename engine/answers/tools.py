"""Calls of tools: the grammar that enforces them, and how they are read from what the model wrote."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..choose.notation import WHITESPACE
from ..request import Grammar, RequestError
from ..text import Text

ANY_ARGUMENTS = {"type": "object"}


class Unreadable(ValueError):
    """What the model wrote is no call."""


@dataclass(frozen=True)
class Call:
    """A function to call, and its arguments as JSON."""

    name: str
    arguments: str


@dataclass(frozen=True)
class Tools:
    """The functions that a request offers, as in the OpenAI API.

    If they are `required`, the answer is calls of them and nothing else; of the one that is `named`, if one is. Of
    several calls a `single` one is kept: the first.
    """

    tools: tuple[Mapping[str, Any], ...]
    required: bool = False
    named: str | None = None
    single: bool = False

    @property
    def enforced(self) -> bool:
        return self.required or self.named is not None


def grammar(tools: Tools, text: Text) -> Grammar:
    """What enforces calls: in JSON between the model's own markers where its parser reads that, else one call as JSON.

    Raises RequestError if the tool that is named is not there.
    """
    functions = [tool["function"] for tool in tools.tools]
    if tools.named is not None:
        functions = [function for function in functions if function["name"] == tools.named]
        if not functions:
            raise RequestError(f"tool_choice names {tools.named!r}, which is none of the tools; name one of them")
    rules = [f"call: {' | '.join(f'call{n}' for n in range(len(functions)))}"]
    for n, function in enumerate(functions):
        head = f'{{"name": {json.dumps(function["name"], ensure_ascii=False)}, "arguments": '
        schema = {**(function.get("parameters") or ANY_ARGUMENTS), "x-guidance": {"whitespace_pattern": WHITESPACE}}
        rules += [f'call{n}: {json.dumps(head)} arguments{n} "}}"', f"arguments{n}: %json {json.dumps(schema)}"]
    if not _has_json_form(text):
        start = "start: call"
    else:
        begin, end = (
            _marker(text, marker) for marker in (text.tokenizer.tool_call_start, text.tokenizer.tool_call_end)
        )
        marked = f'{begin} "\\n" call "\\n" {end}'
        alone = tools.single or tools.named is not None
        start = f"start: {marked}" if alone else f'start: {marked} ("\\n" {marked})*'
    return Grammar("lark", "\n".join([start, *rules]))


def calls(written: str, tools: Tools, text: Text) -> tuple[str, tuple[Call, ...]]:
    """What stands around the calls in an answer, control tokens and all, and the calls.

    Raises Unreadable for calls that are none.
    """
    if tools.enforced and not _has_json_form(text):
        return "", (_call(_parsed(json.loads, written)),)
    tokenizer = text.tokenizer
    around, found, place = [], [], 0
    while (begin := written.find(tokenizer.tool_call_start, place)) >= 0:
        around.append(written[place:begin])
        begin += len(tokenizer.tool_call_start)
        end = written.find(tokenizer.tool_call_end or tokenizer.tool_call_start, begin)
        end = len(written) if end < 0 else end  # an answer may be cut off, or have no end marker
        parsed = _parsed(lambda part: tokenizer.tool_parser(part, list(tools.tools)), written[begin:end])
        found += map(_call, parsed if isinstance(parsed, list) else [parsed])
        place = end + len(tokenizer.tool_call_end)
    return "".join([*around, written[place:]]), tuple(found)


def has_parser(text: Text) -> bool:
    """Whether anybody can tell this model's calls from other text."""
    return bool(getattr(text.tokenizer, "has_tool_calling", False))


def _has_json_form(text: Text) -> bool:
    """Whether the model's calls are objects of JSON between markers."""
    if not has_parser(text):
        return False
    from mlx_lm.tool_parsers import json_tools  # seconds to load, and a worker reads no tools before it has a model

    return text.tokenizer.tool_parser is json_tools.parse_tool_call


def _marker(text: Text, marker: str) -> str:
    """A marker in a grammar: as a token where it is one, else as text."""
    added = text.tokenizer.added_tokens_decoder
    token = next((token for token, each in added.items() if each.content == marker), None)
    return json.dumps(marker) if token is None else f"<[{token}]>"


def _parsed(parser: Any, written: str) -> Any:
    try:
        return parser(written)
    except Exception as error:  # the parsers are mlx-lm's, each raises what it likes
        raise Unreadable(str(error)) from error


def _call(parsed: Any) -> Call:
    match parsed:
        case {"name": str(name), "arguments": str(arguments)}:
            pass
        case {"name": str(name), "arguments": dict(found)}:
            arguments = _json(found)
        case {"name": str(name)} if "arguments" not in parsed:
            arguments = "{}"
        case _:
            raise Unreadable("it has no name and arguments")
    if not (_is_text(name) and _is_text(arguments)):
        raise Unreadable("it has halves of characters")
    return Call(name, arguments)


def _json(value: Any) -> str:
    try:
        text = json.dumps(value, ensure_ascii=False)
        return text if _is_text(text) else json.dumps(value)
    except (RecursionError, TypeError, ValueError) as error:  # parsers may make what JSON does not have
        raise Unreadable(str(error)) from error


def _is_text(value: str) -> bool:
    """Whether it has no half of a surrogate pair, which JSON may spell."""
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True
