"""Answers under regular expressions, choices and rules: whatever the model, the temperature, the draft."""

from __future__ import annotations

import ast
import json
import re
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Literal

import jsonschema
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from draftmill.engine.choose.grammar import on_deep_stack
from draftmill.engine.request import Completion, Grammar, Request, RequestError, Sampling
from tests.engine.choose.test_grammar import engine, tokens
from tests.engine.small import requests, run

Check = Callable[[str], Any]

SUMS = """
start: sum
sum: product | sum ("+" | "-") product
product: value | product "*" value
value: NUMBER | "(" NUMBER ")"
NUMBER: /[1-9][0-9]{0,2}/
"""

GBNF = """
# a list of words
root ::= "[" word ("," word){1,3} "]"
word ::= "\\"" letter{1,4} "\\""
letter ::= [a-c\\u00e9]
"""

PATTERNS = (
    r"\d{3}-\d{4}",
    r"^(yes|no|may be)$",
    r"[A-Z][a-z]{2,6} [A-Z]\.",
    r"(?:[a-f0-9]{2}:){5}[a-f0-9]{2}",
    r"[a-z]{1,5}@[\d._]{1,5}\.(com|org)",
    r"a(b|c)*?d{0,3}/\\\.",
    r"[^a-z ]{2,4}é?",
)


def by_pattern(pattern: str) -> Check:
    def check(text: str) -> None:
        assert re.fullmatch(pattern, text)

    return check


def by_membership(choices: list[str]) -> Check:
    def check(text: str) -> None:
        assert text in choices

    return check


def a_sum(text: str) -> None:
    """What Python's parser takes for an arithmetic expression without anything else."""
    for node in ast.walk(ast.parse(text, mode="eval")):
        allowed = ast.Expression | ast.BinOp | ast.Add | ast.Sub | ast.Mult | ast.Constant
        assert isinstance(node, allowed)


def words(text: str) -> None:
    given = json.loads(text)
    assert 2 <= len(given) <= 4
    assert all(re.fullmatch("[abcé]{1,4}", word) for word in given)


TEXTS = st.text(st.characters(exclude_categories=["Cs"]) | st.sampled_from('ab"\\/\n|'), max_size=6)

ASKED = st.one_of(
    st.sampled_from(PATTERNS).map(lambda pattern: (Grammar("regex", pattern), by_pattern(pattern))),
    st.lists(TEXTS, min_size=1, max_size=5).map(
        lambda given: (Grammar("choice", json.dumps(given)), by_membership(given))
    ),
    st.just((Grammar("lark", GBNF), words)),
)


def assert_obeyed(completion: Completion, check: Check) -> None:
    assert completion.finish_reason == "stop"
    check(completion.text)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(ASKED, min_size=1, max_size=6), st.sampled_from([0.0, 1.5]), st.booleans())
def test_a_random_model_obeys(given: list[tuple[Grammar, Check]], temperature: float, draft: bool) -> None:
    asked = [
        Request(f"r{i}", (1 + i, 2, 3), Sampling(400, temperature, seed=i), grammar)
        for i, (grammar, _) in enumerate(given)
    ]
    done = run(engine(draft=draft), asked)
    for request, (_, check) in zip(asked, given, strict=True):
        assert_obeyed(done[request.id], check)


def test_rules_of_which_texts_have_no_longest() -> None:
    asked = [
        replace(request, grammar=Grammar("lark", SUMS)) for request in requests(12, max_tokens=60, temperature=1.5)
    ]
    ended = [completion for completion in run(engine(), asked).values() if completion.finish_reason == "stop"]
    assert len(ended) > 3
    for completion in ended:
        a_sum(completion.text)


TOOLS = {
    "weather": {"type": "object", "properties": {"city": {"enum": ["Oslo", "Rome"]}}, "required": ["city"]},
    "add": {"type": "object", "properties": {"a": {"type": "integer", "maximum": 99, "minimum": 0}}, "required": ["a"]},
}


def a_call(name: str, parameters: Any) -> dict[str, Any]:
    closed = {**parameters, "additionalProperties": False}
    properties = {"name": {"const": name}, "arguments": closed}
    return {
        "type": "object",
        "properties": properties,
        "required": ["name", "arguments"],
        "additionalProperties": False,
    }


@pytest.mark.parametrize("markers", [("<tool_call>", "</tool_call>"), ()], ids=["tokens", "text"])
@pytest.mark.parametrize("draft", [False, True])
def test_calls_of_tools(markers: tuple[str, ...], draft: bool) -> None:
    begin, end = markers or ('"<tool_call>"', '"</tool_call>"')
    calls = [a_call(name, parameters) for name, parameters in TOOLS.items()]
    rules = f'start: call ("\\n" call)?\ncall: {begin} "\\n" arguments "\\n" {end}\narguments: %json ' + json.dumps(
        {"anyOf": calls}
    )
    asked = [
        replace(request, grammar=Grammar("lark", rules), sampling=Sampling(500, 1.5 * (i % 2), seed=i))
        for i, request in enumerate(requests(8))
    ]
    seen = set()
    for completion in run(engine(draft=draft, markers=markers), asked).values():
        assert completion.finish_reason == "stop"
        found = re.fullmatch(
            r"(<tool_call>\n(.*?)\n</tool_call>\n?)(<tool_call>\n(.*?)\n</tool_call>)?", completion.text, re.S
        )
        assert found
        for said in filter(None, (found[2], found[4])):
            call = json.loads(said)
            jsonschema.validate(call["arguments"], {**TOOLS[call["name"]], "additionalProperties": False})
            seen.add(call["name"])
    assert seen == set(TOOLS)


