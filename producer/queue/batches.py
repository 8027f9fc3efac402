"""Batches in Redis: create, submit, watch, cancel, read results; a thin layer over the Lua scripts.

Every function takes a synchronous `redis.Redis` with `decode_responses=False`.
"""

from __future__ import annotations

import time
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, NamedTuple

import orjson
import redis as redis_py
from rq.job import Job, JobStatus

from . import fleet, wire
from .connect import bearable
from .ending import sweep
from .scripts import run, script

CREATE, SUBMIT, ACKNOWLEDGE, FORGET = (script(name) for name in ("create", "submit", "acknowledge", "forget"))

STRETCH = 1000
"""Results that one call drops, so that it never holds Redis up for long."""


@dataclass(frozen=True)
class BatchInfo:
    """What a batch is. `total` is how many lines it has, `source` where they came from, `user` who submits it.

    Its lines run on `pair`, or each on one of that and the `others`. `parameters` are those that its id derives from,
    as `draftmill status` may show them (see `parameters.py`). `kept_for` says for how many seconds Redis keeps it once
    it is complete; None leaves that as it was, at first RESULT_TTL.
    """

    id: str
    pair: str
    priority: str
    total: int
    source: str = ""
    user: str = ""
    parameters: Mapping[str, Any] = field(default_factory=dict)
    others: tuple[str, ...] = ()
    kept_for: int | None = None

    @property
    def pairs(self) -> tuple[str, ...]:
        return self.pair, *self.others


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

    `ended` counts lines with a recorded outcome. `collected` is when the last of its results was acknowledged, or None
    while some may come. `generation` differs each time that a batch is created, as after it was forgotten.
    `waiting_since` is for each pair when the job that is next in its queue was queued, Redis TIME in seconds; while
    none is queued it means nothing.
    """

    id: str
    pairs: tuple[str, ...]
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
    generation: int
    waiting_since: Mapping[str, float]
    parameters: Mapping[str, Any]
    is_paused: bool

    @property
    def pair(self) -> str:
        """The pair of its lines, or of the first of them."""
        return self.pairs[0]

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
        return self.ended >= max(self.total, self.submitted)


def create(redis: redis_py.Redis, batch: BatchInfo) -> BatchStatus:
    """Registers a batch. Registering it again keeps its results, its user and its first submission time.

    Another priority than before holds from now on, for what is queued already too.
    """
    what: dict[str, Any] = {
        "total": batch.total,
        "user": batch.user,
        "pair": batch.pair,
        "pairs": orjson.dumps(batch.pairs),
        "queue": " ".join(wire.queue_name(pair, batch.id) for pair in batch.pairs),
        "priority": batch.priority,
        "source": batch.source,
        "parameters": orjson.dumps(dict(batch.parameters)),
    }
    if batch.kept_for is not None:
        what["kept_for"] = batch.kept_for
    run(redis, CREATE, batch.id, str(time.time()), *(part for field in what.items() for part in field))
    found = status(redis, batch.id)
    assert found  # it expires in days
    return found


def submit_chunk(
    redis: redis_py.Redis,
    batch: BatchInfo,
    bodies: Sequence[wire.JobBody],
    *,
    retry_failed: bool = False,
    reason: str = "",
    missing: bool = False,
) -> Submitted:
    """Queues those of `bodies` that have no outcome and are not queued, each for its pair, one of the batch's; some
    hundreds at a time are best.

    With `retry_failed`, failures whose error has `reason` in its code or message are taken back and queued again, in
    one step: the line has no outcome until its next one is recorded. With `missing`, so are lines whose results were
    acknowledged: the caller's file lacks them. Those whose results are still to be read are not. A batch that was
    cancelled, or that Redis no longer knows, takes none.
    """
    sent = Submitted()
    for pair in dict.fromkeys(body.pair for body in bodies):
        queue, own = wire.queue_name(pair, batch.id), [body for body in bodies if body.pair == pair]
        jobs = _jobs(redis, batch.id, queue, own)
        how = int(retry_failed), int(missing), reason
        sent += Submitted(*run(redis, SUBMIT, batch.id, *how, queue, len(own), *jobs))
    return sent


def _jobs(redis: redis_py.Redis, batch: str, queue: str, bodies: Sequence[wire.JobBody]) -> list[Any]:
    """What submit.lua is told of each of these."""
    common = [part for field in _job_hash(redis, queue).items() for part in field]
    jobs: list[Any] = []
    for body in bodies:
        own = ["data", _data(body), "description", body.custom_id[:200]]
        if body.keep is not None:
            own += ["keep", orjson.dumps(body.keep)]
        width = len(common) + len(own)
        jobs += [wire.job_id(batch, body.custom_id), body.custom_id, body.line, body.size, width, *common, *own]
    return jobs


def _data(body: wire.JobBody) -> bytes:
    """A job's data as RQ keeps them: the call of a function, whose one argument is the body.

    Left out is what Redis has beside it, and what is a default: all workers of a WIRE have the same defaults.
    """
    fields = body.model_dump(mode="json", exclude_defaults=True, exclude={"batch", "custom_id", "keep"})
    return zlib.compress(wire.JsonSerializer.dumps((wire.FUNCTION, None, (fields,), {})))


def _job_hash(redis: redis_py.Redis, queue: str) -> Mapping[str, Any]:
    """RQ's own hash of a queued job, but for data and description. Since when it waits, `queued` says: record.lua."""
    job = Job.create(
        wire.FUNCTION,
        connection=redis,
        serializer=wire.JsonSerializer,
        origin=queue,
        status=JobStatus.QUEUED,
    )
    fields = job.to_dict(include_meta=False)
    return {name: fields[name] for name in fields if fields[name] and name not in ("data", "description")}


