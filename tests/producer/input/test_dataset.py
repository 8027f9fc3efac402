"""Datasets: both forms of a line, every fault of a line, and a batch's identity."""

from __future__ import annotations

import math
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from draftmill.producer.input.dataset import BadLine, Dataset
from draftmill.producer.input.defaults import Defaults
from draftmill.producer.input.lines import CHAT, TEXT
from draftmill.producer.input.request.faults import Fault
from draftmill.producer.input.request.fields import FIELDS
from draftmill.producer.input.request.sampling import sampling
from draftmill.producer.queue.errors import UserError
from draftmill.producer.queue.wire import JobBody, Message, Sampling

PAIR = "small"


def read(*lines: bytes | dict[str, Any], defaults: Defaults | None = None) -> list[JobBody | BadLine]:
    return list(dataset(*lines, defaults=defaults))


def dataset(*lines: bytes | dict[str, Any], defaults: Defaults | None = None) -> Dataset:
    with tempfile.NamedTemporaryFile() as file:
        file.write(b"\n".join(line if isinstance(line, bytes) else orjson.dumps(line) for line in lines))
        file.flush()
        return Dataset(file.name, PAIR, defaults or Defaults())


def job(line: dict[str, Any], **defaults: Any) -> JobBody:
    (item,) = read(line, defaults=Defaults(**defaults))
    assert isinstance(item, JobBody), item
    return item


def test_short_lines_are_chats() -> None:
    first, second = read(
        {"prompt": "Hi", "max_tokens": 7, "stop": "."},
        {"id": 12, "messages": [{"role": "system", "content": "S"}, {"role": "user", "content": "U"}]},
    )
    assert first == JobBody(
        batch="",
        custom_id="line-1",
        pair=PAIR,
        messages=(Message(role="user", content="Hi"),),
        sampling=Sampling(max_tokens=7, stop=(".",)),
        line=1,
    )
    assert isinstance(second, JobBody)
    assert (second.custom_id, second.line) == ("12", 2)
    assert second.messages == (Message(role="system", content="S"), Message(role="user", content="U"))


def test_whole_numbers_may_be_written_with_a_point() -> None:
    sampling = job({"prompt": "a", "max_tokens": 3.0, "top_k": 4.0, "seed": 5.0}).sampling
    assert sampling == Sampling(max_tokens=3, top_k=4, seed=5)


def test_openai_lines() -> None:
    parts = [{"type": "text", "text": "one "}, {"type": "text", "text": "two"}]
    body = {
        "model": "gpt-4o-mini",
        "messages": [{"role": "developer", "content": "D"}, {"role": "user", "content": parts}],
        "max_completion_tokens": 9,
        "temperature": 1,
        "n": 1,
        "stream": False,
        "logit_bias": None,
        "user": "me",
    }
    chat = {"custom_id": "a", "method": "POST", "url": "/v1/chat/completions", "body": body}
    text = {
        "custom_id": "b",
        "method": "POST",
        "url": "/v1/completions",
        "body": {"prompt": "Once", "seed": 3},
    }
    data = dataset(chat, text)
    first, second = data
    assert isinstance(first, JobBody)
    assert first.messages == (Message(role="system", content="D"), Message(role="user", content="one two"))
    assert first.sampling == Sampling(max_tokens=9, temperature=1.0)
    assert isinstance(second, JobBody)
    assert (second.prompts, second.messages, second.sampling.seed) == (("Once",), None, 3)
    note = 'model "gpt-4o-mini" is ignored: the pair is small'
    assert dict(data.notes) == {note: 1}


def test_defaults_apply_where_a_line_says_nothing() -> None:
    sampling = {"max_tokens": 5, "temperature": 0.5}
    body = job({"prompt": "x", "temperature": 0}, sampling=sampling, system="S")
    assert body.sampling == Sampling(max_tokens=5, temperature=0.0)
    assert body.messages == (Message(role="system", content="S"), Message(role="user", content="x"))
    own = job({"messages": [{"role": "system", "content": "own"}, {"role": "user", "content": "x"}]}, system="S")
    assert own.messages
    assert own.messages[0].content == "own"


