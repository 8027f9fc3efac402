"""Batches in Redis: create, submit, watch, cancel, read results; a thin layer over the Lua scripts.

Every function takes a synchronous `redis.Redis` with `decode_responses=False`.
"""

from __future__ import annotations

import time
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, NamedTuple

import orjson
import redis as redis_py
from rq.job import Job, JobStatus

from . import fleet, wire
from .scripts import LUA, script

SUBMIT, CANCEL = script(LUA / "submit.lua"), script(LUA / "cancel.lua")

STRETCH = 1000
"""Jobs that one call ends or forgets, so that it never holds Redis up for long."""

RQ_TIME = "%Y-%m-%dT%H:%M:%S.%fZ"


def rq_now() -> str:
    """This machine's time as RQ writes it; for display only, no decision hangs on it."""
    return datetime.now(UTC).strftime(RQ_TIME)


@dataclass(frozen=True)
class BatchInfo:
    """What a batch is. `total` is how many lines it has, `source` where they came from, `user` who submits it.

    `parameters` are those that its id derives from, as `draftmill status` may show them (see `parameters.py`).
    """

    id: str
    pair: str
    priority: str
    total: int
    source: str = ""
    user: str = ""
    parameters: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Submitted:
    """What became of jobs: `new` ones are queued now, `queued` were already, `done` have ended.

    `retried` of the new ones had failed before.
    """

    new: int = 0
    queued: int = 0
    done: int = 0
    retried: int = 0

    def __add__(self, other: Submitted) -> Submitted:
        return Submitted(
            self.new + other.new,
            self.queued + other.queued,
            self.done + other.done,
            self.retried + other.retried,
        )


@dataclass(frozen=True)
class BatchStatus:
    """How far a batch is. `total` counts its lines, `submitted` those that reached the queue so far.

    `collected` is when its results were collected and dropped from Redis, or None. `retries` grows whenever failures
    were taken back to run again: then what was read of the results before may hold some of them. `waiting_since` is
    when the job that is next in its queue was queued, Redis TIME in seconds; while none is queued it means nothing.
    """

    id: str
    pair: str
    priority: str
    user: str
    source: str
    created: float
    total: int
    submitted: int
    running: int
    done: int
    failed: int
    cancelled: int
    prompt_tokens: int
    completion_tokens: int
    is_cancelled: bool
    collected: float | None
    retries: int
    waiting_since: float
    parameters: Mapping[str, Any]

    @property
    def ended(self) -> int:
        """Lines with a recorded outcome."""
        return self.done + self.failed + self.cancelled

    @property
    def queued(self) -> int:
        return max(0, self.submitted - self.ended - self.running)

    @property
    def open(self) -> int:
        """Lines in the queue without an outcome."""
        return max(0, self.submitted - self.ended)

    @property
    def complete(self) -> bool:
        return self.ended >= self.total


def create(redis: redis_py.Redis, batch: BatchInfo) -> BatchStatus:
    """Registers a batch; registering it again keeps its counters and its first submission time."""
    now, key = time.time(), wire.batch_key(batch.id)
    what: dict[Any, Any] = {
        "pair": batch.pair,
        "priority": batch.priority,
        "total": batch.total,
        "source": batch.source,
        "user": batch.user,
        "parameters": orjson.dumps(dict(batch.parameters)),
    }
    with redis.pipeline(transaction=True) as pipe:
        pipe.hsetnx(key, "created", str(now))
        pipe.hset(key, mapping=what)
        pipe.zadd(wire.BATCHES, {batch.id: now}, nx=True)
        pipe.execute()
    found = status(redis, batch.id)
    assert found
    return found


