"""A Redis that was away for longer than a lease takes no leases from workers that live."""

from __future__ import annotations

import time
from typing import Any

from draftmill.producer.queue import wire
from tests.producer.queue.helpers import outcome, queue
from tests.worker.conftest import Mill


def test_nothing_is_taken_back_for_one_lease_after_redis_was_away(mill: Mill) -> None:
    mill.submit(2)
    dead, living = queue(mill, "dead", lease=0.4), queue(mill, "living", lease=0.4)
    living.renew([])
    (lost,), (kept,) = dead.claim(1), living.claim(1)
    mill.server.kill()
    time.sleep(1)
    mill.server.start()
    assert living.reap() == (0, 0, 0)  # before anybody could renew
    assert living.renew([kept]) == []
    for _ in range(3):
        assert living.reap() == (0, 0, 0)
        time.sleep(0.1)
        assert living.renew([kept]) == []
    time.sleep(0.15)
    living.renew([kept])
    assert living.reap() == (1, 0, 0)
    assert [job.id for job in living.claim(4)] == [lost.id]
    assert living.commit([outcome(kept)]) == [True]


def test_each_length_of_leases_has_its_own_patience(mill: Mill) -> None:
    mill.submit(2)
    short, long = queue(mill, "short", lease=0.2), queue(mill, "long", lease=30)
    for w in (long, short):
        w.renew([])
    (job,) = short.claim(1)
    (kept,) = long.claim(1)
    time.sleep(0.5)  # an outage for the one, not for the other
    long.renew([kept])
    assert long.reap() == (0, 0, 0)
    assert short.renew([job]) == []
    begin = mill.redis.hmget("draftmill:alive", "200", "30000")
    assert int(begin[0] or 0) - int(begin[1] or 0) >= 500


def test_living_workers_lose_nothing_to_a_long_outage(mill: Mill) -> None:
    mill.submit(16, tokens=400)
    workers = [mill.start(rows=8, round_seconds=0.01, lease=2) for _ in range(2)]
    mill.wait(lambda status: status.running >= 16)
    mill.server.kill()
    time.sleep(6)
    mill.server.start()
    mill.wait(lambda status: status.done == 16)
    for worker in workers:
        code, logged = mill.stop(worker)
        assert code == 0
        assert "took back" not in logged
    keys = [f"rq:job:{wire.job_id('b', f'r-{n}')}" for n in range(16)]
    leases: list[Any] = [mill.redis.hmget(key, "worker_name", "lease") for key in keys]
    assert len({tuple(lease) for lease in leases if all(lease)}) == 16
