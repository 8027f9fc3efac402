"""The queue as a worker sees it: claim, renew, commit, release, retry, reap. Each is one Lua script, so atomic."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import redis as redis_py

from . import wire
from .connect import bearable
from .ending import repair, sweep
from .scripts import Script, run, run_all, script

CLAIM, BLAME, RENEW, COMMIT, RELEASE, RETRY, REAP = (
    script(name) for name in ("claim", "blame", "renew", "commit", "release", "retry", "reap")
)
BEAT, COMPARE = script("fleet/beat", ("clock",)), script("fleet/pace", ("clock", "turns"))

MOST_REAPED, MOST_BATCHES = 200, 50
"""Expired leases that one call of the reap script takes back, and batches that it looks at."""

MOST_COMMITTED = 16
"""Outcomes that one call of the commit script records: Redis does nothing else meanwhile."""

RETRY_SECONDS = 5.0
"""Until the second try of a job that failed through no fault of its own; the third comes after four times as long."""


Status = Literal["done", "failed", "cancelled", "retry", "returned"]
"""How a claimed job ends; `returned` ones are handed back unfinished."""


@dataclass(frozen=True)
class Claimed:
    """A job leased to this worker.

    `data` is RQ's, not yet decoded; `waited` is its seconds in the queue. `alone` marks a job on its last lease:
    it may have killed the workers before, and must not take others with it. `keep` is the JSON object that its
    result hands back, or empty.
    """

    id: str
    data: bytes
    token: str
    batch: str
    custom_id: str
    waited: float
    alone: bool = False
    keep: bytes = b""


@dataclass(frozen=True)
class Outcome:
    """How a claimed job ended, and the line to record for it; or that it is to be tried again, and why.

    `joules` are what its machine drew for it, or None if nobody knows.
    """

    job: Claimed
    status: Status
    line: bytes
    prompt_tokens: int = 0
    completion_tokens: int = 0
    reason: str = ""
    joules: float | None = None


class Drop(NamedTuple):
    """A claimed job that the worker should no longer run, and why; `token` is the lease that was lost."""

    id: str
    why: Literal["lost", "cancelled", "stopped", "overdue"]
    token: str = ""


class Pace(NamedTuple):
    """How fast a worker's rows are beside those of its fleet; all 0 while that is unknown.

    `behind` and `meanwhile` count jobs, as `fleet/pace.lua` says. The mean job of this worker has `size` tokens, as far
    as they were asked for, and takes one of its rows `seconds`.
    """

    behind: float = 0.0
    meanwhile: float = 0.0
    size: float = 1.0
    seconds: float = 0.0


UNKNOWN = Pace()


class Reaped(NamedTuple):
    """Jobs that were queued again, given up as poison, and ended because RQ's tools had cancelled or deleted them."""

    requeued: int
    poisoned: int
    taken: int = 0

    def plus(self, other: Reaped) -> Reaped:
        return Reaped(*map(sum, zip(self, other, strict=True)))


