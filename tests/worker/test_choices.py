"""Jobs of several requests: one line with all choices in order, and one fate for all of them."""

from __future__ import annotations

import time
from typing import Any

import pytest
from rq.command import send_stop_job_command

from draftmill.engine.request import Completion
from draftmill.producer.queue import batches, wire
from draftmill.producer.queue.leases import Claimed
from draftmill.worker import jobs
from tests.engine.drafting.test_speculation import engine_with_draft
from tests.engine.small import llama_model, run, small_engine
from tests.worker.conftest import Mill
from tests.worker.run_worker import PAIR


def all_done(status: batches.BatchStatus) -> bool:
    return status.complete


def submit(
    mill: Mill, count: int, batch: str = "b", tokens: int = 10, seconds: float | None = None, **job: Any
) -> None:
    info = batches.BatchInfo(batch, PAIR, "normal", count, "test.jsonl", "")
    sampling = wire.Sampling(max_tokens=tokens, max_seconds=seconds)
    bodies = [
        wire.JobBody(batch=batch, custom_id=f"r-{n}", pair=PAIR, sampling=sampling, line=n + 1, **job)
        for n in range(count)
    ]
    batches.create(mill.redis, info)
    batches.submit_chunk(mill.redis, info, bodies)


def test_a_line_has_all_choices_of_all_prompts(mill: Mill) -> None:
    submit(mill, 5, prompts=("one", "two words"), n=20, echo=True)  # of which the engine has rows for 8 at a time
    submit(mill, 4, batch="small", prompts=("x",))
    mill.start(rows=8)
    mill.wait(all_done)
    mill.wait(all_done, batch="small")
    for line in mill.lines().values():
        answer = line["response"]["body"]
        words = " ".join(f"word{n}" for n in range(10))
        assert [choice["text"] for choice in answer["choices"]] == [f"one{words}"] * 20 + [f"two words{words}"] * 20
        assert answer["usage"]["prompt_tokens"] == 3
        assert answer["usage"]["completion_tokens"] == 400
    assert mill.status().completion_tokens == 2000
    assert len(mill.lines("small")) == 4


def test_one_that_can_never_run_fails_its_job_alone(mill: Mill) -> None:
    submit(mill, 1, batch="long", prompts=("a", "word " * 2000, "b"))
    submit(mill, 2, prompts=("a", "b"), n=2)
    worker = mill.start()
    mill.wait(all_done)
    mill.wait(all_done, batch="long")
    assert "2000 tokens" in mill.lines("long")["r-0"]["error"]["message"]
    assert mill.status().done == 2
    assert mill.stop(worker)[0] == 0


def try_again(mill: Mill) -> None:
    """Lets what waits for its next try have it now."""
    if waiting := mill.redis.zrange(wire.LATER, 0, -1):
        mill.redis.zadd(wire.LATER, dict.fromkeys(waiting, 0))  # pyright: ignore[reportArgumentType]


def test_one_with_which_rounds_fail_lets_the_job_be_tried_again(mill: Mill) -> None:
    submit(mill, 1, batch="flaky", prompts=("a", "flaky", "b"), tokens=30)
    submit(mill, 1, batch="bad", prompts=("a", "broken"), n=3, tokens=10_000)
    mill.start(lease=60)
    mill.wait(all_done, batch="flaky")
    assert [len(line["response"]["body"]["choices"]) for line in mill.lines("flaky").values()] == [3]
    mill.wait(lambda status: try_again(mill) or status.complete, batch="bad", seconds=40)
    assert mill.lines("bad")["r-0"]["error"]["code"] == "engine_failed"


@pytest.mark.parametrize(("seconds", "code"), [(0.3, "deadline_exceeded"), (None, "batch_cancelled")])
def test_all_requests_of_a_job_end_together(mill: Mill, seconds: float | None, code: str) -> None:
    submit(mill, 3, tokens=100_000, seconds=seconds, prompts=("a", "b"), n=10)
    worker = mill.start(lease=60)
    mill.wait(lambda status: status.running > 0)
    if seconds is None:
        batches.cancel(mill.redis, "b")
    mill.wait(all_done)
    assert {line["error"]["code"] for line in mill.lines().values()} == {code}
    submit(mill, 2, batch="next", prompts=("a",), n=4)
    mill.wait(all_done, batch="next")
    assert mill.stop(worker)[0] == 0


def test_a_job_that_is_stopped_leaves_the_others(mill: Mill) -> None:
    submit(mill, 1, batch="long", tokens=100_000, prompts=("a",), n=4)
    mill.start()
    mill.wait(lambda status: status.running == 1, batch="long")
    submit(mill, 2, prompts=("a",), n=4)
    time.sleep(0.3)
    send_stop_job_command(mill.redis, wire.job_id("long", "r-0"), serializer=wire.JsonSerializer)
    mill.wait(all_done, batch="long")
    mill.wait(all_done)
    assert mill.lines("long")["r-0"]["error"]["code"] == "request_stopped"
    assert mill.status().done == 2


def test_a_killed_worker_s_jobs_and_a_stopped_one_s_are_run_whole_by_others(mill: Mill) -> None:
    submit(mill, 12, prompts=("a", "b"), n=3, tokens=40)
    first = mill.start(lease=1.5)
    mill.wait(lambda status: status.running > 0)
    first.kill()
    second = mill.start(lease=1.5, drain=0.2)
    mill.wait(lambda status: status.done > 0)
    mill.stop(second)  # what runs for longer than the drain is handed back
    mill.start(lease=1.5)
    mill.wait(all_done, seconds=40)
    lines = mill.lines()
    assert len(lines) == 12
    assert {len(line["response"]["body"]["choices"]) for line in lines.values()} == {6}


@pytest.mark.parametrize("drafts", [False, True], ids=["plain", "drafts"])
def test_a_prompt_is_read_once_and_each_choice_has_its_own_seed(drafts: bool) -> None:
    """A choice is what a request alone with its seed comes to."""
    prompt = tuple(n % 90 for n in range(200))
    engine = engine_with_draft(llama_model()) if drafts else small_engine(llama_model())
    sampling = wire.Sampling(max_tokens=12, temperature=1.0, seed=7)
    body = wire.JobBody(batch="b", custom_id="r", pair="p", prompts=(prompt,), n=4, sampling=sampling)
    asked = jobs.asked(Claimed("j", b"", "", "b", "r", 0), body, engine.text)
    together: dict[str, Completion] = run(engine, list(asked.requests))
    cached = sorted(done.cached_tokens for done in together.values())
    assert cached == [0, 192, 192, 192]
    for choice in range(4):
        given = sampling.model_copy(update={"seed": 7 + choice})
        alone = jobs.asked(
            Claimed("k", b"", "", "b", "r", 0), body.model_copy(update={"n": 1, "sampling": given}), engine.text
        )
        (one,) = run(engine, list(alone.requests)).values()
        assert one.tokens == together[f"j/{choice}"].tokens
    assert len({done.tokens for done in together.values()}) > 1
