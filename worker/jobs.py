"""Turns a claimed job into a request for the engine. What is in Redis is data: nothing is imported or unpickled."""

from __future__ import annotations

import hashlib
import zlib

import orjson
from pydantic import ValidationError

from ..engine.request import Request, Sampling
from ..producer.queue.leases import Claimed
from ..producer.queue.wire import FUNCTION, MOST_BODY_BYTES, JobBody
from .protocol import Engine


class BadJob(ValueError):
    """A job that is not ours to run; the message is one line."""


def decode(job: Claimed, pair: str) -> JobBody:
    """The body of a job for `pair`; raises BadJob."""
    try:
        unpacker = zlib.decompressobj()
        data = unpacker.decompress(job.data, MOST_BODY_BYTES + 2**16)  # what submitting adds to a line
        if not unpacker.eof:
            raise BadJob(f"the job's data are cut off or larger than {MOST_BODY_BYTES:,} bytes")
        call = orjson.loads(data)
    except (zlib.error, orjson.JSONDecodeError) as error:
        raise BadJob("the job's data are not compressed JSON; jobs come from `draftmill submit` only") from error
    match call:
        case [str(function), None, [dict(fields)], dict(options)] if function == FUNCTION and not options:
            pass
        case _:
            raise BadJob(f"the job is no call of {FUNCTION} with one body; workers run nothing else")
    try:
        body = JobBody.model_validate(fields)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise BadJob(f"the job's body is invalid: {where}: {first['msg']}") from error
    if (body.messages is None) == (body.prompt is None):
        raise BadJob("the job's body must have either messages or a prompt")
    if (body.batch, body.custom_id, body.pair) != (job.batch, job.custom_id, pair):
        raise BadJob(f"the job's body belongs to another batch, line or pair than {pair!r}")
    return body


def request(job: Claimed, body: JobBody, engine: Engine) -> Request:
    """The job as the engine takes it; raises RequestError."""
    messages = None if body.messages is None else [message.model_dump() for message in body.messages]
    given = body.sampling
    sampling = Sampling(
        max_tokens=given.max_tokens,
        temperature=given.temperature,
        top_p=given.top_p,
        top_k=given.top_k,
        seed=derived_seed(job.id) if given.seed is None else given.seed,
        stop=given.stop,
    )
    return Request(job.id, tuple(engine.encode(messages, body.prompt)), sampling, body.json_schema)


def derived_seed(id: str) -> int:
    """The seed of a job that names none: the same job always samples the same way."""
    return int.from_bytes(hashlib.sha256(id.encode()).digest()[:8], "big") >> 1
