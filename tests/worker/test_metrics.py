"""What Prometheus reads, and the worker command's options."""

from __future__ import annotations

import socket
from dataclasses import replace
from urllib.request import urlopen

import click
import pytest

from draftmill.engine.stats import Stats
from draftmill.worker.cli import Bytes
from draftmill.worker.metrics import Metrics


def test_rounds_are_counted_from_the_engine_s_counters() -> None:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    metrics = Metrics("pair", "host-1", "0")
    metrics.serve("127.0.0.1", port)
    metrics.observe_round(0.02, Stats(rounds=1, rows=6, generated_tokens=6))
    metrics.observe_round(0.02, Stats(rounds=2, rows=10, generated_tokens=10, prompt_tokens=7, cached_tokens=5))
    speculated = Stats(row_rounds=4, drafted=12, accepted=6, accepted_per_position=[4, 2, 0])
    metrics.observe_round(
        0.02, replace(speculated, rounds=3, rows=20, generated_tokens=20, prompt_tokens=7, cached_tokens=5)
    )
    metrics.jobs.labels("done").inc()
    with urlopen(f"http://127.0.0.1:{port}/metrics") as answer:
        text = answer.read().decode()
    assert "draftmill_rounds_total 3.0" in text
    assert "draftmill_generated_tokens_total 20.0" in text
    assert "draftmill_spec_rounds_total 4.0" in text
    assert "draftmill_spec_draft_tokens_total 12.0" in text
    assert "draftmill_spec_accepted_tokens_total 6.0" in text
    assert 'draftmill_spec_accepted_tokens_per_position_total{position="1"} 2.0' in text
    assert "draftmill_prompt_tokens_total 7.0" in text
    assert "draftmill_cached_tokens_total 5.0" in text
    assert 'draftmill_batch_size_bucket{le="4.0"} 1.0' in text
    assert 'draftmill_jobs_total{outcome="done"} 1.0' in text
    assert 'draftmill_worker_info{pair="pair",version="0",worker="host-1"} 1.0' in text


@pytest.mark.parametrize(("text", "size"), [("900M", 900 * 2**20), ("4G", 2**32), ("1.5GiB", 3 * 2**29), ("100", 100)])
def test_sizes(text: str, size: int) -> None:
    assert Bytes().convert(text, None, None) == size


@pytest.mark.parametrize("text", ["", "lots", "-1", "0", "4X"])
def test_bad_sizes(text: str) -> None:
    with pytest.raises(click.BadParameter):
        Bytes().convert(text, None, None)
