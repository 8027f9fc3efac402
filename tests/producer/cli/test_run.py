"""`draftmill run` with a real engine and a very small model: the whole path, and what a cut leaves."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import time
from pathlib import Path

import orjson
import pytest
import redis as redis_py

from draftmill.producer.queue import batches
from tests.producer.conftest import Shell
from tests.producer.small_model import small_model


@pytest.fixture(scope="module")
def model(boxed_model: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    return small_model(boxed_model, tmp_path_factory.mktemp("model"))


COUNT = 24


def prompts(shell: Shell) -> str:
    """Lines that end at once, and one that is still running seconds later, as it does not copy from itself."""
    lines = [{"id": f"r-{n}", "prompt": f"Say {n}", "max_tokens": 3} for n in range(COUNT)]
    lines[5] |= {"max_tokens": 2000, "temperature": 2, "ignore_eos": True}
    return shell.write("in.jsonl", b"\n".join(orjson.dumps(line) for line in lines))


def ids(shell: Shell) -> list[str]:
    return [orjson.loads(line)["custom_id"] for line in shell.lines("out.jsonl")]


def redis_of(shell: Shell) -> redis_py.Redis:
    return redis_py.Redis(unix_socket_path=f"{shell.environment['DRAFTMILL_HOME']}/redis/redis.sock")


def wait_until_half_done(shell: Shell, process: subprocess.Popen[str]) -> None:
    """Returns when `run` has written the results of all lines but the long one."""
    out = shell.folder / "out.jsonl"
    while not out.exists() or out.read_bytes().count(b"\n") < COUNT - 1:
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)


def goes_on(shell: Shell, command: list[str]) -> None:
    """The same command writes every line once."""
    last = shell(*command)
    assert last.returncode == 0, last.stderr
    assert sorted(ids(shell)) == sorted(f"r-{n}" for n in range(COUNT))


def test_notes_of_the_worker_follow_those_about_the_input(shell: Shell, model: str) -> None:
    line = orjson.dumps({"prompt": "Hi", "max_tokens": 2, "thinking_budget": 5, "mood": 1})
    done = shell("run", shell.write("in.jsonl", line), "-o", "out.jsonl", "--pair", model, "--json")
    notes = [
        'field "mood" is unknown and ignored (1 line)',
        "thinking_budget: this answer has no thoughts to limit (1 line)",
    ]
    assert orjson.loads(done.stdout)["notes"] == notes
    said = done.stderr.splitlines()
    assert (said[0], said[-1]) == (f"Note: {notes[0]}", f"Note: {notes[1]}")


def test_from_prompts_to_results(shell: Shell, model: str) -> None:
    lines = [
        '{"prompt": "Hello"}',
        "not json",
        '{"id": "b", "messages": [{"role": "user", "content": "Bye"}]}',
        orjson.dumps({"id": "long", "prompt": "word " * 20_000}).decode(),
    ]
    shell.write("in.jsonl", "\n".join(lines))
    command = ["run", "in.jsonl", "-o", "out.jsonl", "--pair", model, "--max-tokens", "3", "--sorted"]
    first = shell(*command)
    assert first.returncode == 4, first.stderr
    assert re.search(
        r"^\d+ tokens in [\d.]+ s \([\d.,]+ tokens/s\), after [\d.]+ s of loading$",
        first.stdout,
        re.MULTILINE,
    )
    assert first.stdout.endswith("2 results in out.jsonl, 1 failed and 1 bad line in out.jsonl.errors.jsonl\n")
    assert first.stderr.splitlines()[0].startswith("1 bad line left out, first: line 2: not JSON")
    assert first.stderr.splitlines()[-1] == "3/3 · 1 failed"
    assert ids(shell) == ["line-1", "b"]
    bad, long = (orjson.loads(line) for line in shell.lines("out.jsonl.errors.jsonl"))
    assert bad["error"]["code"] == "invalid_line"
    assert long["custom_id"] == "long"
    assert "tokens" in long["error"]["message"]
    answer = orjson.loads(shell.lines("out.jsonl")[0])["response"]["body"]
    assert answer["object"] == "chat.completion"
    assert answer["usage"]["completion_tokens"] <= 3

    before = shell.lines("out.jsonl")
    again = shell(*command)
    assert again.returncode == 4
    assert "is complete already" in again.stderr
    assert shell.lines("out.jsonl") == before

    (shell.folder / "out.jsonl").unlink()  # Redis has dropped the results: they are generated anew
    assert shell(*command).returncode == 4
    assert ids(shell) == ["line-1", "b"]


def test_answers_obey_schemas_and_one_that_cannot_be_enforced_fails_alone(shell: Shell, model: str) -> None:
    mood = {"type": "object", "properties": {"mood": {"enum": ["good", "bad"]}}, "required": ["mood"]}
    other = {"type": "json_schema", "json_schema": {"name": "n", "schema": {"type": "array", "maxItems": 0}}}
    never = {"type": "json_schema", "json_schema": {"name": "n", "schema": {"not": {"type": "null"}}}}
    lines = [{"id": f"r-{n}", "prompt": f"Mood of {n}?"} for n in range(9)]
    lines += [{"id": "own", "prompt": "a", "response_format": other}]
    lines += [{"id": "never", "prompt": "a", "response_format": never}]
    lines += [{"id": "free", "prompt": "a", "response_format": {"type": "text"}, "max_tokens": 5}]
    shell.write("in.jsonl", b"\n".join(orjson.dumps(line) for line in lines))
    shell.write("mood.json", orjson.dumps({**mood, "additionalProperties": False}))
    command = ["run", "in.jsonl", "-o", "out.jsonl", "--pair", model, "--schema"]
    for path, message in (
        ("none.json", "cannot read 'none.json': no such file"),
        ("in.jsonl", "'in.jsonl' does not hold a JSON schema: "),
    ):
        refused = shell(*command, path)
        assert (refused.returncode, refused.stderr[: 7 + len(message)]) == (2, f"Error: {message}")
        assert refused.stderr.count("\n") == 1

    done = shell(*command, "mood.json")
    assert done.returncode == 4, done.stderr
    answers = {
        line["custom_id"]: line["response"]["body"]["choices"][0]
        for line in map(orjson.loads, shell.lines("out.jsonl"))
    }
    assert answers["free"]["finish_reason"] == "length"
    assert orjson.loads(answers["own"]["message"]["content"]) == []
    for n in range(9):
        assert answers[f"r-{n}"]["finish_reason"] == "stop"
        assert orjson.loads(answers[f"r-{n}"]["message"]["content"])["mood"] in ("good", "bad")
    (failed,) = (orjson.loads(line) for line in shell.lines("out.jsonl.errors.jsonl"))
    assert (failed["custom_id"], failed["response"]["status_code"]) == ("never", 400)
    assert failed["error"]["message"] == 'the grammar (json) cannot be enforced: Unimplemented keys: ["not"]'


def test_an_interrupted_run_goes_on(shell: Shell, model: str) -> None:
    command = ["run", prompts(shell), "-o", "out.jsonl", "--pair", model]
    process = shell.start(*command)
    wait_until_half_done(shell, process)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=30)
    assert process.returncode == 130, err
    assert re.fullmatch(
        rf"interrupted: {COUNT - 1} of {COUNT} results are in out\.jsonl; go on with: draftmill run in\.jsonl .*",
        err.splitlines()[-1],
    )
    assert "Traceback" not in err
    assert len(ids(shell)) == COUNT - 1
    goes_on(shell, command)
    assert shell(*command, "--sorted").returncode == 0  # though Redis has dropped the results
    assert ids(shell) == [f"r-{n}" for n in range(COUNT)]


def test_a_file_that_changes_before_it_is_queued_is_told(shell: Shell, model: str) -> None:
    old = "".join(f'{{"id": "r-{n}", "prompt": "Say {n}", "max_tokens": 3}}\n' for n in range(4))
    command = ["run", shell.write("in.jsonl", old), "-o", "out.jsonl", "--pair", model]
    process = shell.start(*command)
    assert process.stderr
    assert process.stderr.readline() == f"loading {model}\n"
    shell.write("in.jsonl", old.replace("Say", "Sing"))
    _, err = process.communicate(timeout=60)
    assert process.returncode == 2
    assert err.splitlines()[-1].startswith("Error: in.jsonl changed while it was submitted")
    assert not (shell.folder / "out.jsonl").exists()
    shell.write("in.jsonl", old)
    assert shell(*command).returncode == 0
    assert sorted(ids(shell)) == [f"r-{n}" for n in range(4)]


def test_progress_is_shown_before_the_first_result(shell: Shell, model: str) -> None:
    shell.write("in.jsonl", '{"prompt": "Go on", "max_tokens": 8000, "temperature": 2, "ignore_eos": true}\n')
    process = shell.start("run", "in.jsonl", "-o", "out.jsonl", "--pair", model)
    assert process.stderr
    lines = iter(process.stderr.readline, "")
    seen = [line for line, _ in zip((line for line in lines if line.startswith("0/1")), range(2), strict=False)]
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=30)
    assert len(seen) == 2


def test_a_private_redis_that_dies_is_started_again(shell: Shell, model: str) -> None:
    process = shell.start("run", prompts(shell), "-o", "out.jsonl", "--pair", model)
    wait_until_half_done(shell, process)
    home = Path(shell.environment["DRAFTMILL_HOME"])
    os.kill(int((home / "redis" / "server.pid").read_text()), signal.SIGKILL)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    assert sorted(ids(shell)) == sorted(f"r-{n}" for n in range(COUNT))
    assert "the private Redis has ended; starting it again\n" in err


def test_a_worker_that_dies_is_named(shell: Shell, model: str) -> None:
    process = shell.start("run", prompts(shell), "-o", "out.jsonl", "--pair", model)
    wait_until_half_done(shell, process)
    with redis_of(shell) as redis:
        (worker,) = (int(redis.hget(key, "pid") or 0) for key in redis.smembers("rq:workers"))
    os.kill(worker, signal.SIGKILL)
    _, err = process.communicate(timeout=30)
    assert process.returncode == 70
    assert "the worker ended with signal SIGKILL" in err.splitlines()[-1]


def test_a_killed_run_takes_its_worker_with_it(shell: Shell, model: str) -> None:
    command = ["run", prompts(shell), "-o", "out.jsonl", "--pair", model]
    process = shell.start(*command)
    wait_until_half_done(shell, process)
    process.kill()
    process.communicate()
    with redis_of(shell) as redis:
        deadline = time.monotonic() + 15
        while redis.smembers("rq:workers"):
            assert time.monotonic() < deadline
            time.sleep(0.1)
        (batch,) = batches.list_batches(redis)
        assert (batch.running, batch.done) == (0, COUNT - 1)
    goes_on(shell, command)


@pytest.mark.parametrize("pair", ["no-such-model", "."])
def test_an_unknown_model_is_one_line(shell: Shell, pair: str) -> None:
    done = shell("run", prompts(shell), "-o", "out.jsonl", "--pair", pair)
    assert done.returncode == 2
    error = done.stderr.splitlines()[-1]
    assert error.startswith("Error: ")
    assert pair in error
    assert shell("status").stdout.startswith("No batches here")
    assert not (shell.folder / "out.jsonl").exists()
