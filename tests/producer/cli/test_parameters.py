"""Options of `run`, `submit` and `cron` that say what requests mean: they reach the jobs, their ids and notes."""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args

import orjson
import pytest
import redis as redis_py

from draftmill.engine.request import SOURCES
from draftmill.producer.cli.cron import check_arguments, plan_arguments
from draftmill.producer.client import client as python
from draftmill.producer.client.submission import Submission
from draftmill.producer.input import parameters
from draftmill.producer.queue.errors import UserError
from draftmill.producer.queue.wire import DraftSource, Grammar, JobBody, Sampling
from tests.producer.conftest import Shell
from tests.redis_server import RedisServer


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "in.jsonl").write_text('{"prompt": "hi"}\n')
    return tmp_path


def submission(*options: str) -> Submission:
    return plan_arguments("ann", ("in.jsonl", *options), "slot").submission


def job(*options: str) -> JobBody:
    (body,) = submission(*options).dataset
    assert isinstance(body, JobBody), body
    return body


OPTIONS: list[tuple[tuple[str, ...], dict[str, Any]]] = [
    (("--min-p", "0.1"), {"sampling": Sampling(min_p=0.1)}),
    (("--repetition-penalty", "1.2"), {"sampling": Sampling(repetition_penalty=1.2)}),
    (("--presence-penalty", "-2"), {"sampling": Sampling(presence_penalty=-2)}),
    (("--frequency-penalty", "0.5"), {"sampling": Sampling(frequency_penalty=0.5)}),
    (("--thinking-budget", "9"), {"sampling": Sampling(thinking_budget=9)}),
    (("--logprobs", "3"), {"sampling": Sampling(logprobs=3)}),
    (("--n", "2"), {"n": 2}),
    (("--thinking",), {"template": {"enable_thinking": True}}),
    (("--no-thinking",), {"template": {"enable_thinking": False}}),
    (("--reasoning-effort", "low"), {"template": {"reasoning_effort": "low"}}),
    (("--chat-template-kwargs", '{"x": [1]}'), {"template": {"x": [1]}}),
    (("--control-tokens",), {"trusted": True}),
    (("--regex", "a+"), {"grammar": Grammar(kind="regex", text="a+")}),
    (("--choice", "yes", "--choice", "@no"), {"grammar": Grammar(kind="choice", text='["yes","@no"]')}),
    (("--grammar", 'start: "a"'), {"grammar": Grammar(kind="lark", text='start: "a"')}),
    (
        ("--model-defaults", "--top-k", "5"),
        {"sampling": Sampling(top_k=5), "model_defaults": ("temperature", "top_p", "min_p", "repetition_penalty")},
    ),
]


ABOUT_SPEED: list[tuple[tuple[str, ...], dict[str, Any]]] = [
    (("--drafts", "lookup, dflash"), {"drafts": ("dflash", "lookup")}),
    (("--drafts", "none"), {"drafts": ()}),
]


@pytest.mark.parametrize(("options", "expected"), [*OPTIONS, *ABOUT_SPEED], ids=lambda given: str(given)[:30])
def test_each_option_reaches_the_jobs(options: tuple[str, ...], expected: dict[str, Any]) -> None:
    check_arguments(("in.jsonl", *options))
    assert job(*options) == job().model_copy(update=expected)


def test_options_have_the_off_values_of_lines() -> None:
    for option in ("--top-k", "--seed", "--thinking-budget"):
        assert job(option, "-1") == job()
        assert submission(option, "-1").info.id == submission().info.id
        with pytest.raises(UserError, match="-2 is not in the range"):
            check_arguments(("in.jsonl", option, "-2"))
    assert (
        job("--model-defaults", "--top-k", "-1").model_defaults
        == job("--model-defaults", "--top-k", "0").model_defaults
    )


def test_each_option_makes_another_batch_and_is_known_by_its_name() -> None:
    plain = submission().info
    batches = [submission(*options).info for options, _ in OPTIONS]
    assert len({plain.id, *(batch.id for batch in batches)}) == len(OPTIONS) + 1
    for (options, _), batch in zip(OPTIONS, batches, strict=True):
        assert options[0].replace("--no-", "--") in parameters.changes(plain.parameters, batch.parameters)


def test_options_about_speed_do_not() -> None:
    assert {submission(*options).info.id for options, _ in ABOUT_SPEED} == {submission().info.id}