def submit_chunk(
    redis: redis_py.Redis,
    batch: BatchInfo,
    bodies: Sequence[wire.JobBody],
    *,
    retry_failed: bool = False,
    missing: bool = False,
) -> Submitted:
    """Queues those of `bodies` that have no outcome and are not queued; some hundreds at a time are best.

    With `retry_failed`, failures are taken back and queued again, in one step: the line has no outcome until its next
    one is recorded.
    """
    if missing:
        _open_again(redis, batch, bodies)
    queue = wire.queue_name(batch.pair, batch.priority, batch.id)
    common = [part for pair in _job_hash(redis, queue).items() for part in pair]
    jobs: list[Any] = []
    for body in bodies:
        own = ["data", _data(body), "description", body.custom_id[:200]]
        if body.keep is not None:
            own += ["draftmill_keep", orjson.dumps(body.keep)]
        width = len(common) + len(own)
        jobs += [wire.job_id(body.batch, body.custom_id), body.custom_id, body.line, width, *common, *own]
    return Submitted(*_eval(redis, SUBMIT, batch.id, queue, int(retry_failed), len(bodies), *jobs))


def _open_again(redis: redis_py.Redis, batch: BatchInfo, bodies: Sequence[wire.JobBody]) -> None:
    """Forgets the outcomes of those of `bodies` that were handed over."""
    known = status(redis, batch.id)
    if known and known.collected:
        forget(redis, batch.id)
        create(redis, batch)
    key = wire.batch_key(batch.id)
    for body in bodies:
        job = wire.job_id(batch.id, body.custom_id)
        outcome: Any = redis.hget(wire.done_key(batch.id), job)
        if redis.srem(wire.handed_key(batch.id), job) and outcome:
            redis.hdel(wire.done_key(batch.id), job)
            redis.hdel(wire.failures_key(batch.id), job)
            redis.hincrby(key, outcome.decode(), -1)
            redis.hincrby(key, "submitted", -1)


def _data(body: wire.JobBody) -> bytes:
    """A job's data as RQ keeps them: the call of a function, whose one argument is the body.

    `keep` is not for the model, and scripts that end a job must read it: it has a field of its own beside the data.
    """
    call = (wire.FUNCTION, None, (body.model_dump(mode="json", exclude_none=True, exclude={"keep"}),), {})
    return zlib.compress(wire.JsonSerializer.dumps(call))


def _job_hash(redis: redis_py.Redis, queue: str) -> Mapping[str, Any]:
    """RQ's own hash of a queued job, but for its data and description: all jobs of a chunk have these in common."""
    job = Job.create(
        wire.FUNCTION,
        connection=redis,
        serializer=wire.JsonSerializer,
        origin=queue,
        status=JobStatus.QUEUED,
        timeout=-1,
        result_ttl=wire.RESULT_TTL,
        failure_ttl=wire.RESULT_TTL,
    )
    job.enqueued_at = job.created_at
    fields = job.to_dict(include_meta=False)
    del fields["data"], fields["description"]
    return fields


def status(redis: redis_py.Redis, batch: str) -> BatchStatus | None:
    """The state of a batch, or None if Redis knows no such batch."""
    raw: Any = redis.hgetall(wire.batch_key(batch))
    return _status(batch, raw) if raw else None


def _status(batch: str, raw: Mapping[bytes, bytes]) -> BatchStatus:
    def text(name: str) -> str:
        return raw.get(name.encode(), b"").decode("utf-8", "replace")

    def number(name: str) -> int:
        return int(raw.get(name.encode(), 0))

    return BatchStatus(
        id=batch,
        pair=text("pair"),
        priority=text("priority"),
        user=text("user"),
        source=text("source"),
        created=float(raw.get(b"created", 0)),
        total=number("total"),
        submitted=number("submitted"),
        running=number("running"),
        done=number("done"),
        failed=number("failed"),
        cancelled=number("cancelled"),
        prompt_tokens=number("prompt_tokens"),
        completion_tokens=number("completion_tokens"),
        is_cancelled=b"cancelled_at" in raw,
        collected=float(raw[b"collected_at"]) if b"collected_at" in raw else None,
        retries=number("retries"),
        waiting_since=number("waiting_since") / 1000,
        parameters=orjson.loads(raw.get(b"parameters", b"{}")),
    )


def list_batches(redis: redis_py.Redis) -> list[BatchStatus]:
    """All batches, newest first."""
    return statuses(redis, newest(redis))


