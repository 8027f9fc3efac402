"""Wrong keys are slowed down, right ones are not: at the API and at the live page."""

from __future__ import annotations

from collections.abc import Iterator

import httpx
import pytest

from draftmill.producer.web import door
from draftmill.producer.web.door import Closed, Door
from draftmill.producer.web.keys import Keys
from tests.producer.conftest import Shell
from tests.producer.web.serving import Server
from tests.producer.web.test_dashboard import Dashboard
from tests.redis_server import RedisServer

KEY, OTHER = "key-of-ann", "key-of-bob"


class Clock:
    """Seconds that pass when told."""

    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def guarded(clock: Clock) -> Door:
    return Door(Keys([f"ann:{KEY}", f"bob:{OTHER}"]), clock)


def guess(guarded: Door, count: int, address: str = "10.0.0.7") -> None:
    for n in range(count):
        assert guarded.user(f"guess-{n}", address) is None


def wait(guarded: Door, address: str = "10.0.0.7", key: str = "guess") -> int:
    """How long the address has to wait; it shows a wrong key if it need not."""
    try:
        guarded.user(key, address)
    except Closed as closed:
        return closed.seconds
    return 0


def test_each_wrong_key_after_the_fifth_doubles_the_wait(guarded: Door, clock: Clock) -> None:
    guess(guarded, 5)
    waits = []
    for _ in range(9):
        waits.append(wait(guarded))
        clock.now += waits[-1]
        assert wait(guarded) == 0, "it may try again, once"
    assert waits == [4, 8, 16, 32, 64, 128, 256, 300, 300]


def test_while_an_address_waits_no_new_key_opens_not_even_a_right_one(guarded: Door, clock: Clock) -> None:
    assert guarded.user(KEY, "10.0.0.7") == "ann"
    guess(guarded, 5)
    assert guarded.user(KEY, "10.0.0.7") == "ann", "who used it there before does not wait"
    assert wait(guarded, key=OTHER) == 4
    assert guarded.user(OTHER, "10.0.0.8") == "bob", "another address is not meant"
    clock.now += 4
    assert guarded.user(OTHER, "10.0.0.7") == "bob"
    assert wait(guarded) == 0
    assert wait(guarded) == 8, "a right key does not excuse wrong ones"


def test_mistyping_now_and_then_costs_nothing(guarded: Door, clock: Clock) -> None:
    for _ in range(50):
        guess(guarded, 4)
        clock.now += 61
    guess(guarded, 5)
    clock.now += 3601
    guess(guarded, 5)


def test_a_network_of_ipv6_is_one_address(guarded: Door) -> None:
    guess(guarded, 5, "2001:db8::1")
    assert wait(guarded, "2001:db8::ffff:2") == 4
    assert wait(guarded, "2001:db8:0:1::1") == 0
    guess(guarded, 5, "::ffff:10.0.0.9")
    assert wait(guarded, "10.0.0.9") == 4


def test_it_remembers_so_many_addresses_and_no_more(guarded: Door, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(door, "MOST", 10)
    guess(guarded, 5, "10.0.0.1")
    for n in range(2, 30):
        assert guarded.user(KEY, f"10.0.0.{n}") == "ann"
    assert wait(guarded, "10.0.0.1") == 4, "right keys do not push wrong ones out"
    for n in range(2, 30):
        guess(guarded, 1, f"10.0.0.{n}")
    assert wait(guarded, "10.0.0.1") == 0


@pytest.fixture
def keyed(redis_server: RedisServer, shell: Shell) -> Iterator[Server]:
    server = Server(shell, redis_server.url, "--api-key-file", shell.write("keys", f"ann:{KEY}\nbob:{OTHER}\n"))
    server.start()
    yield server
    server.kill()


def test_the_api_answers_429_and_says_how_long(keyed: Server) -> None:
    def ask(key: str) -> httpx.Response:
        return httpx.get(f"{keyed.base}/models", headers={"Authorization": f"Bearer {key}"})

    assert ask(KEY).status_code == 200
    assert [ask(f"guess-{n}").status_code for n in range(5)] == [401] * 5
    refused = ask("guess")
    assert refused.status_code == 429
    assert 0 < int(refused.headers["Retry-After"]) <= 4
    error = refused.json()["error"]
    assert (error["code"], error["type"]) == ("too_many_wrong_keys", "rate_limit_error")
    assert ask(KEY).status_code == 200
    assert httpx.get(f"{keyed.base}/models").status_code == 401, "to show no key is no guess"


def test_the_page_says_how_long(redis_server: RedisServer, shell: Shell) -> None:
    page = Dashboard(shell, redis_server.url, "--key-file", shell.write("keys", f"ann:{KEY}\n"))
    with httpx.Client(base_url=page.url, headers={"Origin": page.url}) as client:
        assert [client.post("/sign-in", data={"key": f"guess-{n}"}).status_code for n in range(5)] == [401] * 5
        refused = client.post("/sign-in", data={"key": KEY})
        assert refused.status_code == 429
        assert int(refused.headers["Retry-After"]) <= 4
        assert "Too many wrong keys" in refused.text
    assert page.stop() == 0
