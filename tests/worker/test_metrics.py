"""What Prometheus reads, and the worker command's options."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from urllib.request import urlopen

import click
import orjson
import pytest

from draftmill.engine.stats import Stats
from draftmill.producer.queue.leases import Claimed
from draftmill.producer.queue.wire import JobBody
from draftmill.worker import results
from draftmill.worker.cli.worker import Bytes
from draftmill.worker.jobs import Asked
from draftmill.worker.metrics.metrics import Metrics
from tests.engine.drafting.test_speculation import replaying
from tests.engine.small import llama_model, requests


def test_rounds_are_counted_from_the_engine_s_counters() -> None:
    metrics = Metrics("pair", "host-1", "0", chip="M4")
    metrics.serve("127.0.0.1", 0)
    metrics.rounds.observe(0.02, Stats(rounds=1, rows=6, generated_tokens=6))
    metrics.rounds.observe(0.02, Stats(rounds=2, rows=10, generated_tokens=10, prompt_tokens=7, cached_tokens=5))
    speculated = Stats(
        row_rounds=4,
        drafted_by=Counter(dflash=9, lookup=3),
        accepted_by=Counter(dflash=5, lookup=1),
        accepted_per_position=[4, 2, 0],
    )
    last = replace(speculated, rounds=3, rows=20, prefilled_tokens=9)
    metrics.rounds.observe(0.2, replace(last, generated_tokens=20, prompt_tokens=7, cached_tokens=5))
    job = Claimed("b-1", b"", "t.1", "b", "r-1", 0.0)
    metrics.observe_outcome(results.refused(job, "too long"))
    metrics.observe_outcome(results.retry(job, "the engine failed with RuntimeError"))
    with urlopen(f"http://{metrics.address}/metrics") as answer:
        text = answer.read().decode()
    assert "draftmill_rounds_total 3.0" in text
    assert "draftmill_generated_tokens_total 20.0" in text
    assert "draftmill_spec_rounds_total 4.0" in text
    assert 'draftmill_spec_draft_tokens_total{source="dflash"} 9.0' in text
    assert 'draftmill_spec_draft_tokens_total{source="grammar"} 0.0' in text
    assert 'draftmill_spec_accepted_tokens_total{source="lookup"} 1.0' in text
    assert 'draftmill_spec_accepted_tokens_per_position_total{position="1"} 2.0' in text
    assert "draftmill_prompt_tokens_total 7.0" in text
    assert "draftmill_cached_tokens_total 5.0" in text
    assert 'draftmill_batch_size_bucket{le="4.0"} 1.0' in text
    assert 'draftmill_batch_size_bucket{le="8.0"} 2.0' in text
    assert "draftmill_batch_size_sum 20.0" in text
    assert 'draftmill_round_seconds_bucket{le="0.025",phase="decode"} 2.0' in text
    assert 'draftmill_round_seconds_bucket{le="0.1",phase="prefill"} 0.0' in text
    assert 'draftmill_round_seconds_count{phase="prefill"} 1.0' in text
    assert 'draftmill_jobs_total{outcome="failed"} 1.0' in text
    assert 'draftmill_failures_total{reason="invalid_request"} 1.0' in text
    assert 'draftmill_failures_total{reason="engine_failed"} 1.0' in text
    assert 'draftmill_failures_total{reason="lost_leases"} 0.0' in text
    assert "energy" not in text
    assert 'draftmill_worker_info{chip="M4",pair="pair",version="0",worker="host-1"} 1.0' in text


def test_the_real_engine_s_counters_are_the_sums_over_its_result_lines() -> None:
    """With fewer rows than requests, a draft that is wrong now and then, and texts that end within a block."""
    asked = requests(8, max_tokens=21)
    engine = replaying(llama_model(), asked, lambda place: place % 3 == 0, max_rows=3, end=tuple(range(8)))
    metrics = Metrics("pair", "host-1", "0")
    sums: Counter[str] = Counter()
    for request in asked:
        engine.add(request)
    while engine.busy:
        ended = engine.step()
        metrics.rounds.observe(0.01, engine.stats)
        for completion in ended:
            body = JobBody(batch="b", custom_id="r-1", pair="pair", prompts=("x",))
            one = Asked((next(request for request in asked if request.id == completion.id),))
            job = Claimed("b-1", b"", "t.1", "b", "r-1", 0.0)
            outcome = results.completed(job, body, one, [completion], engine.text)
            metrics.observe_outcome(outcome)
            usage = orjson.loads(outcome.line)["response"]["body"]["usage"]
            sums["prompt"] += usage["prompt_tokens"]
            sums["generated"] += usage["completion_tokens"]
            if drafts := usage.get("completion_tokens_details"):
                sums["spec_accepted"] += drafts["accepted_prediction_tokens"]
                sums["spec_draft"] += drafts["accepted_prediction_tokens"] + drafts["rejected_prediction_tokens"]

    def value(name: str, **labels: str) -> float | None:
        labels |= {"source": "dflash"} if name.startswith("spec_") else {}
        return metrics.registry.get_sample_value(f"draftmill_{name}_tokens_total", labels)

    assert sums["spec_draft"] > sums["spec_accepted"] > 0
    assert {name: value(name) for name in sums} == sums
    kinds = {"prompt": "prompt", "generated": "completion", "spec_accepted": "accepted", "spec_draft": "drafted"}
    assert {name: value("result", kind=kinds[name]) for name in sums} == sums


@pytest.mark.parametrize(("text", "size"), [("900M", 900 * 2**20), ("4G", 2**32), ("1.5GiB", 3 * 2**29), ("100", 100)])
def test_sizes(text: str, size: int) -> None:
    assert Bytes().convert(text, None, None) == size


@pytest.mark.parametrize("text", ["", "lots", "-1", "0", "4X"])
def test_bad_sizes(text: str) -> None:
    with pytest.raises(click.BadParameter):
        Bytes().convert(text, None, None)
