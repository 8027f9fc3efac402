"""Structured output under the names of all APIs."""

from __future__ import annotations

from typing import Any

import orjson
import pytest

from draftmill.producer.input.defaults import Defaults
from draftmill.producer.input.request.faults import Fault
from draftmill.producer.input.request.structure import schema_text
from draftmill.producer.queue.wire import Grammar
from tests.producer.input.request.reading import chat, fault, short, text

SCHEMA = {"type": "object", "properties": {"z": {"enum": ["é", None]}, "a": {"type": "integer"}}, "required": ["z"]}
JSON = Grammar(kind="json", text=orjson.dumps(SCHEMA).decode())
REGEX = Grammar(kind="regex", text=r"\d+")
CHOICE = Grammar(kind="choice", text='["yes","no"]')
LARK = Grammar(kind="lark", text='start: "a"')

FORMS: list[tuple[dict[str, Any], Grammar]] = [
    (
        {"response_format": {"type": "json_schema", "json_schema": {"name": "n", "strict": True, "schema": SCHEMA}}},
        JSON,
    ),
    ({"response_format": {"type": "json_object", "schema": SCHEMA}}, JSON),
    ({"response_format": {"type": "json_object"}}, Grammar(kind="json", text='{"type":"object"}')),
    ({"response_format": {"type": "regex", "regex": r"\d+"}}, REGEX),
    ({"response_format": {"type": "regex", "pattern": r"\d+"}}, REGEX),
    ({"response_format": {"type": "grammar", "grammar": 'start: "a"'}}, LARK),
    ({"guided_json": SCHEMA}, JSON),
    ({"guided_json": orjson.dumps(SCHEMA).decode()}, JSON),
    ({"guided_regex": r"\d+"}, REGEX),
    ({"guided_choice": ["yes", "no"]}, CHOICE),
    ({"guided_grammar": 'start: "a"'}, LARK),
    ({"structured_outputs": {"json": SCHEMA}}, JSON),
    ({"structured_outputs": {"regex": r"\d+", "json": None, "disable_fallback": False}}, REGEX),
    ({"structured_outputs": {"choice": ["yes", "no"]}}, CHOICE),
    ({"structured_outputs": {"grammar": 'start: "a"'}}, LARK),
    ({"structured_outputs": {"json_object": True}}, Grammar(kind="json", text='{"type":"object"}')),
    ({"json_schema": SCHEMA}, JSON),
    ({"json_schema": orjson.dumps(SCHEMA).decode()}, JSON),
    ({"regex": r"\d+"}, REGEX),
    ({"ebnf": 'start: "a"'}, LARK),
    ({"grammar": 'start: "a"'}, LARK),
]


@pytest.mark.parametrize(("asked", "grammar"), FORMS, ids=lambda given: str(given)[:40])
def test_each_form_is_a_grammar(asked: dict[str, Any], grammar: Grammar) -> None:
    assert chat(**asked).grammar == text(**asked).grammar == grammar
    assert chat(defaults=Defaults(grammar=CHOICE), **asked).grammar == grammar


def test_a_line_without_one_obeys_the_default_unless_it_wants_text() -> None:
    assert chat().grammar is None
    default = Defaults(grammar=CHOICE)
    assert short(defaults=default).grammar == chat(defaults=default, grammar="").grammar == CHOICE
    assert chat(defaults=default, response_format=None).grammar == CHOICE
    assert chat(defaults=default, response_format={"type": "text"}).grammar is None


@pytest.mark.parametrize(
    ("asked", "why"),
    [
        ({"guided_json": SCHEMA, "guided_regex": "a"}, "has both guided_json and guided_regex; keep one"),
        ({"response_format": {"type": "json_object"}, "regex": "a"}, "has both response_format and regex; keep one"),
        ({"guided_json": "{"}, "guided_json is not JSON: unexpected end of data at column 2"),
        ({"guided_json": [1]}, "guided_json is a list instead of a JSON schema, an object"),
        ({"guided_regex": 5}, "guided_regex is a number instead of a text"),
        *(
            ({name: ""}, f"{name} is empty; remove it")
            for name in ("guided_regex", "guided_grammar", "guided_json", "regex", "ebnf", "json_schema")
        ),
        ({"structured_outputs": {"json": ""}}, "structured_outputs.json is empty; remove it"),
        ({"guided_choice": ""}, 'guided_choice is ""; it must be a list of texts that are not empty'),
        ({"guided_choice": []}, "guided_choice is []; it must be a list of texts that are not empty"),
        ({"guided_choice": ["a", 5]}, 'guided_choice is ["a",5]; it must be a list of texts that are not empty'),
        ({"guided_choice": "yes"}, 'guided_choice is "yes"; it must be a list of texts that are not empty'),
        ({"guided_grammar": "x" * 131_073}, "guided_grammar has 131,073 characters; at most 131,072 are allowed"),
        ({"response_format": {"type": "regex"}}, "response_format has no regex"),
        ({"structured_outputs": "json"}, "structured_outputs is a text instead of an object"),
        (
            {"structured_outputs": {}},
            "structured_outputs has no grammar; it must have one of json, regex, choice, grammar",
        ),
        (
            {"structured_outputs": {"json": SCHEMA, "regex": "a"}},
            "structured_outputs has json and regex; it must have one of json, regex, choice, grammar",
        ),
        (
            {"structured_outputs": {"json": SCHEMA, "whitespace_pattern": " "}},
            'structured_outputs.whitespace_pattern = " " is not supported; remove it',
        ),
    ],
)
def test_what_is_wrong_is_said(asked: dict[str, Any], why: str) -> None:
    assert fault(chat, **asked) == why


def test_the_same_under_two_names_is_one() -> None:
    assert chat(guided_json=SCHEMA, structured_outputs={"json": SCHEMA}).grammar == JSON


def test_a_schema_is_taken_out_of_its_wrapper() -> None:
    schema = {"type": "object", "properties": {"name": {"type": "string"}, "schema": {"type": "object"}}}
    named = {"name": "verdict", "description": "a verdict", "strict": True, "schema": schema}
    text = orjson.dumps(schema).decode()
    for wrapped in (
        schema,
        named,
        {"schema": schema},
        {"type": "json_schema", "json_schema": named},
        {"type": "json_schema", **named},
    ):
        assert schema_text(wrapped, "--schema") == text
    for own in ({}, {"description": "anything"}, {"type": "object", "name": "x"}, {"schema": {}, "required": ["a"]}):
        assert schema_text(own, "--schema") == orjson.dumps(own).decode()
    for empty in (
        {"name": "verdict", "strict": True},
        {"type": "json_schema"},
        {"type": "json_schema", "schema": None},
    ):
        with pytest.raises(Fault, match="--schema has OpenAI's wrapper, and no schema in it"):
            schema_text(empty, "--schema")
