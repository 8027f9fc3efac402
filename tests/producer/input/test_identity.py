"""Ids of batches: those of before stay as they are, and whatever changes an answer makes another one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import orjson
import pytest

from draftmill.producer.input.dataset import Dataset
from draftmill.producer.input.defaults import Defaults
from draftmill.producer.queue.wire import Grammar

USER = {"role": "user", "content": "x"}
SCHEMA = {"type": "json_schema", "json_schema": {"schema": {"type": "object"}}}

OF_BEFORE: list[tuple[dict[str, Any], str]] = [
    ({"prompt": "Hi", "max_tokens": 7, "stop": ".", "top_k": 5, "seed": 3}, "batch_81f67438c953ef28b06173d4"),
    (
        {
            "id": 12,
            "messages": [{"role": "system", "content": "S"}, {"role": "user", "content": "U"}],
            "temperature": 0.5,
        },
        "batch_9289db3a5567002140ec71fc",
    ),
    (
        {"custom_id": "c", "url": "/v1/completions", "body": {"prompt": "Once", "top_p": 0.9}},
        "batch_9dc4032d1b8222c2ac319168",
    ),
    (
        {
            "custom_id": "d",
            "body": {
                "messages": [USER, {"role": "assistant", "content": "y"}],
                "n": 1,
                "max_completion_tokens": 4,
            },
        },
        "batch_e6faf2afbde1b029e8eeae05",
    ),
    ({"prompt": "é", "response_format": SCHEMA}, "batch_d4be055664085cc51d504a60"),
]
"""Lines with the ids that the first versions gave them."""


def batch(path: Path, line: dict[str, Any], defaults: Defaults | None = None) -> str:
    path.write_bytes(orjson.dumps(line))
    return Dataset(str(path), "small", defaults or Defaults()).survey().content


@pytest.mark.parametrize(("line", "id"), OF_BEFORE, ids=lambda given: str(given)[:20])
def test_lines_have_the_ids_that_they_always_had(line: dict[str, Any], id: str, tmp_path: Path) -> None:
    assert batch(tmp_path / "x.jsonl", line) == id


def test_whatever_changes_an_answer_makes_another_batch(tmp_path: Path) -> None:
    asked: list[dict[str, Any]] = [
        {}, {"min_p": 0.1}, {"repetition_penalty": 1.1}, {"presence_penalty": 1}, {"frequency_penalty": 1},
        {"logit_bias": {"5": 1}}, {"stop_token_ids": [5]}, {"ignore_eos": True}, {"min_tokens": 5},
        {"bad_words": ["a"]}, {"allowed_token_ids": [5]},
        {"include_stop_str_in_output": True}, {"n": 2}, {"logprobs": True},
        {"logprobs": True, "top_logprobs": 2}, {"enable_thinking": False}, {"enable_thinking": True},
        {"reasoning_effort": "low"}, {"thinking_budget": 5}, {"control_tokens": True}, {"guided_regex": "a"},
        {"guided_choice": ["a"]}, {"guided_grammar": "a"}, {"guided_json": {}}, {"add_generation_prompt": False},
        {"tools": [{"type": "function", "function": {"name": "f"}}]},
        {"messages": [USER | {"name": "ann"}]}, {"messages": [USER, {"role": "assistant", "content": "a"}]},
    ]  # fmt: skip
    path = tmp_path / "x.jsonl"
    lines = [{"messages": [USER]} | fields for fields in asked]
    assert len({batch(path, line) for line in lines}) == len(lines)
    prompts: list[Any] = ["1 2", ["1 2"], ["1", "2"], [1, 2], [[1], [2]]]
    texts = [{"custom_id": "a", "url": "/v1/completions", "body": {"prompt": prompt}} for prompt in prompts]
    echo = {"custom_id": "a", "url": "/v1/completions", "body": {"prompt": "1 2", "echo": True}}
    assert len({batch(path, line) for line in (*texts, echo)}) == len(prompts)  # one in a list is one
    defaults = [
        Defaults(),
        Defaults({"min_p": 0.1}),
        Defaults({"logprobs": 0}),
        Defaults(n=2),
        Defaults(template={"enable_thinking": False}),
        Defaults(grammar=Grammar(kind="regex", text="a")),
        Defaults(trusted=True),
        Defaults(model_defaults=True),
        Defaults({"temperature": 0.0}, model_defaults=True),
    ]
    assert len({batch(path, lines[0], each) for each in defaults}) == len(defaults)
    assert batch(path, lines[0], Defaults(drafts=())) == batch(path, lines[0])  # the text does not depend on it
