"""Datasets at URLs: fetched once for each version, resumed where a connection was cut, and never half of each."""

from __future__ import annotations

import os
import re
import threading
import time
from base64 import b64encode
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import orjson
import pytest
from hypothesis import given, settings

from draftmill.producer.input import fetch as fetching
from draftmill.producer.input.dataset import Dataset
from draftmill.producer.input.defaults import Defaults
from draftmill.producer.input.fetch import KEPT_SECONDS, fetch
from draftmill.producer.input.remote import name_of
from draftmill.producer.input.rows import RowOptions
from draftmill.producer.input.sources import open_source
from draftmill.producer.queue.errors import UserError
from tests.producer.file_server import Files, serving
from tests.producer.input.test_sources import FORMATS, ROWS
from tests.producer.queue.test_urls import MARKS, urls

LINES = b"".join(orjson.dumps({"id": str(n), "prompt": f"Say {n}"}) + b"\n" for n in range(3000))


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Files]:
    monkeypatch.setenv("DRAFTMILL_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(time, "sleep", lambda _: None)
    with serving() as files:
        yield files


def got(url: str) -> bytes:
    with fetch(url, lambda _: None) as file:
        return file.read()


@pytest.mark.parametrize("name", FORMATS)
def test_the_path_tells_the_format(name: str, files: Files) -> None:
    source = open_source(files.put(f"/data/{name}", FORMATS[name]()) + "?version=2.bin")
    rows = [row for _, row in source.rows()]
    assert rows == [row for _, row in source.rows()]
    assert [str(row["stars"]) for row in rows if isinstance(row, dict)] == [str(row["stars"]) for row in ROWS]


def test_a_version_is_fetched_once(files: Files) -> None:
    url = files.put("/x.jsonl", LINES)
    assert [got(url) for _ in range(3)] == [LINES] * 3
    assert [headers.get("if-none-match") is not None for headers in files.asked] == [False, True, True]
    files.put("/x.jsonl", LINES[:100])
    assert got(url) == LINES[:100]


def test_a_dataset_is_read_twice_from_one_version(files: Files) -> None:
    url = files.put("/x.jsonl", LINES)
    dataset = Dataset(url, "p", Defaults())
    survey = dataset.survey()
    files.put("/x.jsonl", LINES.replace(b"Say", b"Cry"))
    assert sum(len(chunk.jobs) for chunk in dataset.chunks(survey)) == 3000
    assert len(files.asked) == 1
    assert Dataset(url, "p", Defaults()).survey().identity != survey.identity


def test_a_cut_connection_goes_on_where_it_was(files: Files) -> None:
    url = files.put("/x.jsonl", LINES)
    files.cuts = [50_000, 1, 20_000]
    assert got(url) == LINES
    assert files.ranges == [None, "bytes=50000-", "bytes=50001-", "bytes=70001-"]


def test_a_server_may_not_know_the_size(files: Files) -> None:
    files.has_sizes = False
    told: list[str] = []
    with fetch(files.put("/x.jsonl", LINES), told.append) as file:
        assert file.read() == LINES
    assert told[-1] == f"fetching {files.url}/x.jsonl: 0.1 MB"


@pytest.mark.parametrize("lack", ["has_ranges", "has_versions"])
def test_a_poor_server_is_asked_from_the_start(lack: str, files: Files) -> None:
    setattr(files, lack, False)
    url = files.put("/x.jsonl", LINES)
    files.cuts = [50_000, 60_000]
    assert got(url) == LINES
    assert len(files.asked) == 3
    assert got(url) == LINES
    assert files.asked[3].get("range") is None


def test_what_changes_between_two_connections_is_fetched_anew(files: Files) -> None:
    url, other = files.put("/x.jsonl", LINES), LINES.replace(b"Say", b"Cry")
    files.cuts = [50_000]
    told: list[str] = []

    def tell(text: str) -> None:
        told.append(text)
        files.put("/x.jsonl", other)

    with fetch(url, tell) as file:
        assert file.read() == other
    assert told[-1] == f"fetching {url}: 0.1 MB of 0.1 MB"


def test_a_later_command_goes_on(files: Files) -> None:
    url = files.put("/x.jsonl", LINES)
    files.cuts = [50_000] + [0] * fetching.TRIES
    with pytest.raises(UserError, match=r"came no further than 0\.1 MB: the connection was cut; run the same command"):
        got(url)
    files.asked.clear()
    assert got(url) == LINES
    assert files.ranges == ["bytes=50000-"]


def test_a_server_that_is_busy_for_a_moment_is_asked_again(files: Files) -> None:
    url = files.put("/x.jsonl", LINES)
    files.cuts = [50_000]

    def tell(text: str) -> None:
        if text.startswith("fetching") and len(files.asked) == 1:
            files.codes[:] = [503, 429]

    with fetch(url, tell) as file:
        assert file.read() == LINES
    assert files.ranges == [None] + ["bytes=50000-"] * 3
    files.codes = [500, 503]
    assert got(url) == LINES
    files.codes = [503] * fetching.TRIES
    with pytest.raises(UserError, match=r"cannot read .*/y\.jsonl: the server answers HTTP 503; run the same command"):
        got(files.put("/y.jsonl", LINES))


@pytest.mark.parametrize("code", [206, 416])
def test_an_answer_to_what_was_not_asked_is_refused(files: Files, code: int) -> None:
    files.codes = [code] * 20
    with pytest.raises(UserError, match=f"the server answers HTTP {code}"):
        got(files.put("/x.jsonl", LINES))


def test_a_login_is_sent_and_not_shown(files: Files) -> None:
    url = files.put("/x.jsonl", LINES).replace("://", "://ann:s3cr3t%40@") + "?X-Amz-Signature=t0k3n"
    files.login = "Basic " + b64encode(b"ann:s3cr3t@").decode()
    dataset = Dataset(url, "p", Defaults())
    assert dataset.survey().good == 3000
    assert dataset.name == f"{files.url}/x.jsonl?***"
    assert got(url.replace("t0k3n", "other")) == LINES  # signed anew
    assert files.asked[1].get("if-none-match")
    files.login = "Basic none"
    with pytest.raises(UserError, match=r"/x\.jsonl\?\*\*\*: the server refuses it \(HTTP 401\)"):
        got(url)


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("{0}/none.jsonl", r"cannot read {0}/none\.jsonl: no such file \(HTTP 404\)"),
        ("http://127.0.0.1:1/x.jsonl", r"cannot read http://127\.0\.0\.1:1/x\.jsonl: connection refused"),
        ("https://127.0.0.1:{1}/x.jsonl", "x.jsonl: it does not speak TLS|the connection was cut"),
        ("http://none.invalid/x.jsonl", r"none\.invalid/x\.jsonl: unknown host name"),
        ("http://host:port/x", "the host or the port of a URL of http:// is wrong"),
        ("http:///x", "the host or the port of a URL of http:// is wrong"),
        ("ftp://ann:s3cr3t@host/x", r"draftmill reads no URL of ftp:// \(only https://, http://, s3://"),
        ("https://ann:s3#t0k3n@host/x", "write # / . as %23 %2F %3F"),
        ("s3://KEY:s3cr3t/@bucket/x", "of s3:// has a login; leave it out and set AWS_ACCESS_KEY_ID"),
        ("gs://bucket/*.jsonl", "of gs:// names several files; name one"),
    ],
)
def test_what_cannot_be_read_is_one_line(url: str, message: str, files: Files) -> None:
    port = files.url.rpartition(":")[2]
    with pytest.raises(UserError, match=message.format(files.url, port)) as caught:
        Dataset(url.format(files.url, port), "p", Defaults())
    assert caught.value.exit_code == 2
    assert not any(mark in str(caught.value) for mark in MARKS)