def test_files_hold_expressions_grammars_and_objects(here: Path) -> None:
    for name, text in (("r", "\ufeffa+\n"), ("g", 'start: "a"\n'), ("k", '{"x": 1}')):
        (here / name).write_text(text)
    assert job("--regex", "@r").grammar == Grammar(kind="regex", text="a+")
    assert job("--grammar", "@g").grammar == Grammar(kind="lark", text='start: "a"')
    assert job("--chat-template-kwargs", "@k").template == {"x": 1}


@pytest.mark.parametrize(
    ("options", "why"),
    [
        (
            ("--drafts", "ngram"),
            "Invalid value for '--drafts': 'ngram' is no source of drafts: name some of dflash, mtp, lookup, or none",
        ),
        (("--regex", "a", "--choice", "b"), "--regex contradicts --choice; keep one"),
        (("--chat-template-kwargs", "{"), "--chat-template-kwargs is not JSON: unexpected end of data at column 2"),
        (("--chat-template-kwargs", "[]"), "--chat-template-kwargs is a list instead of an object"),
        (
            ("--no-thinking", "--reasoning-effort", "high"),
            '--no-thinking is given and --reasoning-effort is "high"; keep one',
        ),
        (
            ("--thinking", "--chat-template-kwargs", '{"thinking": false}'),
            "--thinking is given and --chat-template-kwargs.thinking is false; keep one",
        ),
        (
            ("--chat-template-kwargs", '{"enable_thinking": true}', "--no-thinking"),
            "--chat-template-kwargs.enable_thinking is true and --no-thinking is given; keep one",
        ),
        (
            ("--chat-template-kwargs", '{"tools": []}'),
            "--chat-template-kwargs.tools is not supported; make it a field of the request",
        ),
        (("--top-k", str(2**40)), f"--top-k is {2**40}; it must be at most "),
        (("--grammar", "@none"), "cannot read 'none'"),
        (("--regex", ""), "--regex is empty; remove it"),
    ],
)
def test_what_is_wrong_is_said(options: tuple[str, ...], why: str) -> None:
    with pytest.raises(UserError, match=f"^{why.replace('{', '.')}"):
        job(*options)


def test_a_schedule_reads_files_of_its_folder_only() -> None:
    for option in ("--regex", "--grammar", "--chat-template-kwargs"):
        with pytest.raises(UserError, match=f"{option} @ '/etc/passwd' must be a path relative to"):
            check_arguments(("in.jsonl", option, "@/etc/passwd"))


def test_python_has_the_same_names() -> None:
    names = {"min_p", "repetition_penalty", "presence_penalty", "frequency_penalty", "n", "logprobs", "thinking"}
    names |= {"thinking_budget", "reasoning_effort", "chat_template_kwargs", "control_tokens", "model_defaults"}
    names |= {"drafts", "regex", "choice", "grammar", "schema"}
    assert names <= python.Options.__annotations__.keys()


def test_notes_reach_reports_and_programs(shell: Shell, redis: redis_py.Redis, redis_server: RedisServer) -> None:
    shell.environment["REDIS_URL"] = redis_server.url
    line = {"prompt": "hi", "regex": "a+", **{f"column {n}": n for n in range(7)}}
    shell.write("in.jsonl", orjson.dumps(line))
    done = shell("submit", "in.jsonl", "--json")
    notes = orjson.loads(done.stdout)["notes"]
    assert notes[0] == 'field "regex" is taken for a column and ignored; as a parameter write guided_regex (1 line)'
    assert notes[-1] == "2 more fields are unknown and ignored"
    assert [f"Note: {note}" for note in notes] == done.stderr.splitlines()[: len(notes)]
    with python.Client(redis_server.url) as client:
        with pytest.raises(UserError, match=r"^chat_template_kwargs is a list instead of an object"):
            client.submit([line], chat_template_kwargs=[1])  # pyright: ignore[reportArgumentType]
        with pytest.raises(UserError, match=r"^choice is \[\]; it must be a list of texts that are not empty"):
            client.submit([line], choice=())
        with pytest.raises(UserError, match=r"^thinking is false and reasoning_effort is \"low\"; keep one"):
            client.submit([line], thinking=False, reasoning_effort="low")
        batch = client.submit([line], thinking=False, choice=["yes", "no"], n=2)
        same = "the n answers are all the same, because the temperature is 0 (1 line)"
        assert batch.notes == (notes[0], same, *notes[1:])


def test_sources_of_drafts_are_the_engine_s() -> None:
    assert get_args(DraftSource) == SOURCES