def status(redis: redis_py.Redis, batch: str) -> BatchStatus | None:
    """The state of a batch, or None if Redis knows no such batch."""
    found = statuses(redis, [batch])
    return found[0] if found else None


class _Found(NamedTuple):
    """What Redis has of a batch: its hash, and how many of its jobs are open, have ended, run."""

    raw: Mapping[bytes, bytes]
    open: int
    ended: int
    running: int


def _status(batch: str, found: _Found) -> BatchStatus:
    raw = found.raw

    def text(name: str) -> str:
        return raw.get(name.encode(), b"").decode("utf-8", "replace")

    def number(name: str) -> int:
        return int(raw.get(name.encode(), 0))

    failed, cancelled, total = number("failed"), number("cancelled"), number("total")
    if b"generation" in raw:
        submitted, running = found.open + found.ended, found.running
        done = found.ended - failed - cancelled
    else:  # it was submitted before there were generations
        submitted, running, done = number("submitted"), number("running"), number("done")
    complete = done + failed + cancelled >= max(total, submitted)
    pairs = tuple(orjson.loads(raw.get(b"pairs", b"[]"))) or (text("pair"),)
    return BatchStatus(
        id=batch,
        pairs=pairs,
        priority=text("priority"),
        user=text("user"),
        source=text("source"),
        created=float(raw.get(b"created", 0)),
        total=total,
        submitted=submitted,
        running=running,
        done=done,
        failed=failed,
        cancelled=cancelled,
        prompt_tokens=number("prompt_tokens"),
        completion_tokens=number("completion_tokens"),
        is_cancelled=b"cancelled_at" in raw,
        collected=float(raw[b"collected_at"]) if complete and b"collected_at" in raw else None,
        generation=number("generation"),
        waiting_since={pair: number(f"waiting_since {wire.slug(pair)}") / 1000 for pair in pairs},
        parameters=orjson.loads(raw.get(b"parameters", b"{}")),
        is_paused=b"paused_at" in raw and not complete and b"cancelled_at" not in raw,
    )


def list_batches(redis: redis_py.Redis) -> list[BatchStatus]:
    """All batches, newest first."""
    return statuses(redis, newest(redis))


def newest(redis: redis_py.Redis, most: int | None = None) -> list[str]:
    """The ids of all batches, or of so many, newest first; Redis may have forgotten what some were."""
    names: Any = redis.zrange(wire.BATCHES, 0, -1 if most is None else most - 1, desc=True)
    return [name.decode() for name in names]


def statuses(redis: redis_py.Redis, names: Sequence[str]) -> list[BatchStatus]:
    """The states of those of these batches that Redis knows, in two round trips."""
    with redis.pipeline(transaction=False) as pipe:
        for name in names:
            pipe.hget(wire.batch_key(name), "queue")
        queues = [(found or b"").decode().split() for found in pipe.execute()]
    with redis.pipeline(transaction=True) as pipe:
        for name, own in zip(names, queues, strict=True):
            pipe.hgetall(wire.batch_key(name))
            pipe.hlen(wire.open_key(name))
            pipe.bitcount(wire.ended_key(name))
            for queue in own:
                pipe.zcard(wire.leased_key(queue))
        replies = iter(pipe.execute())
    found = [_Found(next(replies), next(replies), next(replies), sum(islice(replies, len(own)))) for own in queues]
    return [_status(name, what) for name, what in zip(names, found, strict=True) if what.raw]