SCHEME = re.compile(r"^[a-z+]*:/{1,2}", re.IGNORECASE)  # which a URL may lack


@given(urls())
@settings(max_examples=200, deadline=None)
def test_no_password_is_in_a_name(url: str) -> None:
    try:
        told = name_of(f"https://{re.sub(SCHEME, '', url)}/x.jsonl")
    except UserError as error:
        told = error.message
    assert not any(mark in told for mark in MARKS), told


def test_damage_is_told_by_the_url(files: Files) -> None:
    url = files.put("/x.jsonl", b"rubbish\n") + "?token=t0k3n"
    with pytest.raises(UserError, match=rf"^{files.url}/x\.jsonl\?\*\*\* has no usable line; line 1: not JSON"):
        Dataset(url, "p", Defaults(), RowOptions()).survey()


def test_the_disk_keeps_some_room(files: Files, monkeypatch: pytest.MonkeyPatch) -> None:
    url = files.put("/x.jsonl", LINES)
    monkeypatch.setattr(fetching, "SPARE", 2**60)
    with pytest.raises(UserError, match=f"too little room for {url} .*make room, or set DRAFTMILL_CACHE"):
        got(url)


def test_copies_that_nobody_uses_go(files: Files, tmp_path: Path) -> None:
    old, new = files.put("/old.jsonl", LINES), files.put("/new.jsonl", LINES[:100])
    reader = fetch(old, lambda _: None)
    inputs = tmp_path / "cache/inputs"
    assert inputs.stat().st_mode & 0o777 == 0o700
    for path in inputs.glob("*/*"):
        os.utime(path, (0, time.time() - KEPT_SECONDS - 60))
    got(new)
    assert [path.stat().st_size for path in inputs.glob("*/whole")] == [100]
    with reader:
        assert reader.read() == LINES


def test_another_version_takes_the_place_of_the_one_before(files: Files, tmp_path: Path) -> None:
    for size in (100, 200, 300):
        got(files.put("/x.jsonl", LINES[:size]))
    assert sorted(path.name for path in (tmp_path / "cache/inputs").glob("*/*")) == ["version", "whole"]


def test_two_that_fetch_the_same_do_it_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DRAFTMILL_CACHE", str(tmp_path / "cache"))
    with serving() as files:
        url = files.put("/x.jsonl", LINES)
        other: list[bytes] = []
        thread = threading.Thread(target=lambda: other.append(got(url)))

        def tell(_: str) -> None:
            with suppress(RuntimeError):  # it runs already
                thread.start()
                time.sleep(0.2)

        with fetch(url, tell) as file:
            assert file.read() == LINES
        thread.join(10)
        assert other == [LINES]
        assert [headers.get("if-none-match") is None for headers in files.asked] == [True, False]