def test_empty_lines_and_a_bom_are_skipped_and_counted() -> None:
    items = read(b'\xef\xbb\xbf{"prompt": "a"}', b"", b"  \r", b'{"prompt": "b"}\r')
    assert [item.line for item in items if isinstance(item, JobBody)] == [1, 4]


FAULTS: list[tuple[bytes, str]] = [
    (b'{"prompt": }', "not JSON: unexpected character, expected a JSON value at column 12"),
    (b'{"prompt": "caf\xe9"}', "not UTF-8: byte 0xe9 at column 16"),
    (b"[1]", "a list instead of a JSON object"),
    (b'{"id": "a"}', "has no prompt (nor messages)"),
    (b'{"prompt": ""}', "prompt is empty"),
    (b'{"prompt": 3}', "prompt is a number instead of one text"),
    (b'{"prompt": "x", "messages": []}', "has both prompt and messages; keep one"),
    (b'{"messages": []}', "messages must be a list that is not empty"),
    (b'{"messages": [{"content": "x"}]}', "message 1: role is missing"),
    (b'{"messages": [{"role": "user"}]}', "message 1 has no content"),
    (
        b'{"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}',
        'message 1: content of type "image_url" is not supported, only text is',
    ),
    (b'{"prompt": "x", "max_tokens": -5}', "max_tokens is -5; it must be at least 1"),
    (b'{"prompt": "x", "max_tokens": 1.5}', "max_tokens is 1.5; it must be a whole number"),
    (b'{"prompt": "x", "max_tokens": 1000000001}', "max_tokens is 1000000001; it must be at most 1000000"),
    (b'{"prompt": "x", "temperature": 9}', "temperature is 9; it must be at most 2"),
    (b'{"prompt": "x", "temperature": "hot"}', 'temperature is "hot"; it must be a number'),
    (b'{"prompt": "x", "top_p": 0}', "top_p is 0; it must be more than 0"),
    (
        b'{"prompt": "x", "temperature": 0.8, "top_k": 9223372036854775808}',
        "top_k is 9223372036854775808; it must be at most 2147483647",
    ),
    (b'{"prompt": "x", "top_k": 2147483648}', "top_k is 2147483648; it must be at most 2147483647"),
    (
        b'{"prompt": "x", "seed": 9223372036854775808}',
        "seed is 9223372036854775808; it must be less than 9223372036854775808",
    ),
    (b'{"prompt": "x", "stop": 7}', "stop is 7; it must be a text or a list of texts"),
    (
        b'{"prompt": "x", "response_format": {"type": "xml"}}',
        'response_format.type is "xml"; it must be "json_schema", "json_object", "regex", "grammar" or "text"',
    ),
    (
        b'{"prompt": "x", "response_format": "json"}',
        'response_format is "json"; it must be an object with a type',
    ),
    (
        b'{"prompt": "x", "response_format": {"type": "json_schema", "schema": {}}}',
        "response_format has no json_schema.schema",
    ),
    (
        b'{"prompt": "x", "response_format": {"type": "json_schema", "json_schema": {"schema": [1]}}}',
        "response_format.json_schema.schema is a list instead of a JSON schema, an object",
    ),
    (
        b'{"prompt": "x", "response_format": {"type": "json_schema", "json_schema": {"schema": {"const": "'
        + b"x" * 2**17
        + b'"}}}}',
        "response_format.json_schema.schema has 131,084 characters; at most 131,072 are allowed",
    ),
    (b'{"prompt": "x", "n": 0}', "n is 0; it must be at least 1"),
    (b'{"prompt": "x", "stream": true}', "stream = true is not supported; answers come whole; remove it"),
    (b'{"prompt": "x", "presence_penalty": 2.5}', "presence_penalty is 2.5; it must be at most 2"),
    (b'{"body": {"prompt": "x"}}', "custom_id is missing"),
    (b'{"custom_id": "a", "body": 3}', "body is a number instead of a JSON object"),
    (
        b'{"custom_id": "a", "url": "/v1/embeddings", "body": {}}',
        'url is "/v1/embeddings"; only /v1/chat/completions and /v1/completions are served',
    ),
    (b'{"custom_id": "a", "method": "GET", "body": {}}', 'method is "GET"; only POST is served'),
]


