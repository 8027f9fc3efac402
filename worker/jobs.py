"""Turns a claimed job into a request for the engine. What is in Redis is data: nothing is imported or unpickled."""

from __future__ import annotations

import hashlib
import zlib

import orjson
from pydantic import ValidationError

from ..engine.request import Grammar, Request, RequestError, Sampling
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
    if (body.messages is None) == (not body.prompts):
        raise BadJob("the job's body must have either messages or a prompt")
    if (body.batch, body.custom_id, body.pair) != (job.batch, job.custom_id, pair):
        raise BadJob(f"the job's body belongs to another batch, line or pair than {pair!r}")
    return body


def request(job: Claimed, body: JobBody, engine: Engine) -> Request:
    """The job as the engine takes it; raises RequestError."""
    given = body.sampling
    if body.prompts and (len(body.prompts) > 1 or not isinstance(body.prompts[0], str)):
        raise RequestError("a list of prompts is not supported")
    messages = None if body.messages is None else [message.model_dump() for message in body.messages]
    sampling = Sampling(
        **given.model_dump(exclude={"seed", "logit_bias", "include_stop_str_in_output", "max_seconds"}),
        seed=derived_seed(job.id) if given.seed is None else given.seed,
        logit_bias=tuple(given.logit_bias.items()),
        include_stop=given.include_stop_str_in_output,
    )
    grammar = body.grammar and Grammar(body.grammar.kind, body.grammar.text)
    tokens = engine.encode(messages, body.prompts[0] if body.prompts else None)
    return Request(job.id, tuple(tokens), sampling, grammar)


def derived_seed(id: str) -> int:
    """The seed of a job that names none: the same job always samples the same way."""
    return int.from_bytes(hashlib.sha256(id.encode()).digest()[:8], "big") >> 1