class JobQueue:
    """The queues of one pair: each batch has one, and they take turns.

    Args:
        redis: a client; threads may share it, its pool gives each its own connection.
        worker: name of the worker, without a colon.
        pair: the pair whose jobs the worker runs.
        lease: seconds that a claimed job stays the worker's without being renewed.

    `passed` is whether the last claim passed jobs to faster workers.
    """

    def __init__(self, redis: redis_py.Redis, worker: str, pair: str, lease: float) -> None:
        self.redis = redis
        self.worker = worker
        self.pair = pair
        self.lease = lease
        self.passed = False
        self._passing = [b"0", b"0"]  # since when, and the longest job, as claim.lua has it
        self._numbers = itertools.count(1)

    def claim(self, n: int, ahead: int = 0, held: int = 0, pace: Pace = UNKNOWN) -> list[Claimed]:
        """Lease up to `n` jobs, `ahead` of them not for a free row; `held` is how many the worker has already.

        Near the end of the queue a worker of slow `pace` passes jobs to faster ones.
        """
        first = next(itertools.islice(self._numbers, n - 1, None)) - n + 1
        counts = (first, n, ahead, held)
        how_fast = pace.behind, pace.meanwhile, pace.size, pace.seconds * 1000
        found, passed, *self._passing = self._run(
            CLAIM, self.worker, self._lease_ms, *counts, wire.slug(self.pair), *how_fast, *self._passing
        )
        self.passed = bool(passed)
        return [
            Claimed(
                id.decode(),
                data,
                token.decode(),
                batch.decode("utf-8", "replace"),
                custom_id.decode("utf-8", "replace"),
                waited_ms / 1000,
                bool(alone),
                keep,
            )
            for id, data, token, batch, custom_id, waited_ms, alone, keep in found
        ]

    def compare(self, speed: float, rows: int) -> tuple[float, float]:
        """Note that so many rows of this worker take jobs, each with a `speed` in tokens a second, 0 if unknown.

        Returns `behind` and `meanwhile` of its pace.
        """
        behind, meanwhile = self._run(COMPARE, self.worker, wire.slug(self.pair), speed, rows, self._lease_ms)
        return float(behind), float(meanwhile)

    def wait(self, seconds: float) -> bool:
        """Wait until Redis calls this worker to look for jobs; False if it did not within `seconds`."""
        return self.redis.blpop([wire.bell_key(self.pair)], bearable(self.redis, seconds)) is not None

    def may_have_jobs(self) -> bool:
        """Whether a claim could find any; costs Redis a third of a claim that finds none."""
        return bool(self.redis.exists(*wire.waiting_keys(self.pair)))

    def pass_on(self) -> None:
        """Let another worker have a call that this one has no use for."""
        with self.redis.pipeline(transaction=True) as pipe:
            pipe.rpush(wire.bell_key(self.pair), "")
            pipe.expire(wire.bell_key(self.pair), wire.BELL_SECONDS)
            pipe.execute()

    def blame(self, starting: Iterable[Claimed], waiting: Iterable[Claimed] = ()) -> None:
        """Say that `starting` are about to be in a row, and `waiting` are not: the leases of those count, if lost."""
        states = [
            part for jobs, state in ((starting, 1), (waiting, 0)) for job in jobs for part in (*_pair(job), state)
        ]
        if states:
            self._run(BLAME, *states)

    def renew(self, jobs: Iterable[Claimed]) -> list[Drop]:
        """Extend the leases of `jobs`; returns those that are lost or cancelled. Call it also without jobs: it notes
        that Redis is within reach.
        """
        tokens = {job.id: job.token for job in jobs}
        pairs = [part for pair in tokens.items() for part in pair]
        found = [(id.decode(), why.decode()) for id, why in self._run(RENEW, self._lease_ms, *pairs)]
        return [Drop(id, why, tokens[id]) for id, why in found]

    def leases(self) -> list[tuple[str, str]]:
        """The jobs that Redis says are leased to this worker, each with its token, in the order in which they were
        claimed. Looks at all jobs that run: it is for who stands in for a worker that died.
        """
        queues: Any = self.redis.hkeys(wire.RUNNING)
        with self.redis.pipeline(transaction=False) as pipe:
            for queue in queues:
                pipe.zrange(wire.leased_key(queue.decode()), 0, -1)
            held = [lease.decode().split(":") for found in pipe.execute() for lease in found]
        own = [(job, token) for job, token in held if token.rsplit(".", 2)[0] == self.worker]
        return sorted(own, key=lambda lease: int(lease[1].rpartition(".")[2]))

    def commit(self, outcomes: Sequence[Outcome]) -> list[bool | redis_py.RedisError]:
        """Record outcomes in one round trip: for each, True, False if it came too late, or Redis's error.

        Raises:
            RedisError: the connection failed; any of them may be recorded, so send them again.
        """
        groups = list(_groups(outcomes))
        replies = run_all(self.redis, [self._ending(ends) for ends in groups])
        return [answer for ends, reply in zip(groups, replies, strict=True) for answer in self._answers(ends, reply)]

    def _answers(self, ends: Sequence[Outcome], reply: Any) -> list[bool | redis_py.RedisError]:
        replies: list[Any] = reply if isinstance(reply, list) else [reply]
        found = [each if isinstance(each, redis_py.RedisError) else each in (b"recorded", 1) for each in replies]
        behind_an_error = ends[len(found) :]
        return found + [answer for end in behind_an_error for answer in self.commit([end])]

    def _ending(self, ends: Sequence[Outcome]) -> tuple[Script, tuple[Any, ...]]:
        """What ends these: one job, or several with an outcome."""
        if ends[0].status == "returned":
            return RELEASE, _pair(ends[0].job)
        if ends[0].status == "retry":
            return RETRY, (self.worker, *_pair(ends[0].job), ends[0].reason, str(int(RETRY_SECONDS * 1000)))
        return COMMIT, (self.worker, *(part for end in ends for part in _told(end)))

    def release(self, jobs: Iterable[Claimed]) -> int:
        """Hand unfinished jobs back to the front of their queue."""
        pairs = [part for job in jobs for part in _pair(job)]
        return self._run(RELEASE, *pairs) if pairs else 0

    def reap(self) -> Reaped:
        """Take back expired leases, whoever held them; queue what waited for its next try; end what is cancelled."""
        reaped, found = Reaped(0, 0), MOST_REAPED
        while found >= MOST_REAPED:  # there may be more
            *counts, cancelled, broken = self._run(REAP, MOST_REAPED, MOST_BATCHES, wire.pair_queue(self.pair))
            for batch in cancelled:  # by a producer who may not end its lines
                sweep(self.redis, batch.decode())
            reaped, found = reaped.plus(Reaped(*counts)), sum(counts)
            for batch in broken:
                requeued, taken = repair(self.redis, batch.decode())
                reaped = reaped.plus(Reaped(requeued, 0, taken))
        return reaped

    @property
    def _lease_ms(self) -> int:
        return int(self.lease * 1000)

    def _run(self, script: Script, *arguments: Any) -> Any:
        return run(self.redis, script, *arguments)


def _groups(outcomes: Sequence[Outcome]) -> Iterator[list[Outcome]]:
    """These, in their order, some in one call of a script."""
    for alike, ends in itertools.groupby(outcomes, lambda end: end.status in ("done", "failed", "cancelled")):
        while group := list(itertools.islice(ends, MOST_COMMITTED if alike else 1)):
            yield group


def _told(end: Outcome) -> tuple[Any, ...]:
    """What commit.lua is told of an outcome."""
    millijoules = "" if end.joules is None else round(1000 * end.joules)
    counts = end.prompt_tokens, end.completion_tokens
    return *_pair(end.job), end.status, end.line, *counts, end.reason, millijoules


def _pair(job: Claimed) -> tuple[str, str]:
    return job.id, job.token