@pytest.mark.parametrize(("line", "reason"), FAULTS, ids=[reason[:30] for _, reason in FAULTS])
def test_a_fault_is_named_and_harms_no_other_line(line: bytes, reason: str) -> None:
    before, bad, after = read({"prompt": "a"}, line, {"prompt": "b"})
    assert isinstance(before, JobBody)
    assert isinstance(after, JobBody)
    assert isinstance(bad, BadLine)
    assert str(bad) == f"line 2: {reason}"


def test_fields_that_would_change_the_text_are_noted_before_all_others() -> None:
    unserved = {"xtc_probability": 0.4, "documents": [{"text": "a"}], "regex": "a+"}
    columns = {f"column {n}": n for n in range(7)}
    data = dataset({"prompt": "a", "model": "m", **columns, **unserved}, {"prompt": "b", **columns})
    shown = list(data.survey().notes.lines())
    assert sorted(shown[:3]) == [
        'field "documents" is not supported and ignored; it would change the text (1 line)',
        'field "regex" is taken for a column and ignored; as a parameter write guided_regex (1 line)',
        'field "xtc_probability" is not supported and ignored; it would change the text (1 line)',
    ]
    assert shown[3:5] == [
        'model "m" is ignored: the pair is small (1 line)',
        'field "column 0" is unknown and ignored (2 lines)',
    ]
    assert shown[9:] == ["2 more fields are unknown and ignored"]
    harmless = {"xtc_probability": 0, "chat_template_kwargs": {}, "documents": [], "use_beam_search": None}
    assert not list(dataset({"prompt": "a", **harmless}).survey().notes)


def test_a_server_has_chosen_the_pair_by_the_model_and_no_columns() -> None:
    data = dataset({"prompt": "a", "model": "an alias", "colour": 1}, defaults=Defaults(served=True))
    assert list(data.survey().notes.lines()) == ['field "colour" is unknown and ignored (1 line)']
    (item,) = read({"prompt": "a", "xtc_probability": 0.4}, defaults=Defaults(served=True))
    assert str(item) == "line 1: xtc_probability = 0.4 is not supported; remove it"


def test_numbers_that_float32_cannot_tell_from_0_are_used_as_what_they_mean() -> None:
    for cold in (5e-324, 1e-38, 1e-6, 0):
        assert job({"prompt": "a", "temperature": cold}).sampling.temperature == 0
    assert job({"prompt": "a", "temperature": 1e-5}).sampling.temperature == 1e-5
    for narrow in (5e-324, 1e-46, 1e-6):
        assert job({"prompt": "a", "temperature": 1, "top_p": narrow}).sampling.top_p == 1e-6
    assert job({"prompt": "a", "top_p": 1e-5}).sampling.top_p == 1e-5
    assert job({"prompt": "a"}, sampling={"top_k": 2**31 - 1, "seed": 2**63 - 1}).sampling.top_k == 2**31 - 1


@pytest.mark.parametrize("name", ["temperature", "top_p", "max_seconds"])
@pytest.mark.parametrize("value", [math.inf, math.nan])
def test_numbers_are_finite(name: str, value: float) -> None:
    with pytest.raises(Fault, match=f"{name} is {value}; it must be"):
        sampling({name: value}, {})


def test_a_custom_id_is_used_once() -> None:
    first, second = read({"id": "a", "prompt": "x"}, {"id": "a", "prompt": "y"})
    assert isinstance(first, JobBody)
    assert second == BadLine(2, "custom_id 'a' was already used by an earlier line", "a")