def newest(redis: redis_py.Redis) -> list[str]:
    """The ids of all batches, newest first; Redis may have forgotten what some were."""
    names: Any = redis.zrange(wire.BATCHES, 0, -1, desc=True)
    return [name.decode() for name in names]


def statuses(redis: redis_py.Redis, names: Sequence[str]) -> list[BatchStatus]:
    """The states of those of these batches that Redis knows, in one round trip."""
    with redis.pipeline(transaction=False) as pipe:
        for name in names:
            pipe.hgetall(wire.batch_key(name))
        found = dict(zip(names, pipe.execute(), strict=True))
    return [_status(name, raw) for name, raw in found.items() if raw]


def cancel(redis: redis_py.Redis, batch: str) -> int:
    """Cancels a batch, ends its queued lines and returns how many.

    Running lines follow within seconds, when their workers next renew their leases. Each cancelled line gets
    an error line as its result, so a cancelled batch still has one result per line that was submitted.

    Raises:
        ResponseError: `denied`: this user may not end lines; the batch is cancelled, and workers end them.
    """
    known = status(redis, batch)
    if known is None:
        return 0
    redis.hsetnx(wire.batch_key(batch), "cancelled_at", str(time.time()))
    ended = 0
    for priority in wire.PRIORITIES:
        queue, more = wire.queue_name(known.pair, priority, batch), 1
        while more:
            count, more = _eval(redis, CANCEL, batch, queue, STRETCH)
            ended += count
    return ended


def drop_results(redis: redis_py.Redis, batch: str) -> bool:
    """Drops the results of a complete batch. What `status` shows stays, and which lines failed. To repeat is harmless.

    False, and nothing is dropped, if the batch is not complete: its failures were queued again just now.
    """
    known = status(redis, batch)
    if known is None:
        return True
    with redis.pipeline() as pipe:  # nobody may queue failures again between the look and the mark
        try:
            pipe.watch(wire.batch_key(batch))
            known = status(redis, batch)
            if known is None or not known.complete:
                return False
            pipe.multi()
            pipe.hsetnx(wire.batch_key(batch), "collected_at", str(time.time()))
            pipe.execute()
        except redis_py.WatchError:
            return drop_results(redis, batch)
    _drop(redis, known)
    return True


def _drop(redis: redis_py.Redis, known: BatchStatus) -> None:
    batch = known.id
    jobs: list[str] = []
    for id, _ in redis.hscan_iter(wire.done_key(batch), count=STRETCH):
        jobs.append(f"rq:job:{id.decode()}")
        if len(jobs) >= STRETCH:
            redis.unlink(*jobs)
            jobs.clear()
    queues = [wire.queue_name(known.pair, priority, batch) for priority in wire.PRIORITIES]
    registries = [f"rq:{kind}:{queue}" for kind in ("finished", "failed", "canceled") for queue in queues]
    with redis.pipeline(transaction=False) as pipe:
        pipe.unlink(wire.done_key(batch), wire.results_key(batch), wire.handed_key(batch), *jobs, *registries)
        pipe.srem("rq:queues", *(f"rq:queue:{queue}" for queue in queues))
        pipe.zrem(wire.turns_key(known.pair), *queues)
        pipe.execute()


def forget(redis: redis_py.Redis, batch: str) -> None:
    """Drops all that Redis holds of a complete batch; submitted again, it runs anew."""
    drop_results(redis, batch)
    latest: Any = redis.xrange(wire.FAILED)
    of_this = [entry for entry, failure in latest if failure.get(b"batch") == batch.encode()]
    with redis.pipeline(transaction=False) as pipe:
        if of_this:
            pipe.xdel(wire.FAILED, *of_this)
        pipe.unlink(wire.batch_key(batch), wire.failures_key(batch), wire.bad_key(batch), wire.holder_key(batch))
        pipe.zrem(wire.BATCHES, batch)
        pipe.execute()


class Result(NamedTuple):
    """One recorded outcome: its stream entry, the JSON output line, and the line number in the dataset."""

    entry: str
    line: bytes
    n: int


