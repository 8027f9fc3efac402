"""Which rows are run and what is made of them; and what a template may not do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import orjson
import pytest

from draftmill.producer.input.dataset import BadLine, Dataset
from draftmill.producer.input.defaults import Defaults
from draftmill.producer.input.rows import RowOptions
from draftmill.producer.queue.errors import UserError
from draftmill.producer.queue.wire import JobBody, Message, Sampling
from tests.producer.conftest import ROOT

PAIR = "small"
ROWS = [{"id": f"r{n}", "text": f"text {n}", "stars": n % 5, "tags": ["a", "b"], "no": None} for n in range(100)]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "x.jsonl"
    path.write_bytes(b"".join(orjson.dumps(row) + b"\n" for row in ROWS))
    return path


def read(path: Path, system: str | None = None, **options: Any) -> list[JobBody | BadLine]:
    return list(Dataset(str(path), PAIR, Defaults(system=system), RowOptions(**options)))


def ids(items: list[JobBody | BadLine]) -> list[str | None]:
    assert all(isinstance(item, JobBody) for item in items), items[:3]
    return [item.custom_id for item in items]


def test_a_template_makes_the_prompt_and_a_row_is_data(path: Path) -> None:
    first = read(
        path, "Rate from {{ stars }}", template="Say {{ text | upper }}: {{ tags | join(', ') }}", keep=("stars",)
    )[0]
    assert isinstance(first, JobBody)
    assert first.custom_id == "r0"
    assert first.messages == (
        Message(role="system", content="Rate from 0"),
        Message(role="user", content="Say TEXT 0: a, b"),
    )
    assert first.keep == {"stars": 0}


def test_rows_are_chosen(path: Path) -> None:
    options = {"template": "{{ text }}"}
    assert ids(read(path, **options, where="stars > 3 and text is string")) == [f"r{n}" for n in range(4, 100, 5)]
    assert ids(read(path, **options, where="stars > 3", limit=2)) == ["r4", "r9"]
    assert ids(read(path, **options, limit=3, id_column="text")) == ["text 0", "text 1", "text 2"]
    small, large = (ids(read(path, **options, where="stars > 1", sample=n)) for n in (5, 20))
    assert len(small) == 5
    assert len(large) == 20
    assert set(small) < set(large)
    assert small == ids(read(path, **options, where="stars > 1", sample=5))
    assert large == sorted(large, key=lambda id: int(str(id)[1:]))
    assert len(ids(read(path, **options, limit=10, sample=99))) == 10


def test_lines_that_are_prompts_already_may_be_chosen_named_and_kept(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    path.write_text('{"key": 7, "prompt": "a", "topic": {"x": [1]}}\n{"key": 8, "prompt": "b", "topic": null}\n')
    dataset = Dataset(str(path), PAIR, Defaults(), RowOptions(id_column="key", keep=("topic", "prompt")))
    first, second = dataset
    assert isinstance(first, JobBody)
    assert isinstance(second, JobBody)
    assert (first.custom_id, first.keep) == ("7", {"topic": {"x": [1]}, "prompt": "a"})
    assert (second.custom_id, second.keep) == ("8", {"topic": None, "prompt": "b"})
    assert not list(dataset.notes)


def test_parameters_in_a_csv_file_are_numbers(tmp_path: Path) -> None:
    path = tmp_path / "x.csv"
    path.write_text(
        "id,prompt,max_tokens,temperature,top_k,seed,stop,n,messages\n"
        "1,3,3,0.5,,7.0,5,1,\n"
        "2,Say two.,,,,,,,\n"
        '3,,,,,,,,"[{""role"": ""user"", ""content"": ""x""}]"\n'
        "4,x,,hot,,,,,\n"
        "5,x,1.5,,,,,,\n"
        "6,x,,,,,,0,\n"
    )
    first, second, third, *bad = Dataset(str(path), PAIR, Defaults({"top_k": 9}))
    assert isinstance(first, JobBody)
    assert first.messages == (Message(role="user", content="3"),)
    assert first.sampling == Sampling(max_tokens=3, temperature=0.5, top_k=9, seed=7, stop=("5",))
    assert isinstance(second, JobBody)
    assert second.sampling == Sampling(top_k=9)
    assert isinstance(third, JobBody)
    assert third.messages == (Message(role="user", content="x"),)
    assert [str(item) for item in bad] == [
        'line 5: temperature is "hot"; it must be a number',
        "line 6: max_tokens is 1.5; it must be a whole number",
        "line 7: n is 0; it must be at least 1",
    ]
    texts = list(Dataset(str(path), PAIR, Defaults(), RowOptions(template="{{ max_tokens }}.", keep=("temperature",))))
    assert isinstance(texts[0], JobBody)
    assert texts[0].messages == (Message(role="user", content="3."),)
    assert (texts[0].keep, texts[0].sampling) == ({"temperature": "0.5"}, Sampling())


def test_ids_of_batches_stay_as_they_were(path: Path) -> None:
    """The example prompts have had this id from the start; what a job keeps is a part of the id."""
    example = str(ROOT / "producer/examples/prompts.jsonl")
    assert Dataset(example, "smollm2-135m", Defaults()).survey().content == "batch_7eb96748b390f6298efd819b"

    def batch(**options: Any) -> str:
        return Dataset(str(path), PAIR, Defaults(), RowOptions(**options)).survey().content

    assert batch(template="{{ text }}") == batch(template="{{ row['text'] }}") == batch(template="{{text}}", where="1")
    assert len({batch(template="{{ text }}", keep=keep) for keep in ((), ("stars",), ("stars", "text"))}) == 3


FAULTY: list[tuple[str, str]] = [
    ("{{ txt }}", "template: 'txt' is undefined (columns: id, text, stars, tags, no)"),
    ("{{ row.txt }}", "template: 'dict object' has no attribute 'txt' (columns: id, text, stars, tags, no)"),
    ("{{ no }}", "template: a value is null; {{ name or '' }} allows for that"),
    ("{{ stars + text }}", "template: unsupported operand type(s) for +: 'int' and 'str'"),
    ("{{ 1 / stars }}", "template: division by zero"),
    ("{{ tags | map('upper') }}", "template: a value is a generator, not text"),
    ("{{ range }}", "template: a value is a function, not text"),
    ("{{ text.__class__ }}", "template: access to attribute '__class__' of 'str' object is unsafe."),
    ("{{ tags.append(1) }}", "template: access to attribute 'append' of 'list' object is unsafe."),
    ("{% include 'other' %}", "template: no loader for this environment specified"),
    (
        "{% for a in range(9999) %}{% for b in range(9999) %}{% endfor %}{% endfor %}",
        "template: takes more than 1,000,000",
    ),
    (
        "{% macro f() %}{% for x in [1, 2] recursive %}{{ loop([1, 2]) }}{% endfor %}{% endmacro %}{{ f() }}",
        "template: ",
    ),
    ("{% macro f() %}{{ f() }}{{ f() }}{% endmacro %}{{ f() }}", "template: maximum recursion depth exceeded"),
    ("{{ 'x' * 99999999 }}", "template: longer than 16,777,216 characters"),
    ("{{ [1] * 99999999 }}", "template: longer than 16,777,216 characters"),
    ("{{ 9 ** 9 ** 9 }}", "template: "),
    ("{% for x in range(999) %}{{ 'x' * 99999 }}{% endfor %}", "template: longer than 16,777,216 characters"),
    ("{{ '\\ud800' }}", "template: 'utf-8' codec can't encode character"),
    ("{{ '' }}", "prompt is empty"),
]


@pytest.mark.parametrize(("template", "reason"), FAULTY, ids=[template[:20] for template, _ in FAULTY])
def test_a_template_that_fails_fails_its_row(template: str, reason: str, path: Path) -> None:
    (item,) = read(path, template=template, limit=1)
    assert str(item).startswith(f"line 1: {reason}")
    assert "\n" not in str(item)


def test_a_column_may_be_missing_in_some_rows(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    path.write_text('{"a": "1"}\n{"b": "2"}\n{"a": 3}\n')
    assert [
        str(item) for item in read(path, template="{{ a }}", where="a", keep=("a",)) if isinstance(item, BadLine)
    ] == ["line 2: condition: 'a' is undefined (columns: b)"]
    assert [str(item) for item in read(path, template="x", keep=("a",)) if isinstance(item, BadLine)] == [
        "line 2: has no column 'a'; it has b"
    ]
    assert isinstance(read(path, template="{{ a | default('none') }}")[1], JobBody)


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"template": "{{ text }"}, "the template is malformed, line 1: unexpected '}'"),
    ({"template": "{{ text"}, "the template is malformed, line 1: unexpected end of template, expected '}}'"),
    ({"template": "{{ text | }}"}, "the template is malformed, line 1: expected a name, got '}}'"),
    ({"template": "a\n{% if text %}"}, "the template is malformed, line 2: Unexpected end of template"),
    ({"template": "{{ text | shout }}"}, "the template is malformed, line 1: No filter named 'shout'"),
    ({"template": "{{ tags | random }}"}, "the template is malformed, line 1: No filter named 'random'"),
    ({"template": "Say {text}"}, "the template has {text}; a column is written {{ text }}, as in Jinja2"),
    ({"template": "{{ text }}", "where": "stars >"}, "the condition is malformed, line 1: "),
    ({"template": "{{ text }}", "where": "{{ stars }}"}, "the condition is malformed, line 1: "),
    ({"template": "{{ text }}", "where": "stars > 9"}, "x.jsonl has no row for which 'stars > 9' holds"),
    ({"template": "{{ text }}", "where": "starz > 9"}, "no usable line; line 1: condition: 'starz' is undefined"),
    ({"template": "{{ text }}", "where": "text > 9"}, "(texts become numbers with | int or | float)"),
    ({"template": "{{ text }}", "id_column": "key"}, "x.jsonl has no usable line; line 1: has no column 'key'"),
    ({"template": "{{ text }}", "id_column": "no"}, "x.jsonl has no usable line; line 1: no is missing"),
    ({"template": "{{ text }}", "keep": ("key",)}, "line 1: has no column 'key'; it has id, text, stars, tags, no"),
    ({}, "x.jsonl has no usable line; line 1: has no prompt (nor messages); a line looks like"),
]


@pytest.mark.parametrize(("options", "message"), REFUSED, ids=[str(number) for number in range(len(REFUSED))])
def test_what_fits_no_row_is_one_error(options: dict[str, Any], message: str, path: Path) -> None:
    with pytest.raises(UserError) as caught:
        Dataset(str(path), PAIR, Defaults(), RowOptions(**options)).survey()
    assert message in str(caught.value)
    assert caught.value.exit_code == 2
