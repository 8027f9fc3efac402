"""Datasets in S3, as moto's server has it, through s3fs: versions, ranges, refusals; stores without their package."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest
from click.testing import CliRunner
from moto.server import ThreadedMotoServer
from s3fs import S3FileSystem

from draftmill.producer.cli.main import main
from draftmill.producer.input import remote
from draftmill.producer.input.dataset import Dataset
from draftmill.producer.input.defaults import Defaults
from draftmill.producer.input.fetch import fetch
from draftmill.producer.input.sources import open_source
from draftmill.producer.queue.errors import UserError
from tests.producer.input.test_fetch import LINES
from tests.producer.input.test_sources import FORMATS, ROWS

PIECE = 20_000


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def s3(endpoint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv("DRAFTMILL_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    monkeypatch.setattr(remote, "RANGE", PIECE)
    S3FileSystem.clear_instance_cache()  # which has endpoints and credentials of before
    client: Any = boto3.client("s3", region_name="us-east-1")
    client.create_bucket(Bucket="data")
    return client


def put(s3: Any, key: str, content: bytes) -> str:
    s3.put_object(Bucket="data", Key=key, Body=content)
    return f"s3://data/{key}"


@pytest.mark.parametrize("name", ["x.jsonl.gz", "x.csv", "x.parquet"])
def test_the_path_tells_the_format(name: str, s3: Any) -> None:
    source = open_source(put(s3, f"user@host/{name}", FORMATS[name]()))
    for _ in range(2):
        rows = [row for _, row in source.rows()]
        assert [str(row["stars"]) for row in rows if isinstance(row, dict)] == [str(row["stars"]) for row in ROWS]


def test_a_version_is_fetched_once(s3: Any) -> None:
    url = put(s3, "once.jsonl", LINES)
    told: list[str] = []
    first = Dataset(url, "p", Defaults(), tell=told.append).survey()
    assert len(told) == -(-len(LINES) // PIECE)
    assert Dataset(url, "p", Defaults(), tell=told.append).survey().identity == first.identity
    assert len(told) == -(-len(LINES) // PIECE)
    put(s3, "once.jsonl", LINES.replace(b"Say", b"Cry"))
    assert Dataset(url, "p", Defaults(), tell=told.append).survey().identity != first.identity
    assert len(told) == 2 * -(-len(LINES) // PIECE)


def test_what_was_interrupted_goes_on(s3: Any) -> None:
    url = put(s3, "cut.jsonl", LINES)
    told: list[str] = []

    def tell(text: str) -> None:
        told.append(text)
        if len(told) == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fetch(url, tell)
    with fetch(url, tell) as file:
        assert file.read() == LINES
    assert len(told) == -(-len(LINES) // PIECE)


def test_what_changes_meanwhile_is_fetched_anew(s3: Any) -> None:
    url, other = put(s3, "new.jsonl", LINES), LINES.replace(b"Say", b"Cry")

    def tell(_: str) -> None:
        put(s3, "new.jsonl", other)

    with fetch(url, tell) as file:
        assert file.read() == other


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("s3://data/none.jsonl", "cannot read s3://data/none.jsonl: no such file"),
        ("s3://nowhere/none.jsonl", "cannot read s3://nowhere/none.jsonl: no such file"),
        ("s3://data/folder", "cannot read s3://data/folder: it is a folder; name a file in it"),
        ("s3://data", "cannot read s3://data: it is a folder; name a file in it"),
    ],
)
def test_what_cannot_be_read_is_one_line(url: str, message: str, s3: Any) -> None:
    put(s3, "folder/x.jsonl", LINES)
    with pytest.raises(UserError) as caught:
        open_source(url)
    assert caught.value.message == message


def test_credentials_may_be_missing(s3: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("HOME", str(tmp_path))
    S3FileSystem.clear_instance_cache()  # which has the credentials of before
    with pytest.raises(UserError, match=r"there are no credentials; set AWS_ACCESS_KEY_ID and .*FSSPEC_S3_ANON=true"):
        open_source("s3://data/x.jsonl")


@pytest.mark.parametrize(
    ("url", "missing"),
    [("s3://b/x.jsonl", "fsspec.core"), ("gs://b/x.jsonl", "gcsfs"), ("hf://datasets/a/b/x.csv", "fsspec.core")],
)
def test_a_missing_package_is_one_line(url: str, missing: str, s3: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, missing, None)
    done = CliRunner().invoke(main, ["submit", url, "--dry-run"])
    scheme = url.partition(":")[0]
    packages = "'draftmill[remote]'" + (" gcsfs" if scheme == "gs" else "")
    assert done.stderr == f"Error: reading {scheme}:// needs its packages: pip install {packages}\n"
    assert done.exit_code == 2
