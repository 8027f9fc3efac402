"""INPUT and OUT at a URL, through the command line: as with files, and no secret anywhere."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Callable, Iterator

import orjson
import pytest
import redis as redis_py

from tests.producer.conftest import Shell
from tests.producer.file_server import Files, serving
from tests.producer.queue.test_urls import MARKS
from tests.redis_server import RedisServer
from tests.worker.run_worker import PAIR

LINES = b'{"id": "a", "prompt": "say it", "max_tokens": 2}\nnot json\n'


@pytest.fixture
def files(shell: Shell) -> Iterator[Files]:
    shell.environment["DRAFTMILL_CACHE"] = str(shell.folder / "cache")
    with serving() as files:
        files.login = "Basic " + b64encode(b"ann:s3cr3t t0k3n").decode()
        yield files


def secret(url: str) -> str:
    return url.replace("://", "://ann:s3cr3t%20t0k3n@") + "?sig=s3cr3t"


def test_from_a_url_to_results(
    shell: Shell, files: Files, redis_server: RedisServer, redis: redis_py.Redis, worker: Callable[[], None]
) -> None:
    url = secret(files.put("/data/x.jsonl", LINES))
    at = ("--redis-url", redis_server.url)
    done = [
        shell("submit", url, "--pair", PAIR, "--dry-run", *at),
        shell("submit", shell.write("x.jsonl", LINES), "--pair", PAIR, *at),
        shell("submit", url, "--pair", PAIR, "--json", *at),
    ]
    assert [each.returncode for each in done] == [0, 4, 4], done
    batch = done[1].stdout.strip()
    assert orjson.loads(done[2].stdout)["batch"] == batch
    worker()
    done += [
        shell("collect", batch, "-o", "out.jsonl", "--follow", *at),
        shell("status", batch, "--json", *at),
        shell("run", url, "--pair", PAIR, "-o", "out.jsonl", *at),
    ]
    assert [orjson.loads(line)["custom_id"] for line in shell.lines("out.jsonl")] == ["a"]
    assert orjson.loads(done[4].stdout)["source"] == f"{files.url}/data/x.jsonl?***"
    assert len([headers for headers in files.asked if "if-none-match" in headers]) == len(files.asked) - 1
    kept = b"".join(redis.dump(key) or b"" for key in redis.scan_iter())  # pyright: ignore
    assert not any(mark.encode() in kept for mark in MARKS)
    files.login = "changed"
    done += [shell("submit", url, *at), shell("--debug", "submit", url, *at), shell("run", url, "-o", "y.jsonl", *at)]
    told = "".join(each.stdout + each.stderr for each in done)
    assert not any(mark in told for mark in MARKS), told
    assert done[-3].stderr.startswith(
        f"Error: cannot read {files.url}/data/x.jsonl?***: the server refuses it (HTTP 401)"
    )


@pytest.mark.parametrize("command", [("run", "x.jsonl"), ("collect", "batch_a")])
@pytest.mark.parametrize("out", ["https://ann:s3cr3t@host/out.jsonl", "ftp://ann:s3cr3t@host/out.jsonl"])
def test_an_output_at_a_url_of_the_web_is_refused(command: tuple[str, ...], out: str, shell: Shell) -> None:
    shell.write("x.jsonl", LINES)
    done = shell(*command, "-o", out)
    scheme = out.partition(":")[0]
    assert done.stderr == (
        f"Error: OUT is a URL of {scheme}://, and nothing can be written there; name a file here, or s3://BUCKET/PATH, "
        "gs://BUCKET/PATH or hf://datasets/USER/NAME/PATH (the extra `remote`)\n"
    )
    assert done.returncode == 2


def test_names_in_stores_are_shown_as_they_are(shell: Shell) -> None:
    shell.environment["AWS_ENDPOINT_URL"] = "http://127.0.0.1:1"
    done = shell("submit", "s3://bucket/user@host/*.jsonl")
    assert done.stderr == "Error: a URL of s3:// names several files; name one\n"
    done = shell("submit", "in.jsonl", "s3://bucket/user@host/x.jsonl")
    assert "s3://bucket/user@host/x.jsonl" in done.stderr
