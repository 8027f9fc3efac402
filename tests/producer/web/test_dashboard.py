"""`draftmill dashboard` as people see it: a real server process, a real Redis, real workers, headless Chromium."""

from __future__ import annotations

import re
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import orjson
import pytest
import redis as redis_py

from draftmill.producer.queue import batches, wire
from draftmill.producer.queue.batches import BatchInfo
from draftmill.producer.queue.errors import UserError
from draftmill.producer.queue.fleet import Report
from draftmill.producer.queue.leases import JobQueue
from draftmill.producer.web.dashboard.history import History
from draftmill.producer.web.dashboard.view import MOST_BATCHES, Observer
from draftmill.producer.web.keys import Keys
from tests.producer.conftest import ROOT, Shell
from tests.producer.queue.helpers import expire
from tests.producer.web.browser import DESK, PHONE, PROGRAM, Page, browser
from tests.redis_server import RedisServer, fresh_server
from tests.worker.run_worker import PAIR, Settings

LEASE = 3.0
KEY = "key-of-ann"

in_a_browser = pytest.mark.skipif(PROGRAM is None, reason="no Chromium here: apt-get install chromium")


class Dashboard:
    """One `draftmill dashboard` process; `url` is where it listens."""

    def __init__(self, shell: Shell, redis: str, *options: str) -> None:
        log = shell.folder / f"dashboard-{len(list(shell.folder.iterdir()))}.log"
        with log.open("wb") as file:
            self.process = shell.start("dashboard", "--port", "0", "--redis-url", redis, *options, stderr=file)
        deadline = time.monotonic() + 20
        while not (found := re.search(r"dashboard at (\S+),", log.read_text())):
            assert self.process.poll() is None, log.read_text()
            assert time.monotonic() < deadline
            time.sleep(0.02)
        self.url = found[1]
        self.log = log

    def stop(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(10)


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    with browser(tmp_path_factory.mktemp("browser")) as page:
        yield page


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Shell:
    folder = tmp_path_factory.mktemp("dashboard")
    return Shell(folder, folder / "home")


@pytest.fixture(scope="module")
def read_only(redis_server: RedisServer, folder: Shell) -> Iterator[Dashboard]:
    dashboard = Dashboard(folder, redis_server.url)
    yield dashboard
    assert dashboard.stop() == 0


@pytest.fixture(scope="module")
def keyed(redis_server: RedisServer, folder: Shell) -> Iterator[Dashboard]:
    dashboard = Dashboard(folder, redis_server.url, "--key-file", folder.write("keys", f"ann:{KEY}\n"))
    yield dashboard
    assert dashboard.stop() == 0


def submit(
    redis: redis_py.Redis, count: int, id: str = "batch_a", source: str = "reviews.csv", tokens: int = 20
) -> None:
    info = BatchInfo(id, PAIR, "normal", count, source, "ann")
    sampling = wire.Sampling(max_tokens=tokens)
    bodies = [
        wire.JobBody(batch=id, custom_id=f"r-{n}", pair=PAIR, prompts=("a secret",), sampling=sampling, line=n + 1)
        for n in range(count)
    ]
    batches.create(redis, info)
    batches.submit_chunk(redis, info, bodies)


def start_worker(server: RedisServer) -> subprocess.Popen[bytes]:
    command = Settings(server.url, str(server.folder / "spool"), lease=LEASE).command()
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def report(redis: redis_py.Redis, name: str, **fields: Any) -> None:
    """What a worker would say of itself in a heartbeat now."""
    now = time.time()
    redis.hset(wire.worker_key(name), mapping={"seen": now, "started": now, "lease": 60, "host": name, **fields})
    redis.zadd(wire.WORKERS, {name: now})


def rows(selector: str) -> str:
    return f"document.querySelectorAll({orjson.dumps(selector).decode()}).length"


@in_a_browser
def test_a_running_farm(redis: redis_py.Redis, redis_server: RedisServer, read_only: Dashboard, page: Page) -> None:
    long = "far too long " * 400
    submit(redis, 3000)
    info = BatchInfo("batch_b", PAIR, "high", 1, "long.jsonl", "bob")
    batches.create(redis, info)
    batches.submit_chunk(
        redis, info, [wire.JobBody(batch="batch_b", custom_id="the-long-one", pair=PAIR, prompts=(long,))]
    )
    workers = [start_worker(redis_server), start_worker(redis_server)]
    try:
        page.open(read_only.url)
        page.js("window.sameDocument = true")
        page.wait(f"{rows('#workers .state[data-state=working]')} === 2", 20)
        page.wait("document.querySelector('#batches .state').textContent === 'running'")
        assert page.js("document.getElementById('connection').textContent") == "live"
        words = " ".join(page.text.split())
        for word in ("workers 2", "reviews.csv batch_a · set-speed · ann", "of 3,000", "v0."):
            assert word in words, word
        ended = page.js("document.querySelector('#batches progress').value")
        page.wait(f"document.querySelector('#batches progress').value > {ended}")
        page.wait("document.querySelector('#batches .left').textContent.endsWith(' left')")
        page.wait("document.querySelector('#failures').innerText.includes('the-long-one')")
        assert "1200 tokens, the context 1000" in page.text
        page.wait("Number(document.querySelector('figcaption output').textContent.replace(',', '')) > 0")
        assert page.js(rows("#charts canvas")) == 3

        workers[0].kill()
        took = page.wait(f"{rows('#workers .state[data-state=gone]')} === 1", 3 * LEASE)
        assert took < 2 * LEASE
        page.wait("document.body.innerText.includes('1 gone')")
        assert "no heartbeat" in page.text
        assert page.js("window.sameDocument"), "the page was loaded again"
        for secret in ("a secret", "far too long"):
            assert secret not in page.js("document.documentElement.outerHTML")
        assert page.js(rows("#batches button")) == 0
        assert all(url.startswith(read_only.url) for url in page.requests), set(page.requests)
        assert not page.problems
    finally:
        for worker in workers:
            worker.kill()
            worker.wait()


CONTRASTS = """(() => {
    const parse = (text) => text.match(/[\\d.]+/g).map(Number);
    const light = (rgb) => rgb.slice(0, 3).map(v => v / 255)
        .map(v => v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
        .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
    const behind = (e) => { for (; e; e = e.parentElement) {
        const rgb = parse(getComputedStyle(e).backgroundColor); if (rgb[3] !== 0) return rgb; } };
    return [...document.querySelectorAll('body *')]
        .filter(e => e.checkVisibility() && [...e.childNodes].some(n => n.nodeType === 3 && n.data.trim()))
        .map(e => { const [a, b] = [light(parse(getComputedStyle(e).color)), light(behind(e))].sort((x, y) => y - x);
                    return [(a + 0.05) / (b + 0.05), e.textContent.slice(0, 40)]; })
        .filter(([ratio]) => ratio < 4.5);
})()"""
"""Texts whose contrast is below what WCAG 2 asks for (level AA)."""


@in_a_browser
def test_light_and_dark_on_desk_and_phone(
    redis: redis_py.Redis, read_only: Dashboard, page: Page, tmp_path: Path
) -> None:
    submit(redis, 5, source="a-rather-long-name-of-a-file-that-somebody-chose-on-a-wide-screen-2026-11-22.jsonl")
    for n, what in enumerate(("working", "draining", "drained", "refusing")):
        report(redis, f"mini-{n}", state=what, reason="says why", chip="Apple M4 Pro", memory=48 * 2**30, in_flight=n,
               os="macOS 26.1", version="0.1.0", thermal="serious", power_watts=40, tokens_per_second=100,
               accepted=30, row_rounds=10, pair="qwen3.5-35b-a3b")  # fmt: skip
    report(redis, "mini-4", seen=time.time() - 90, started=0, state="working")
    redis.xadd(wire.FAILED, {"batch": "batch_a", "custom_id": "r-1", "worker": "mini-1", "reason": "temperature is 9"})
    grounds = set()
    for dark in (False, True):
        for size in (DESK, PHONE):
            page.open(read_only.url, size, dark)
            page.wait(f"{rows('#workers tbody tr')} === 5 && {rows('#batches progress')} === 1")
            assert page.js("[innerWidth, document.documentElement.scrollWidth <= innerWidth]") == [size[0], True]
            assert page.js(CONTRASTS) == []
        grounds.add(page.js("getComputedStyle(document.body).backgroundColor"))
        screenshot = tmp_path / f"{dark}.png"
        page.screenshot(screenshot)
        assert screenshot.stat().st_size > 20_000
    assert len(grounds) == 2
    words = " ".join(page.text.split())
    for word in (
        "Apple M4 Pro · 48 GB · macOS 26.1 · v0.1.0",
        "says why · thermal serious",
        "4.00",
        "40.0 W · 111 Wh/M",
    ):
        assert word in words, word
    assert "Wh per million tokens 111" in words
    unnamed = "[...document.querySelectorAll('button, progress, img, [role=img], table, input')]"
    unnamed += ".filter(e => e.checkVisibility() && !(e.ariaLabel || e.innerText || e.hasAttribute('alt')"
    assert page.js(f"{unnamed} || e.hasAttribute('aria-labelledby'))).map(e => e.outerHTML)") == []
    assert page.js("getComputedStyle(document.querySelector('#workers thead')).display") != "none"


@in_a_browser
def test_names_are_text(redis: redis_py.Redis, keyed: Dashboard, page: Page) -> None:
    attack = "<img src=x onerror='window.hacked=1'><script>window.hacked=1</script>\"><b>'`${1}"
    long = "x" * 5000
    submit(redis, 2, id=f"b-{attack}", source=attack)
    submit(redis, 2, id="batch_long", source=long)
    report(
        redis, attack, pair=attack, chip=attack, os=attack, state=attack, reason=attack, thermal=attack, version=long
    )
    redis.xadd(wire.FAILED, {"batch": attack, "custom_id": attack, "worker": attack, "reason": attack + long})
    sign_in(page, keyed.url, PHONE)
    page.wait(
        f"{rows('#workers tbody tr')} === 1 && {rows('#failures .reason')} === 1 && {rows('#batches button')} === 2"
    )
    page.click("#batches button")
    page.wait("document.getElementById('confirm').open")
    assert page.js("[typeof window.hacked, document.querySelectorAll('main img, main script, main b').length]") == [
        "undefined",
        0,
    ]
    assert page.text.count("<img src=x onerror=") >= 8
    assert page.js("[innerWidth, document.documentElement.scrollWidth]") == [PHONE[0], PHONE[0]]
    assert len(page.js("document.documentElement.outerHTML")) < 40_000


def sign_in(page: Page, url: str, size: tuple[int, int] = DESK) -> None:
    page.send("Network.clearBrowserCookies")
    page.open(url, size)
    page.wait("document.activeElement.id === 'key'")
    page.type(KEY)
    page.click("button")
    page.wait("!!document.getElementById('user')?.textContent")


@in_a_browser
def test_who_signs_in_may_cancel(redis: redis_py.Redis, keyed: Dashboard, page: Page) -> None:
    submit(redis, 40)
    page.send("Network.clearBrowserCookies")
    page.open(keyed.url)
    assert "reviews.csv" not in page.text
    page.wait("document.activeElement.id === 'key'")
    page.type("key-of-eve")
    page.click("button")
    page.wait("document.body.innerText.includes('not accepted')")
    sign_in(page, keyed.url)
    page.wait(f"{rows('#batches button')} === 1")
    page.click("#batches button")
    page.wait("document.getElementById('confirm').open")
    assert "40 lines without a result" in page.text
    page.click("#confirm form button")  # keep it
    page.wait("!document.getElementById('confirm').open")
    assert not status(redis).is_cancelled
    page.click("#batches button")
    page.click("#confirm-yes")
    page.wait("document.querySelector('#batches .state').textContent === 'cancelled'")
    assert (status(redis).cancelled, status(redis).complete) == (40, True)
    assert "ann cancelled batch_a" in keyed.log.read_text()
    page.click("#account button")
    page.wait("!!document.getElementById('key')")


def status(redis: redis_py.Redis) -> batches.BatchStatus:
    found = batches.status(redis, "batch_a")
    assert found
    return found


def test_changes_are_for_those_who_signed_in_on_this_page(redis: redis_py.Redis, keyed: Dashboard) -> None:
    submit(redis, 3)
    path, ours = "/batches/batch_a/cancel", {"Origin": keyed.url}
    with httpx.Client(base_url=keyed.url) as client:
        assert [client.get(path).status_code for path in ("/", "/events", "/session")] == [401] * 3
        assert client.post(path, headers=ours).status_code == 401
        for headers in ({}, {"Origin": "https://elsewhere.example"}, {"Origin": "null"}):
            assert client.post("/sign-in", data={"key": KEY}, headers=headers).status_code == 403
        assert client.post("/sign-in", data={"key": "x" * 5000}, headers=ours).status_code == 413
        signed_in = client.post("/sign-in", data={"key": KEY}, headers=ours)
        assert signed_in.status_code == 303
        cookie = signed_in.headers["set-cookie"].lower()
        assert "httponly" in cookie
        assert "samesite=strict" in cookie
        token = {"X-Draftmill-Token": client.get("/session").json()["token"]}
        for headers in (
            ours,
            token,
            token | {"Origin": "https://elsewhere.example"},
            ours | {"X-Draftmill-Token": "x"},
        ):
            assert client.post(path, headers=headers).status_code == 403
        assert not status(redis).is_cancelled
        assert client.get(path, headers=ours | token).status_code == 405
        assert client.post("/batches/batch_c/cancel", headers=ours | token).status_code == 404
        assert client.post(path, headers=ours | token).status_code == 204
        assert status(redis).cancelled == 3
        assert client.post(path, headers=ours | token).json() == {"error": "This batch has ended already."}
        client.post("/sign-out", headers=ours)
        assert client.post(path, headers=ours | token).status_code == 401


def test_without_keys_it_is_read_only_and_for_this_machine(redis: redis_py.Redis, read_only: Dashboard) -> None:
    submit(redis, 3)
    with httpx.Client(base_url=read_only.url) as client:
        refused = client.post("/batches/batch_a/cancel", headers={"Origin": read_only.url})
        assert (refused.status_code, "read-only" in refused.json()["error"]) == (403, True)
        assert not status(redis).is_cancelled
        found = client.get("/")
        assert found.status_code == 200
        assert "default-src 'none'; script-src 'self'; style-src 'self'" in found.headers["content-security-policy"]
        assert "unsafe" not in found.headers["content-security-policy"]
        assert client.get("/static/../app.py").status_code == 404
        for path in ("/", "/events", "/session"):  # a name of the web that was pointed at this machine
            assert client.get(path, headers={"Host": "elsewhere.example"}).status_code == 403


def test_others_need_a_key(shell: Shell, redis_server: RedisServer) -> None:
    refused = shell("dashboard", "--host", "0.0.0.0", "--redis-url", redis_server.url)
    assert refused.returncode == 2
    assert refused.stderr.splitlines() == [
        "Error: to listen on 0.0.0.0 others must show an API key: name a file of keys with --key-file "
        "or set DRAFTMILL_API_KEY"
    ]
    for host in ("::", "192.0.2.1", "fleet.example"):
        with pytest.raises(UserError):
            Keys().suffice_for(host, "--key-file")
    for host in ("127.0.0.1", "::1", "localhost"):
        Keys().suffice_for(host, "--key-file")


def events(url: str, until: str, seconds: float = 20) -> dict[str, Any]:
    """The first of each event that a page gets, until one has come that is called `until`."""
    found: dict[str, Any] = {}
    with httpx.stream("GET", f"{url}/events", timeout=seconds) as response:
        assert response.headers["content-type"].startswith("text/event-stream")
        assert response.headers["x-accel-buffering"] == "no"
        name = ""
        for line in response.iter_lines():
            if line.startswith("event: "):
                name = line.removeprefix("event: ")
            elif line.startswith("data: "):
                found.setdefault(name, orjson.loads(line.removeprefix("data: ")))
                if name == until:
                    break
    return found


@in_a_browser
def test_a_thousand_batches_and_fifty_workers(redis: redis_py.Redis, read_only: Dashboard, page: Page) -> None:
    now = time.time()
    with redis.pipeline() as pipe:
        for n in range(1000):
            key = wire.batch_key(f"batch_{n}")
            done = 0 if n < 20 else 90 if n < 70 else 100
            counts = {"total": 100, "submitted": 100, "done": done, "running": 10 if 20 <= n < 70 else 0}
            pipe.hset(
                key, mapping={"pair": PAIR, "source": f"{n}.csv", "created": now + n, "parameters": "{}", **counts}
            )
            pipe.zadd(wire.BATCHES, {f"batch_{n}": now + n})
        pipe.execute()
    for n in range(50):
        report(redis, f"mini-{n:02}", state="working", tokens_per_second=10, pair=PAIR)
    observer = Observer(redis)
    observer.look()
    begin = time.perf_counter()
    view = observer.look()
    assert time.perf_counter() - begin < 0.2
    assert len(view.parts["batches"]) == MOST_BATCHES
    assert {batch["state"] for batch in view.parts["batches"]} == {"running"}
    assert view.queued == 20 * 100
    assert len(orjson.dumps(view.parts)) < 60_000
    page.open(read_only.url)
    assert page.wait(f"{rows('#batches > li')} === {MOST_BATCHES} && {rows('#workers tbody tr')} === 50") < 3
    page.wait(f"document.getElementById('batches-note').textContent === '{MOST_BATCHES} of 1,000'")
    redis.hset(wire.batch_key("batch_69"), mapping={"done": 100, "running": 0})
    page.wait("!document.getElementById('batches').innerText.includes('batch_69 ')")
    first = events(read_only.url, "failures")
    assert first["totals"]["running_batches"] == 49
    assert first["totals"]["tokens_per_second"] == 500


@in_a_browser
def test_it_says_so_while_redis_is_away(folder: Shell, page: Page) -> None:
    with fresh_server() as server:
        dashboard = Dashboard(folder, server.url)
        page.open(dashboard.url)
        page.wait("document.getElementById('connection').textContent === 'live'")
        server.kill()
        page.wait("document.getElementById('trouble').innerText.includes('cannot reach Redis')")
        server.start()
        page.wait("document.getElementById('trouble').hidden")
        assert dashboard.stop() == 0
        page.wait("document.getElementById('connection').dataset.state === 'lost'", 3)


def test_failures_are_told_with_their_reasons_and_no_more_than_a_hundred(redis: redis_py.Redis) -> None:
    submit(redis, 130)
    queue = JobQueue(redis, "mini-1", PAIR, lease=60)
    for _ in range(wire.MAX_LEASES):
        jobs = [job for _ in range(130) for job in queue.claim(50)]
        queue.blame(jobs)
        redis.hset("draftmill:alive", mapping={"60000": 0, "last": int(time.time() * 1000) + 1000})
        expire(redis, *jobs)
        while any(queue.reap()):
            pass
    assert status(redis).failed == 130
    assert redis.xlen(wire.FAILED) == 100
    failure, *others = Observer(redis).look().parts["failures"]
    assert len(others) == 19
    assert failure["reason"] == "given up: the worker that ran this request died or was cut off, 3 times"
    assert (failure["batch"], failure["worker"]) == ("batch_a", "mini-1")
    assert failure["custom_id"].startswith("r-")


def test_forgotten_batches_leave_no_failures(redis: redis_py.Redis) -> None:
    for batch in ("batch_a", "batch_b"):
        batches.create(redis, BatchInfo(batch, PAIR, "normal", 0))
        redis.xadd(wire.FAILED, {"batch": batch, "custom_id": "r-1", "worker": "w", "reason": "x"})
    batches.forget(redis, "batch_a")
    assert [failure["batch"] for failure in Observer(redis).look().parts["failures"]] == ["batch_b"]


def test_tokens_per_round_of_a_fleet_are_sums_over_sums() -> None:
    def at(name: str, accepted: int, rounds: int) -> Report:
        return Report(name, 0, {"accepted": str(accepted), "row_rounds": str(rounds)})

    history = History()
    history.add(0, 0, 0, [at("a", 1000, 1000), at("b", 0, 0)])
    history.add(5, 90, 7, [at("a", 1300, 1100), at("b", 0, 300), at("new", 9, 9)])
    assert history.columns == [[0, 5], [0, 90], [None, 1.75], [0, 7]]


@pytest.mark.parametrize("name", ["dashboard-light.png", "dashboard-dark-phone.png"])
def test_pictures_of_the_readme_are_small(name: str) -> None:
    picture = (ROOT / "deploy" / "screenshots" / name).read_bytes()
    assert picture.startswith(b"\x89PNG")
    assert len(picture) < 150_000
    assert f"/deploy/screenshots/{name}" in (ROOT / "producer" / "web" / "README.md").read_text("utf-8")