@given(st.text(min_size=1))
@settings(max_examples=300, deadline=None)
def test_any_text_survives_the_whole_way(text: str) -> None:
    body = job({"id": text, "prompt": text})
    again = JobBody.model_validate(orjson.loads(orjson.dumps(body.model_dump(mode="json", exclude_none=True))))
    assert again == body
    assert again.custom_id == text
    assert again.messages == (Message(role="user", content=text),)


@given(st.binary())
@settings(max_examples=300, deadline=None)
def test_no_bytes_are_a_surprise(content: bytes) -> None:
    with suppress(UserError):  # what begins as a compressed file does must be one
        assert all(isinstance(item, JobBody | BadLine) for item in read(content))


LEAF = st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats(allow_nan=False) | st.text()
JSON = st.recursive(
    LEAF,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=7), inner, max_size=3),
)
NAMES = st.sampled_from(["prompt", "messages", "body", "stop", "n", "seed", "id"])
FIELD = st.sampled_from(sorted(FIELDS))


@given(st.dictionaries(NAMES | FIELD, JSON), st.dictionaries(FIELD, JSON), st.sampled_from([CHAT, TEXT]))
@settings(max_examples=300, deadline=None)
def test_no_json_is_a_surprise(line: dict[str, Any], fields: dict[str, Any], url: str) -> None:
    prompt: dict[str, Any] = {"messages": [{"role": "user", "content": "a"}]} if url == CHAT else {"prompt": "a"}
    whole = {"custom_id": "a", "url": url, "body": fields | prompt}
    for asked in (line, line | {"prompt": "a"}, whole):
        (item,) = read(asked)
        assert isinstance(item, JobBody | BadLine)


def test_a_batch_is_its_jobs_and_pair() -> None:
    lines: list[bytes | dict[str, Any]] = [{"prompt": "a"}, {"id": "b", "prompt": "b"}]
    id = dataset(*lines).survey().content
    assert id.startswith("batch_")
    assert len(id) == len("batch_") + 24
    assert dataset(*lines).survey().content == id
    assert dataset(*lines, b"not a job").survey().content == id
    assert dataset(lines[0], b' {"prompt" : "b", "id": "b"} ').survey().content == id
    assert dataset(*lines, defaults=Defaults({"max_tokens": 5})).survey().content != id
    assert dataset(lines[0]).survey().content != id


def test_a_survey_counts() -> None:
    survey = dataset({"prompt": "a"}, b"x", {"prompt": "b", "colour": 1}, b"y").survey()
    assert (survey.good, survey.bad) == (2, 2)
    assert survey.first_bad
    assert survey.first_bad.number == 2
    assert dict(survey.notes) == {'field "colour" is unknown and ignored': 1}


@pytest.mark.parametrize("content", [b"", b"\n\n", b"not json\n"])
def test_a_file_without_a_usable_line_is_refused(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"x\.jsonl (is empty|has no usable line)"):
        Dataset(str(path), PAIR, Defaults()).survey()


def test_batches_lines_and_names_have_a_largest_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("draftmill.producer.input.dataset.MOST_LINES", 2)
    monkeypatch.setattr("draftmill.producer.input.sources.MOST_BODY_BYTES", 1000)
    short, long = b'{"prompt": "a"}', b'{"prompt": "' + b"x" * 3000 + b'"}'
    with pytest.raises(UserError, match="has more than 2 lines, the most of a batch; split the file"):
        dataset(short, short, short).survey()
    first, second, third = read(short, long, {"id": "i" * 513, "prompt": "a"})
    assert isinstance(first, JobBody)
    assert str(second) == "line 2: longer than 1,000 bytes"
    assert str(third) == "line 3: id has 513 characters; at most 512 are allowed"


def test_how_long_a_line_may_take_is_no_part_of_a_batch_s_identity() -> None:
    line = {"prompt": "a", "max_tokens": 3}
    assert dataset(line).survey().content == dataset(line | {"max_seconds": 5}).survey().content
    assert job(line, sampling={"max_seconds": 2.5}).sampling.max_seconds == 2.5
    (bad,) = read(line | {"max_seconds": 0})
    assert str(bad) == "line 1: max_seconds is 0; it must be more than 0"