def test_forced_tokens_save_rounds_and_change_nothing() -> None:
    text = '{"the name of it": "a long one", "the answer": '
    rules = f"start: {json.dumps(text)} NUMBER {json.dumps(' }')}\nNUMBER: /[0-9]{{3}}/"
    for family in ("llama", "qwen3.5"):
        for draft in (False, True):
            asked = [
                replace(request, grammar=Grammar("lark", rules))
                for request in requests(4, max_tokens=200, temperature=1.0)
            ]
            made, plain = engine(family, draft), engine(family, draft)
            plain.scheduler.forced = 0
            if draft:
                plain.scheduler.depths = made.scheduler.depths = lambda rows, prompt: [0] * len(rows)
            done, expected = run(made, asked), run(plain, asked)
            assert tokens(done) == tokens(expected)
            assert plain.stats.rounds == 1 + max(expected[request.id].rounds for request in asked)
            for id, completion in done.items():
                assert re.fullmatch(re.escape(text) + "[0-9]{3} }", completion.text)
                assert completion.rounds < expected[id].rounds / 3
                assert completion.accepted == completion.drafted > 30  # none of them in vain
                assert completion.accepted + completion.rounds - len(completion.tokens) in (
                    -1,
                    0,
                )  # the last gives no more


@pytest.mark.parametrize(
    ("kind", "text", "reason"),
    [
        ("regex", "(", "unclosed group"),
        ("regex", "(?=a)b", "look-around"),
        ("regex", r"(a)\1", "backreferences are not supported"),
        ("regex", r"[a&&b]", "no text obeys it"),
        ("choice", "[]", "it must be a JSON list of one or more strings"),
        ("choice", '["a", 1]', "it must be a JSON list of one or more strings"),
        ("choice", '["a"', "Expecting ',' delimiter"),
        ("choice", '["\\ud800"]', "hex escape"),
        ("lark", "", "Empty grammar"),
        ("lark", "start: a", "unknown name"),
        ("lark", "start: a\na: a", "no text obeys it"),
        ("lark", "start: <nothing>", 'unknown special token: "<nothing>"'),
        ("lark", "start: x\nx[temperature=0.5]: /a+/", "a rule's temperature is not supported"),
        ("lark", 'start: x "c"\nx[stop="b"]: /a+/', "a rule's stop is not supported"),
        ("lark", "root ::= [a", "read as GBNF, because it has '::=': Unexpected end of input"),
        ("lark", 'word ::= "a"', "No 'root' rule found"),
        ("lark", "root ::= " + "(" * 5000, "nested too deeply"),
        ("lark", "start: " + "(" * 50_000, "too deeply nested"),
        ("lark", "start: R0\n" + "".join(f"R{i}: R{i + 1} R{i + 1}\n" for i in range(99)) + 'R99: "a"', "too big"),
        ("json", "{" * 100_000, "key must be a string"),
    ],
)
def test_a_grammar_that_cannot_be_enforced_fails_alone(
    kind: Literal["json", "regex", "choice", "lark"], text: str, reason: str
) -> None:
    made = engine()
    for _ in range(2):  # the second time it is known
        with pytest.raises(RequestError, match=rf"^the grammar \({kind}\) cannot be enforced: [^\n]{{1,500}}$") as info:
            made.add(Request("bad", (1, 2), grammar=Grammar(kind, text)))
        assert reason in str(info.value)
    assert not made.busy


def test_a_long_chain_of_rules_ends_no_process() -> None:
    chain = "".join(f"r{i}: r{i + 1}\n" for i in range(9000))
    asked = Request("r", (1, 2), grammar=Grammar("lark", f'start: r0\n{chain}r9000: "yes" | "no"'))
    assert run(engine(), [asked])["r"].text in ("yes", "no")


def test_what_takes_too_long_to_compile_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("draftmill.engine.choose.grammar.SECONDS", 0.05)
    begun = time.monotonic()
    assert on_deep_stack(lambda: time.sleep(3)) is None
    assert time.monotonic() - begun < 2
    assert on_deep_stack(lambda: 7) == 7


def test_rules_that_become_too_hard_end_their_row_alone() -> None:
    doubling = "".join(f"r{i}: r{i + 1} r{i + 1}\n" for i in range(200))
    hard = Request("hard", (1, 2), grammar=Grammar("lark", f'start: "x" | "y" r0\n{doubling}r200: "a"'))
    asked = [Request(f"r{i}", (i, 2), Sampling(100, 1.0), Grammar("regex", PATTERNS[0])) for i in range(3)]
    hards = [replace(hard, id=f"hard{i}", sampling=Sampling(temperature=1.0, seed=i)) for i in range(4)]
    done = run(engine(), [*hards, *asked])
    errors = [error for request in hards if (error := done[request.id].error)]
    assert errors
    assert all(error.startswith("the grammar (lark) is too hard: ") for error in errors)
    for request in asked:
        assert_obeyed(done[request.id], by_pattern(PATTERNS[0]))


def test_json_within_rules_has_little_whitespace() -> None:
    rules = 'start: "%json {}" "/" %json {"type": "array", "items": {"type": "null"}, "minItems": 2, "maxItems": 2}'
    asked = [
        replace(request, grammar=Grammar("lark", rules)) for request in requests(8, max_tokens=300, temperature=2.0)
    ]
    for completion in run(engine(), asked).values():
        assert completion.finish_reason == "stop"
        assert completion.text.startswith("%json {}/")
        assert json.loads(completion.text[9:]) == [None, None]
