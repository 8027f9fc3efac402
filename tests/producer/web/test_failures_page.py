"""The dashboard's page about the failures of a batch, as people see it, and what it costs."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import httpx
import orjson
import redis as redis_py

from draftmill.producer.queue import batches, wire
from draftmill.producer.queue.batches import BatchInfo
from draftmill.producer.web.dashboard.app import STATIC
from draftmill.producer.web.dashboard.failures import MOST_READ, Asked, FailuresPage
from tests.producer.web.browser import DESK, PHONE, Page
from tests.producer.web.test_dashboard import (
    CONTRASTS,
    Dashboard,
    folder,
    in_a_browser,
    keyed,
    page,
    read_only,
    rows,
    sign_in,
    submit,
)

__all__ = ["folder", "keyed", "page", "read_only"]


def fail(redis: redis_py.Redis, count: int, batch: str = "batch_a", source: str = "reviews.csv") -> None:
    """A batch of which `count` lines of two pairs have failed, for two reasons, as record.lua writes it."""
    info = BatchInfo(batch, "pair-a", "normal", count, source, "ann", others=("pair-b",))
    batches.create(redis, info)
    failures: dict[Any, Any] = {}
    for n in range(1, count + 1):
        if n % 10:
            reason, about = f"engine_failed: out of memory in round {n}", f"3 pair-a mini-{n % 3} r-{n}"
        else:
            reason, about = "invalid_request: temperature is 9", f"1 pair-b mini-1 r-{n}"
        failures[f"{batch}-{n:020x}"] = f"failed {n} 1-0 {reason}\n\n1764244800000 {about}"
    redis.hset(wire.failures_key(batch), mapping=failures)
    redis.hset(wire.batch_key(batch), "failed", count)


@in_a_browser
def test_from_the_batch_to_a_reason_to_its_lines(redis: redis_py.Redis, read_only: Dashboard, page: Page) -> None:
    submit(redis, 200)
    fail(redis, 200)
    page.open(read_only.url)
    page.wait(f"{rows('#batches .failed')} === 1")
    page.click("#batches .failed")
    page.wait("!!document.getElementById('reasons')")
    words = " ".join(page.text.split())
    for word in (
        "Failures of reviews.csv",
        "200 of 200 lines failed",
        "180 engine_failed: out of memory in round … pair-a · on 3 workers · first in line 1",
        "20 invalid_request: temperature is … pair-b · on mini-1 · first in line 10",
        "1 to 50 of 200",
        "line 1 · r-1 · pair-a · mini-1 · 3 tries · 2025-11-27 12:00:00 UTC",
    ):
        assert word in words, word
    page.click("#reasons a")
    page.wait("document.body.innerText.includes('1 to 50 of 180')")
    assert "--retry-failed --reason 'engine_failed: out of memory in round'" in page.text
    page.click("[rel=next]")
    page.wait("document.body.innerText.includes('51 to 100 of 180')")
    page.js("document.querySelector('select').value = 'pair-b'")
    page.js("document.querySelector('[type=search]').value = ''")
    page.click("#filter button")
    page.wait("document.body.innerText.includes('1 to 20 of 20')")
    page.click("header a")
    page.wait(f"{rows('#batches .failed')} === 1")
    assert not page.problems


@in_a_browser
def test_it_needs_no_script_and_reads_well_everywhere(
    redis: redis_py.Redis, read_only: Dashboard, page: Page, tmp_path: Path
) -> None:
    fail(redis, 60)
    page.send("Emulation.setScriptExecutionDisabled", value=True)
    try:
        for dark in (False, True):
            for size in (DESK, PHONE):
                page.open(f"{read_only.url}/failures?batch=batch_a&page=2", size, dark)
                assert "51 to 60 of 60" in page.text
                assert page.js("[innerWidth, document.documentElement.scrollWidth <= innerWidth]") == [size[0], True]
                assert page.js(CONTRASTS) == []
                page.screenshot(tmp_path / f"{dark}-{size[0]}.png")
    finally:
        page.send("Emulation.setScriptExecutionDisabled", value=False)
    assert page.js("[...document.querySelectorAll('input:not([type=hidden]), select')].every(e => e.labels.length)")


@in_a_browser
def test_what_others_wrote_is_text(redis: redis_py.Redis, keyed: Dashboard, page: Page) -> None:
    attack = "<img src=x onerror='window.hacked=1'><script>window.hacked=1</script>\"&amp;<b>{{ 7 * 7 }}"
    fail(redis, 1, f"b-{attack}", attack + "x" * 3000)
    value = f"failed 2 1-0 {attack} {'y' * 900}\n\n1764244800000 3 {attack.replace(' ', '')} w {attack}"
    redis.hset(wire.failures_key(f"b-{attack}"), "job", value)
    sign_in(page, keyed.url, PHONE)
    query = httpx.QueryParams({"batch": f"b-{attack}", "reason": "<"})
    page.open(f"{keyed.url}/failures?{query}", PHONE)
    assert page.text.count("<img src=x onerror=") >= 4
    assert page.js("[typeof window.hacked, document.querySelectorAll('main img, script, b').length]") == [
        "undefined",
        0,
    ]
    assert page.js("document.querySelector('[type=search]').value") == "<"
    assert page.js("[innerWidth, document.documentElement.scrollWidth]") == [PHONE[0], PHONE[0]]
    assert "49" not in page.js("document.querySelector('#failures').textContent")


def test_who_may_look(redis: redis_py.Redis, keyed: Dashboard, read_only: Dashboard) -> None:
    fail(redis, 1)
    there = f"{read_only.url}/failures"
    assert httpx.get(f"{there}?batch=batch_a", headers={"Host": "elsewhere.example"}).status_code == 403
    assert httpx.get(f"{there}?batch=none").status_code == 404
    found = httpx.get(there, params={"batch": "batch_a", "page": "x" * 99})
    assert (found.status_code, found.headers["cache-control"]) == (200, "no-store")
    signed_out = httpx.get(f"{keyed.url}/failures?batch=batch_a")
    assert (signed_out.status_code, "reviews.csv" in signed_out.text) == (303, False)


def test_ten_thousand_failures_cost_little_and_more_are_not_read(redis: redis_py.Redis) -> None:
    fail(redis, 10_000)
    page = FailuresPage(redis, STATIC)
    begin = time.process_time()
    text = page.write(Asked("batch_a", page=200)) or ""
    assert time.process_time() - begin < 1
    assert "9,951 to 10,000 of 10,000" in text
    assert len(text) < 40_000
    fail(redis, MOST_READ + 5000)
    before = redis.info("stats")["total_net_output_bytes"]
    text = page.write(Asked("batch_a", "temperature")) or ""
    assert redis.info("stats")["total_net_output_bytes"] - before < MOST_READ * 250
    assert "25,000 of 25,000 lines failed" in text
    assert "This page has read 20," in text
    assert len(orjson.dumps(text)) < 40_000
