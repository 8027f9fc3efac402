"""`draftmill run` with a model that has no adapter: mlx-lm's own tokens, and every line once though the worker dies."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

import orjson
import pytest
import redis as redis_py
from mlx_lm import load, stream_generate

from draftmill.producer.queue import wire
from tests.producer.conftest import Shell
from tests.producer.small_model import plain_model

COUNT = 24


@pytest.fixture(scope="module")
def model(boxed_model: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    return plain_model(boxed_model, tmp_path_factory.mktemp("phi3"))


def answers(shell: Shell) -> dict[str, str]:
    """The texts of all lines, of which none is there twice."""
    lines = [orjson.loads(line) for line in shell.lines("out.jsonl")]
    texts = {line["custom_id"]: line["response"]["body"]["choices"][0]["message"]["content"] for line in lines}
    assert len(texts) == len(lines)
    return texts


def test_lines_have_mlx_lm_s_tokens_though_the_worker_is_killed(shell: Shell, model: str) -> None:
    prompts = {f"r-{n}": f"Say {'much ' * (n % 7)}{n}" for n in range(COUNT)}
    lengths = {id: 3 + n % 5 for n, id in enumerate(prompts)} | {"r-5": 1500}
    lines = [
        {"id": id, "prompt": prompt, "max_tokens": lengths[id], "ignore_eos": True} for id, prompt in prompts.items()
    ]
    shell.write("in.jsonl", b"\n".join(orjson.dumps(line) for line in lines))
    command = ["run", "in.jsonl", "-o", "out.jsonl", "--pair", model]
    process = shell.start(*command)
    out = shell.folder / "out.jsonl"
    while not out.exists() or out.read_bytes().count(b"\n") < COUNT - 1:
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)
    with redis_py.Redis(unix_socket_path=f"{shell.environment['DRAFTMILL_HOME']}/redis/redis.sock") as redis:
        keys: Any = redis.smembers("rq:workers")
        (key,) = keys
        name = key.decode().removeprefix("rq:worker:")
        assert redis.hget(wire.worker_key(name), "check") == b"plain: no adapter for phi3"
        os.kill(int(redis.hget(key, "pid") or 0), signal.SIGKILL)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 70, err
    assert "plain: no adapter for phi3" in err

    last = shell(*command)
    assert last.returncode == 0, last.stderr
    texts = answers(shell)
    target, tokenizer = load(model)[:2]
    tokenizer.eos_token_ids = set()
    for id, prompt in prompts.items():
        if id != "r-5":
            chat = tokenizer.apply_chat_template([{"role": "user", "content": prompt}], add_generation_prompt=True)
            tokens = [it.token for it in stream_generate(target, tokenizer, chat, max_tokens=lengths[id])]
            assert texts[id] == tokenizer.decode(tokens, skip_special_tokens=True)


def test_a_folder_that_mlx_lm_cannot_load_is_one_line(shell: Shell, model: str) -> None:
    config = Path(model) / "config.json"
    written = config.read_bytes()
    try:
        config.write_bytes(orjson.dumps(orjson.loads(written) | {"model_type": "lstm"}))
        done = shell("run", shell.write("in.jsonl", '{"prompt": "a"}'), "-o", "out.jsonl", "--pair", model)
    finally:
        config.write_bytes(written)
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith(f"Error: {model} holds model type 'lstm', which mlx-lm ")
