"""Grammars as llguidance reads them: of schemas, regular expressions, choices, rules in Lark's notation or GBNF."""

from __future__ import annotations

import json
import re
from typing import Any

from ..request import Grammar

WHITESPACE = r" |\n[ \t]{0,40}"
"""What may stand between two parts of a JSON text: enough to indent it, too little to go on with for ever."""

GBNF = re.compile(r"^\s*[\w-]+\s*::=", re.MULTILINE)
"""A rule of GBNF, as llama.cpp has it; vLLM calls it EBNF."""

ESCAPE = re.compile(r"\\(?:u([0-9A-Fa-f]{4})|U([0-9A-Fa-f]{8})|.)", re.DOTALL)

ATTRIBUTES = re.compile(r"^[ \t]*[?!]*[\w-]+[ \t]*\[([^\]\n]*)\][ \t]*:", re.MULTILINE)
"""What a rule of Lark's says of itself, as llguidance has it."""

UNKNOWN = re.compile(r"\b(temperature|stop)\s*=")
"""Attributes that a matcher reads and does not obey."""

INLINE = re.compile(
    r"""(?:"(?:\\.|[^"\\\n])*"  # a string,
        |//[^\n]*|\#[^\n]*      # a comment
        |/(?:\\.|[^/\\\n])+/    # or a regular expression may name it
        |(?P<json>%json\s*)(?=\{))""",
    re.VERBOSE,
)


def notated(asked: Grammar) -> str:
    """The grammar for llguidance's matchers, which check it; raises ValueError with the reason."""
    from llguidance import LLMatcher, regex_to_lark

    match asked.kind:
        case "json":
            return LLMatcher.grammar_from_json_schema(asked.text, overrides={"whitespace_pattern": WHITESPACE})
        case "regex":
            # A digit is one of ASCII's, as who writes \d means.
            return LLMatcher.grammar_from_lark(f"start: /{regex_to_lark(asked.text, 'd')}/")
        case "choice":
            return LLMatcher.grammar_from_lark(_of_choices(asked.text))
        case "lark":
            return LLMatcher.grammar_from_lark(_of_rules(asked.text))


def _of_choices(text: str) -> str:
    choices = json.loads(text)
    if not isinstance(choices, list) or not choices or not all(isinstance(choice, str) for choice in choices):
        raise ValueError("it must be a JSON list of one or more strings")
    # One terminal: alternatives of a rule are limited in number.
    return "start: CHOICE\nCHOICE: " + " | ".join(json.dumps(choice) for choice in choices)


def _of_rules(text: str) -> str:
    if GBNF.search(text):
        return _of_gbnf(text)
    for attributes in ATTRIBUTES.findall(text):
        if unknown := UNKNOWN.search(attributes):
            raise ValueError(f"a rule's {unknown[1]} is not supported; leave it out")
    return _with_bounded_whitespace(text)


def _of_gbnf(text: str) -> str:
    from llguidance.gbnf_to_lark import gbnf_to_lark

    try:
        return gbnf_to_lark(ESCAPE.sub(_plain, text))
    except Exception as error:  # it raises what it likes
        reason = "it is nested too deeply" if isinstance(error, RecursionError) else error
        raise ValueError(f"read as GBNF, because it has '::=': {reason}") from error


def _plain(escape: re.Match[str]) -> str:
    """The character that an escape by its code means; the converter would lose zeros of the code."""
    code = int(escape[1] or escape[2] or "0", 16)
    if not code:
        return escape[0]
    return f"\\x{code:02x}" if code < 128 else chr(code)


def _with_bounded_whitespace(text: str) -> str:
    """Lark's notation with WHITESPACE in each `%json {...}` that says nothing of its own about it."""
    decoder, parts, end = json.JSONDecoder(), [], 0
    while found := INLINE.search(text, end):
        parts.append(text[end : found.end()])
        end = found.end()
        if found["json"]:
            try:
                schema, end = decoder.raw_decode(text, end)
            except (ValueError, RecursionError):
                continue  # llguidance says why
            parts.append(json.dumps(_bounded(schema)))
    return "".join([*parts, text[end:]])


def _bounded(schema: dict[str, Any]) -> dict[str, Any]:
    return {"x-guidance": {"whitespace_pattern": WHITESPACE}, **schema}
