"""OUT in S3, as moto has it, from several machines: nothing is lost, and nothing is taken from others."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Iterator
from io import BytesIO
from pathlib import Path

import orjson
import pyarrow.parquet as pq
import pytest
from s3fs import S3FileSystem

from draftmill.producer.output import places
from draftmill.producer.output.files import Busy
from draftmill.producer.output.output import Output
from draftmill.producer.output.places import Unsent, place_of
from draftmill.producer.output.summary import where
from draftmill.producer.queue.errors import UserError
from tests.producer.output.test_output import done, failed
from tests.producer.s3_server import S3, serving_s3

URL = "s3://data/a/out.jsonl"
BESIDE = "a/.draftmill/out.jsonl"
MANIFEST, ERRORS = f"{BESIDE}.draftmill.json", f"{BESIDE}.errors.jsonl"

Machine = Callable[[str], Path]


@pytest.fixture(scope="module")
def server() -> Iterator[S3]:
    with serving_s3() as s3:
        yield s3


@pytest.fixture
def s3(server: S3, monkeypatch: pytest.MonkeyPatch) -> S3:
    server.remove(*server.there())
    server.writes.clear()
    server.refused = "-"
    S3FileSystem.clear_instance_cache()  # which has endpoints and credentials of before
    for name, value in server.environment.items():
        monkeypatch.setenv(name, value)
    return server


@pytest.fixture(autouse=True)
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    """Makes this process one on the machine of that name, the first one at first; returns its data folder."""

    def use(name: str) -> Path:
        monkeypatch.setenv("DRAFTMILL_HOME", str(tmp_path / name))
        monkeypatch.setenv("DRAFTMILL_CACHE", str(tmp_path / name / "cache"))
        return tmp_path / name

    use("first")
    return use


def write(*numbers: int, url: str = URL, batch: str = "b", send: bool = True, force: bool = False) -> Output:
    """Writes results as a command does."""
    with place_of(url, force) as place, Output(place, batch, force) as output:
        for n in numbers:
            output.write(done(n))
        if send:
            output.finish()
            output.send()
    return output


def ids(content: bytes) -> list[str]:
    return [orjson.loads(line)["custom_id"] for line in content.splitlines()]


def folder_of(home: Path) -> Path:
    (folder,) = (home / "outputs").iterdir()
    return folder


def test_all_of_an_output_comes_to_its_url(s3: S3) -> None:
    with place_of(URL) as place, Output(place, "b") as output:
        assert s3.there() == [MANIFEST]
        output.write(done(1))
        output.write(failed(2))
        assert where(output).startswith(f"1 result in {output.path}, 1 failed")
        output.send()
        assert where(output) == f"1 result in {URL}, 1 failed and 0 bad lines in s3://data/{ERRORS}"
    assert s3.read("a/out.jsonl") == output.path.read_bytes()
    assert s3.there() == [MANIFEST, f"{BESIDE}.draftmill.order", ERRORS, "a/out.jsonl"]
    assert s3.writes[-1] == "a/out.jsonl"  # who sees it sees the others
    writes = len(s3.writes)
    assert write().done == 1
    assert len(s3.writes) == writes
    assert s3.there() == [MANIFEST, ERRORS, "a/out.jsonl"]


@pytest.mark.parametrize("extension", ["jsonl", "csv", "parquet"])
def test_another_machine_goes_on_and_then_the_first_one(extension: str, s3: S3, machine: Machine) -> None:
    url = f"s3://data/x.{extension}"
    with place_of(url) as place, Output(place, "b") as output:
        output.write(done(1))
        output.send()
    machine("second")
    assert write(2, url=url).done == 2
    machine("first")
    last = write(3, url=url)
    assert last.done == 3
    assert s3.read(f"x.{extension}") == last.path.read_bytes()
    assert f".draftmill/x.{extension}.partial.jsonl" not in s3.there()
    if extension == "parquet":
        assert set(pq.read_table(BytesIO(s3.read("x.parquet")))["custom_id"].to_pylist()) == {"r-1", "r-2", "r-3"}


def test_two_machines_are_two_outputs_for_the_queue(s3: S3, machine: Machine) -> None:
    first = write(1).manifest.token
    assert write(2).manifest.token == first
    machine("second")
    assert write(3).manifest.token not in ("", first)


def test_of_two_machines_that_both_went_on_neither_loses(s3: S3, machine: Machine) -> None:
    write(1)
    unsent = write(2, send=False).path
    machine("second")
    write(3)
    home = machine("first")
    with pytest.raises(UserError, match=r"was written by somebody else, and '.*' has what never came there"):
        write()
    assert ids(unsent.read_bytes()) == ["r-1", "r-2"]
    assert ids(s3.read("a/out.jsonl")) == ["r-1", "r-3"]
    shutil.rmtree(folder_of(home))
    assert write(2).done == 3


def test_a_machine_that_only_began_stops_no_other(s3: S3, machine: Machine) -> None:
    write(1, send=False)  # killed
    machine("second")
    with place_of(URL) as place, Output(place, "b"):
        pass
    machine("first")
    assert write(2).done == 2
    assert ids(s3.read("a/out.jsonl")) == ["r-1", "r-2"]


def test_force_overwrites_what_others_wrote_with_what_is_here(s3: S3) -> None:
    with place_of(URL) as place, Output(place, "b") as output:
        output.write(done(1))
        s3.put("a/out.jsonl", b"mine\n")
        with pytest.raises(UserError, match="was changed by somebody else meanwhile"):
            output.send()
    assert write(force=True).done == 1
    assert ids(s3.read("a/out.jsonl")) == ["r-1"]


def test_what_changes_meanwhile_is_not_written_over(s3: S3, machine: Machine) -> None:
    home = machine("first")
    with place_of(URL) as place, Output(place, "b") as output:
        output.write(done(1))
        machine("second")
        write(2)
        with pytest.raises(UserError, match="was changed by somebody else meanwhile, and nothing was written there"):
            output.send()
    assert ids(s3.read("a/out.jsonl")) == ["r-2"]
    assert ids((folder_of(home) / "results.jsonl").read_bytes()) == ["r-1"]


def test_what_others_have_there_is_overwritten_by_force_only(s3: S3) -> None:
    s3.put("a/out.jsonl", b"mine\n")
    with pytest.raises(UserError, match=f"{URL} exists; choose another place or overwrite it with --force"):
        write(1)
    assert s3.there() == ["a/out.jsonl"]
    assert write(1, force=True).done == 1
    with pytest.raises(UserError, match=f"'{URL}' holds b, not c"):
        write(2, batch="c")
    assert ids(s3.read("a/out.jsonl")) == ["r-1"]
    with place_of(URL) as place, Output(place, "b") as output:
        output.write(failed(2))
        output.send()
    with place_of(URL, True) as place, Output(place, "c", True):
        assert s3.there() == [MANIFEST]  # a kill now, and another machine would not mix two batches
    write(3, batch="c")
    assert s3.there() == [MANIFEST, "a/out.jsonl"]
    assert ids(s3.read("a/out.jsonl")) == ["r-3"]


def test_force_that_was_refused_lets_nobody_overwrite_without_it(s3: S3, machine: Machine) -> None:
    write(1)
    s3.refused = "out.jsonl"
    with pytest.raises(UserError, match="refuses the credentials"):
        write(2, batch="c", force=True)
    s3.refused = "-"
    for batch in ("b", "c"):
        with pytest.raises(UserError, match=f"{URL} exists; choose another place or overwrite it with --force"):
            write(3, batch=batch)
    assert ids(s3.read("a/out.jsonl")) == ["r-1"]
    assert write(2, batch="c", force=True).done == 1
    assert ids(s3.read("a/out.jsonl")) == ["r-2"]


def test_where_nothing_may_be_written_is_known_at_once(s3: S3) -> None:
    s3.refused = ".json"
    with pytest.raises(UserError, match=r"cannot write s3://data/a/out.jsonl: it refuses the credentials; set AWS_A"):
        write(1)
    with pytest.raises(UserError, match=r"cannot write s3://none/x.jsonl: there is no such bucket; create it first"):
        write(1, url="s3://none/x.jsonl")
    assert s3.there() == []


def test_what_is_refused_stays_here_and_is_sent_later(s3: S3, machine: Machine) -> None:
    write(1)
    s3.refused = "out.jsonl"
    with pytest.raises(UserError) as caught:
        write(2)
    assert str(folder_of(machine("first"))) in caught.value.message
    assert not isinstance(caught.value, Unsent)
    assert ids(s3.read("a/out.jsonl")) == ["r-1"]
    s3.refused = "-"
    assert write().done == 2
    assert ids(s3.read("a/out.jsonl")) == ["r-1", "r-2"]


def test_a_store_that_is_away_may_come_back(s3: S3, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    S3FileSystem.clear_instance_cache()  # which has the endpoint of before
    with pytest.raises(Unsent, match=r"a/out.jsonl: it cannot be reached"):
        write(1)
    S3FileSystem.clear_instance_cache()


def test_a_kill_before_it_noted_what_it_sent_is_no_change_by_others(s3: S3, machine: Machine) -> None:
    write(1)
    note = folder_of(machine("first")) / "sent.json"
    before = note.read_bytes()
    write(2)
    note.write_bytes(before)
    assert write(3).done == 3
    assert ids(s3.read("a/out.jsonl")) == ["r-1", "r-2", "r-3"]


def test_what_is_removed_there_or_here_is_had_from_the_other(s3: S3, machine: Machine) -> None:
    write(1)
    s3.remove(*s3.there())
    assert write().done == 1
    assert s3.there() == [MANIFEST, "a/out.jsonl"]
    (folder_of(machine("first")) / "results.jsonl").unlink()
    assert write().done == 1


def test_one_process_at_a_time(s3: S3) -> None:
    with place_of(URL), pytest.raises(Busy, match=f"another draftmill is writing {URL}"):
        write(1)


def test_old_copies_are_removed_once_they_were_sent(s3: S3, machine: Machine) -> None:
    sent, unsent = write(1).path, write(1, url="s3://data/b/out.jsonl", send=False).path
    long_ago = time.time() - places.KEPT_SECONDS - 1
    for path in (sent, unsent):
        os.utime(path.with_name("sent.json"), (long_ago, long_ago))
    write(1, url="s3://data/c/out.jsonl")
    assert (sent.exists(), unsent.exists()) == (False, True)
    assert write(2).done == 2


@pytest.mark.parametrize(
    ("out", "message"),
    [
        (
            "https://ann:s3cr3t@host/out.jsonl",
            "OUT is a URL of https://, and nothing can be written there; name a file",
        ),
        ("s3://bucket", "OUT is a URL of s3:// that names no file to be written; it looks like s3://BUCKET/PATH"),
        ("s3://bucket/folder/", "OUT is a URL of s3:// that names no file"),
        ("s3://bucket/x.jsonl?versionId=1", "OUT is a URL of s3:// that names no file"),
        ("hf://ann/answers/x.jsonl", "OUT is a URL of hf:// that names no file"),
        ("hf://datasets/ann/answers", "OUT is a URL of hf:// that names no file"),
        ("s3://key:s3cr3t@bucket/x.jsonl", "a URL of s3:// has a login; leave it out and set AWS_ACCESS_KEY_ID"),
        ("s3://bucket/x.xlsx", "cannot write 's3://bucket/x.xlsx': .xlsx is no format of results"),
    ],
)
def test_what_cannot_be_written_to_is_refused_before_any_work(out: str, message: str) -> None:
    with pytest.raises(UserError) as caught:
        places.check(out)
    assert caught.value.message.startswith(message)


def test_input_is_not_written_over() -> None:
    for source in ("S3://data/x.jsonl", "s3://data/.draftmill/x.jsonl.errors.jsonl"):
        with pytest.raises(UserError, match="would be written over and is INPUT"):
            places.check_apart(source, "s3://data/x.jsonl")
    places.check_apart("s3://data/x.jsonl", "s3://data/y.jsonl")
