"""The model of a line: which pair it makes, what is told, and that ids of batches stay."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import orjson
import pytest

from draftmill.producer.input.dataset import Dataset, Survey
from draftmill.producer.input.defaults import defaults
from draftmill.producer.input.request.faults import Fault
from draftmill.producer.queue.wire import JobBody


def read(path: Path, pair: str, *models: Any, **given: Any) -> tuple[list[str], Survey]:
    """The pairs of lines that name these models, and what their survey learns."""
    path.write_bytes(b"\n".join(orjson.dumps({"prompt": "Hi", "model": model}) for model in models))
    dataset = Dataset(str(path), pair, defaults(given, {"models": "--models"}))
    survey = dataset.survey()
    return [item.pair for item in dataset if isinstance(item, JobBody)], survey


def test_known_pairs_and_named_models_run_where_they_say(tmp_path: Path) -> None:
    named = ["Qwen3-8B", None, "gpt-4o", "/models/mine", "small", "gpt-4o-mini", 7, "qwen3-4b"]
    models = ("gpt-4o=Qwen3-8B,/models/mine", "qwen3-4b=small, unused=qwen3-4b")
    pairs, survey = read(tmp_path / "x.jsonl", "small", *named, models=models)
    assert pairs == ["qwen3-8b", "small", "qwen3-8b", "/models/mine", "small", "small", "small", "small"]
    assert survey.pairs == ["qwen3-8b", "small", "/models/mine"]
    assert sorted(survey.notes.lines()) == [
        'model "Qwen3-8B" is a pair and runs these lines, instead of small (1 line)',
        'model "gpt-4o-mini" is ignored: the pair is small (1 line)',
        "model 7 is ignored: the pair is small (1 line)",
        'no line names the model "unused"',
    ]


def test_names_of_other_servers_change_nothing(tmp_path: Path) -> None:
    """Also what a pair may be called: files for other servers name models of the hub."""
    plain = read(tmp_path / "x.jsonl", "small", None, None)
    others = read(tmp_path / "x.jsonl", "small", "Qwen/Qwen3-8B", "/models/mine")
    assert others[0] == plain[0] == ["small", "small"]
    assert others[1].identity == plain[1].identity


def test_the_same_work_is_the_same_batch_however_its_pair_is_said(tmp_path: Path) -> None:
    said = [
        read(tmp_path / "x.jsonl", "qwen3-4b", None, None),
        read(tmp_path / "x.jsonl", "small", "qwen3-4b", "Qwen3-4B"),
        read(tmp_path / "x.jsonl", "small", "a", "b", models={"a": "qwen3-4b", "b": "qwen3-4b"}),
    ]
    assert {survey.identity for _, survey in said} == {said[0][1].identity}
    assert read(tmp_path / "x.jsonl", "qwen3-4b", None, "small")[1].identity == said[0][1].identity
    mixed = read(tmp_path / "x.jsonl", "qwen3-4b", None, "small", models=("small",))
    assert mixed[1].identity != said[0][1].identity


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (("a=b,a=c",), '--models gives "a" two pairs, b and c; keep one'),
        (("a=",), '--models gives "a" the pair ""; write it as NAME=PAIR, or as PAIR alone'),
        (("a,,b",), '--models gives "" the pair ""; write it as NAME=PAIR, or as PAIR alone'),
        ({"a": 7}, '--models gives "a" the pair 7; write it as NAME=PAIR, or as PAIR alone'),
    ],
)
def test_what_names_no_pair_is_refused(given: Any, told: str) -> None:
    with pytest.raises(Fault) as fault:
        defaults({"models": given}, {"models": "--models"})
    assert str(fault.value) == told