def results(redis: redis_py.Redis, batch: str, after: str = "0-0", count: int = 500) -> Iterator[Result]:
    """The results recorded after stream entry `after`, until there is none left for now.

    Each line of the batch comes once. Only who reads on after failures were retried (`BatchStatus.retries` grew) gets
    a second result for a line that he has as a failure; `failed_at` tells which of these still stand.
    """
    while True:
        entries: Any = redis.xrange(wire.results_key(batch), min=f"({after}", count=count)
        jobs = [fields[b"job"].decode() for _, fields in entries if b"job" in fields]
        standing = dict(zip(jobs, failed_at(redis, batch, jobs), strict=True))
        for entry, fields in entries:
            after = entry.decode()
            if b"job" not in fields or standing[fields[b"job"].decode()] == after:
                yield Result(after, fields[b"line"], int(fields.get(b"n", 0)))
        if len(entries) < count:
            return


def read(redis: redis_py.Redis, batch: str, after: str, count: int, block: float = 0) -> list[Result]:
    """The next `count` results behind stream entry `after`; waits up to `block` seconds for the first."""
    stream: Any = {wire.results_key(batch): after}
    if block and not redis.xread(stream, count=1, block=max(1, int(block * 1000))):
        return []
    found = results(redis, batch, after, count)
    return [result for result, _ in zip(found, range(count), strict=False)]


def acknowledge(redis: redis_py.Redis, batch: str, results: Sequence[Result]) -> None:
    """Drops results that are on the reader's disk, and what Redis has of their jobs. To repeat is harmless."""
    if not results:
        return
    jobs = [wire.job_id(batch, orjson.loads(result.line)["custom_id"]) for result in results]
    with redis.pipeline() as pipe:
        pipe.xdel(wire.results_key(batch), *(result.entry for result in results))
        pipe.sadd(wire.handed_key(batch), *jobs)
        pipe.unlink(*(f"rq:job:{job}" for job in jobs))
        pipe.execute()
    known = status(redis, batch)
    if known and known.complete and not redis.xlen(wire.results_key(batch)):
        drop_results(redis, batch)


def hold(redis: redis_py.Redis, batch: str, holder: str, seconds: int) -> str | None:
    """Takes or renews the batch for the OUT `holder`, `<token> <place>`; the place of the other OUT that has it."""
    key = wire.holder_key(batch)
    found: Any = redis.get(key)
    if found and found.decode().partition(" ")[0] != holder.partition(" ")[0]:
        return found.decode().partition(" ")[2]
    redis.set(key, holder, ex=seconds)
    return None


def add_bad(redis: redis_py.Redis, batch: str, lines: Sequence[bytes]) -> None:
    """Keeps the error lines of the dataset's bad lines with the batch."""
    with redis.pipeline() as pipe:
        pipe.delete(wire.bad_key(batch))
        if lines:
            pipe.rpush(wire.bad_key(batch), *lines)
        pipe.execute()


def bad_lines(redis: redis_py.Redis, batch: str) -> Iterator[bytes]:
    """The error lines that `add_bad` kept."""
    found: Any = redis.lrange(wire.bad_key(batch), 0, -1)
    yield from found


def failed_at(redis: redis_py.Redis, batch: str, jobs: Iterable[str]) -> list[str | None]:
    """For each of `jobs`: the stream entry of its failure, or None if it has not failed, or is to run again."""
    jobs = list(jobs)
    if not jobs:
        return []
    found: Any = redis.hmget(wire.failures_key(batch), jobs)
    return [value.decode().partition(" ")[2] if value else None for value in found]


def workers(redis: redis_py.Redis) -> list[dict[str, str]]:
    """What each live worker reported in its last heartbeat, with its `name`."""
    return [{"name": report.name} | dict(report.fields) for report in fleet.reports(redis) if not report.gone]


def _eval(redis: redis_py.Redis, text: str, *arguments: Any) -> Any:
    return redis.eval(text, 0, rq_now(), str(wire.RESULT_TTL), *arguments)
