"""One form of a pair's name, and one queue for each: whatever letters it is typed in, its workers get its lines."""

from __future__ import annotations

import itertools

import pytest
import redis as redis_py

from draftmill.engine.models.pairs import PAIRS
from draftmill.producer.input.dataset import Dataset
from draftmill.producer.input.lines import Defaults
from draftmill.producer.queue import batches, wire
from draftmill.producer.queue.fleet import Orders
from draftmill.producer.queue.pair_names import KNOWN, canonical, hint
from draftmill.worker.duty import duty
from tests.producer.conftest import Shell
from tests.redis_server import RedisServer


def test_producers_know_the_pairs_of_the_engine() -> None:
    assert set(KNOWN) == set(PAIRS)


@pytest.mark.parametrize(
    ("typed", "name"),
    [
        ("Qwen3-4B", "qwen3-4b"),
        ("QWEN3.5-35B-A3B", "qwen3.5-35b-a3b"),
        ("./Qwen3-4B", "./Qwen3-4B"),
        ("/models/Qwen3-4B/", "/models/Qwen3-4B"),
        ("mlx-community/Qwen3-4B-4bit", "mlx-community/Qwen3-4B-4bit"),
        ("MyModel", "MyModel"),
        ("/", "/"),
    ],
)
def test_names_have_one_form_and_folders_keep_their_case(typed: str, name: str) -> None:
    assert canonical(typed) == canonical(name) == name
    assert wire.JobBody(batch="b", custom_id="a", pair=typed, prompts=("",)).pair == name
    assert wire.slug(typed) == wire.slug(name)


def test_no_two_pairs_share_a_queue() -> None:
    pairs = ("qwen3-4b", "a/b", "A/b", "a_b", "a b", "a/B", "/m/Qwen", "/m/qwen", "/m_qwen", "é", "è")
    for one, other in itertools.combinations(pairs, 2):
        assert wire.slug(one) != wire.slug(other)
    assert wire.slug("qwen3-4b") == "qwen3-4b"
    assert all(wire.slug(pair).isascii() and ":" not in wire.slug(pair) for pair in pairs)


def test_a_mistyped_name_is_answered_with_all_that_are_near() -> None:
    assert hint("qwen4-b") == "; did you mean 'qwen3-4b' or 'qwen3.5-4b'?"
    assert hint("Qwen35-4B") == "; did you mean 'qwen3.5-4b'?"
    assert hint("qwem3-4b") == "; did you mean 'qwen3-4b' or 'qwen3.5-4b' or 'qwen3-8b'?"
    assert hint("qwen3-4b") == hint("mistral") == ""


def test_the_same_lines_are_the_same_batch_in_any_letters(shell: Shell) -> None:
    shell.write("in.jsonl", '{"prompt": "hi"}\n')
    path = str(shell.folder / "in.jsonl")
    one, other = (Dataset(path, pair, Defaults()).survey().identity for pair in ("qwen3-4b", "Qwen3-4B"))
    assert one == other


def test_orders_mean_the_same_in_any_letters() -> None:
    assert duty(Orders(pair="Qwen3-4B"), {}, "qwen3-4b", auto=True).takes_jobs
    assert not duty(Orders(pair="/m/Qwen"), {}, "/m/qwen", auto=False).takes_jobs


def test_a_worker_runs_what_was_submitted_in_other_letters(
    redis_server: RedisServer, redis: redis_py.Redis, shell: Shell
) -> None:
    shell.write("in.jsonl", '{"prompt": "Hello", "max_tokens": 2, "model": "SmolLM2-135m"}\n')
    url = ("--redis-url", redis_server.url)
    submitted = shell("submit", "in.jsonl", "--pair", "SmolLM2-135M", *url)
    assert "is ignored" not in submitted.stderr
    assert "draftmill worker --pair smollm2-135m" in submitted.stderr
    worker = shell.start("worker", "--pair", "SMOLLM2-135m", "--max-rows", "2", *url)
    try:
        collected = shell("collect", submitted.stdout.strip(), "-o", "out.jsonl", "--follow", *url)
    finally:
        worker.kill()
        worker.communicate()
    assert collected.returncode == 0, collected.stderr
    (state,) = batches.list_batches(redis)
    assert (state.pair, state.done) == ("smollm2-135m", 1)