def cancel(redis: redis_py.Redis, batch: str) -> int | None:
    """Cancels a batch, ends its lines that do not run and returns how many; None if workers must end these, too.

    Running lines follow within seconds, when their workers next renew their leases. Each cancelled line gets
    an error line as its result, so a cancelled batch still has one result per line that was submitted. A batch that
    an earlier version submitted is ended by workers of that version.
    """
    if not redis.exists(wire.batch_key(batch)):
        return 0
    redis.hsetnx(wire.batch_key(batch), "cancelled_at", str(time.time()))
    return sweep(redis, batch)


class Result(NamedTuple):
    """One recorded outcome: its stream entry, the JSON output line, the line number in the dataset, and the job."""

    entry: str
    line: bytes
    n: int
    job: str = ""


def read(redis: redis_py.Redis, batch: str, after: str = "0-0", count: int = 500, block: float = 0) -> list[Result]:
    """Up to `count` results recorded after stream entry `after` that nobody has acknowledged.

    Waits up to `block` seconds for the first, and never for longer than half of what a command may take.
    """
    milliseconds = int(1000 * bearable(redis, block))
    found: Any = redis.xread({wire.results_key(batch): after}, count, milliseconds or None)
    return [
        Result(entry.decode(), fields[b"line"], int(fields.get(b"n", 0)), fields.get(b"job", b"").decode())
        for _, entries in found or ()
        for entry, fields in entries
    ]


def results(redis: redis_py.Redis, batch: str, after: str = "0-0", count: int = 500) -> Iterator[Result]:
    """The results after stream entry `after`, page by page, until there is none left for now."""
    while page := read(redis, batch, after, count):
        yield from page
        after = page[-1].entry


def acknowledge(redis: redis_py.Redis, batch: str, results: Sequence[Result]) -> None:
    """Drops results that the caller has on its disk, and what Redis knows of their jobs. Repeating is harmless.

    What `status` shows stays, and which lines failed.
    """
    for first in range(0, len(results), STRETCH):
        some = results[first : first + STRETCH]
        run(redis, ACKNOWLEDGE, batch, *(part for r in some for part in (r.entry, r.n, r.job)))


def handed(redis: redis_py.Redis, batch: str) -> int:
    """How many lines have a result that was acknowledged."""
    return int(redis.bitcount(wire.handed_key(batch)))


def hold(redis: redis_py.Redis, batch: str, holder: str, seconds: int) -> str | None:
    """Takes, or renews, the right to collect a batch into one OUT; returns None, or the place of the OUT that has it.

    `holder` is `<token> <place>`: a random word that this OUT keeps, and where it is, for people. Another OUT can take
    over `seconds` after the last renewal; with 0 seconds at once.
    """
    key, token = wire.holder_key(batch), holder.partition(" ")[0]
    while True:
        with redis.pipeline() as pipe:
            try:
                pipe.watch(key)
                current: Any = pipe.get(key)
                other, _, place = (current or b"").decode("utf-8", "replace").partition(" ")
                if current and other != token:
                    return place
                pipe.multi()
                pipe.set(key, holder, px=max(1, 1000 * seconds))  # those who collect may set, but delete nothing
                pipe.execute()
                return None
            except redis_py.WatchError:  # another took it, or it expired, just now
                continue


def held_by(redis: redis_py.Redis, batch: str) -> str:
    """The place of the OUT that the results of a batch go to now; empty if there is none."""
    found: Any = redis.get(wire.holder_key(batch))
    return (found or b"").decode("utf-8", "replace").partition(" ")[2]


def forget(redis: redis_py.Redis, batch: str) -> bool:
    """Drops all that Redis holds of a complete batch; submitted again, it runs anew.

    False if the batch is not complete, as when its failures were queued again just now: then nothing is dropped.
    """
    reply = b"more"
    while reply == b"more":
        reply = run(redis, FORGET, batch, STRETCH)
    return reply == b"forgotten"


def workers(redis: redis_py.Redis) -> list[dict[str, str]]:
    """What each live worker reported in its last heartbeat, with its `name`."""
    return [{"name": report.name} | dict(report.fields) for report in fleet.reports(redis) if not report.gone]
