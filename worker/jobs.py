"""Turns a claimed job into requests for the engine. What is in Redis is data: nothing is imported or unpickled."""

from __future__ import annotations

import hashlib
import math
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import orjson
from pydantic import ValidationError

from ..engine.answers.tools import Tools, grammar
from ..engine.chat import ChatPrompt
from ..engine.request import NO_ADAPTERS, Adapters, Completion, Grammar, Request, RequestError, Sampling
from ..engine.text import Prompt, Text
from ..producer.queue.leases import Claimed
from ..producer.queue.wire import FUNCTION, MOST_BODY_BYTES, JobBody
from .host import Work

SEEDS = 2**63
"""Seeds of an engine are smaller."""


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
        body = JobBody.model_validate(fields | {"batch": job.batch, "custom_id": job.custom_id})
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise BadJob(f"the job's body is invalid: {where}: {first['msg']}") from error
    if (body.messages is None) == (not body.prompts):
        raise BadJob("the job's body must have either messages or a prompt")
    if body.pair != pair:
        raise BadJob(f"the job's body belongs to another pair than {pair!r}")
    return body


@dataclass(frozen=True)
class Asked:
    """What a job asks of the engine: a request for each choice of each prompt, those of the first prompt first.

    `notes` say what of the job the model cannot do.
    """

    requests: tuple[Request, ...]
    tools: Tools | None = None
    notes: tuple[str, ...] = ()


@dataclass
class Running:
    """A claimed job in the engine, `since` when, what the worker had done `before`, and the `completions` that it has;
    `dropped` says why it should no longer run.

    `counts` is whether Redis would count a loss of its lease against it, as it should while it is `in_row`; None if
    nobody knows what Redis has.
    """

    job: Claimed
    body: JobBody
    asked: Asked
    since: float
    before: Work
    completions: dict[str, Completion] = field(default_factory=dict)
    dropped: str | None = None
    in_row: bool = False
    counts: bool | None = True

    @cached_property
    def deadline(self) -> float:
        """When it will have run for too long (`time.monotonic`)."""
        limit = self.body.sampling.max_seconds
        return math.inf if limit is None else self.since + limit

    @property
    def ended(self) -> bool:
        """Whether the engine has nothing of it any more."""
        return len(self.completions) == len(self.asked.requests)

    @property
    def open(self) -> list[Request]:
        """Its requests that the engine still has."""
        return [request for request in self.asked.requests if request.id not in self.completions]

    @property
    def generated_tokens(self) -> int:
        """Tokens that its completions have."""
        return sum(len(each.tokens) for each in self.completions.values())

    @property
    def handled_tokens(self) -> int:
        """Tokens that were prefilled for its completions, and those that they have."""
        prefilled = sum(each.prompt_tokens - each.cached_tokens for each in self.completions.values())
        return prefilled + self.generated_tokens

    @property
    def choices(self) -> list[Completion]:
        """The completions of a job that has ended, in the order of its requests."""
        return [self.completions[request.id] for request in self.asked.requests]


def asked(job: Claimed, body: JobBody, text: Text, adapters: Adapters = NO_ADAPTERS) -> Asked:
    """The job as an engine with these adapters takes it; raises RequestError."""
    tools = body.tools and Tools(**dict(body.tools))
    rules = body.grammar and Grammar(body.grammar.kind, body.grammar.text)
    if tools and tools.enforced:
        if rules:
            raise RequestError("tool_choice and response_format both say what the answer must be; leave one out")
        rules = grammar(tools, text)
    requests: list[Request] = []
    notes: list[str] = []
    adapter = body.adapter or adapters.default
    if body.messages is None and body.template:
        notes.append("chat_template_kwargs: a plain prompt goes through no chat template")
    for prompt in prompts(body):
        encoded = text.encode(prompt)
        notes += encoded.notes
        if body.sampling.thinking_budget is not None and encoded.thinking == "none":
            notes.append("thinking_budget: this answer has no thoughts to limit")
        first = sampling(body, job.id if not requests else f"{job.id}/{len(requests)}")
        for choice in range(body.n):
            seeded = replace(first, seed=(first.seed + choice) % SEEDS)
            id = f"{job.id}/{len(requests)}"
            requests.append(Request(id, encoded.tokens, seeded, rules, encoded.thinking, adapter, body.drafts))
    return Asked(tuple(requests), tools, tuple(dict.fromkeys(notes)))


def prompts(body: JobBody) -> Sequence[Prompt]:
    """What the engine encodes: a chat, or plain prompts."""
    if body.messages is None:
        return body.prompts or ()
    return [
        ChatPrompt(
            tuple(message.model_dump(exclude_defaults=True) for message in body.messages),
            body.tools.tools if body.tools else (),
            body.template,
            body.continues,
            body.prompted,
            body.trusted,
        )
    ]


def sampling(body: JobBody, name: str) -> Sampling:
    """A request's sampling parameters; without a seed it is derived from the request's name."""
    given = body.sampling
    return Sampling(
        **given.model_dump(exclude={"seed", "logit_bias", "include_stop_str_in_output", "max_seconds"}),
        seed=derived_seed(name) if given.seed is None else given.seed,
        logit_bias=tuple(given.logit_bias.items()),
        include_stop=given.include_stop_str_in_output,
    )


def derived_seed(id: str) -> int:
    """The seed of a job that names none: the same job always samples the same way."""
    return int.from_bytes(hashlib.sha256(id.encode()).digest()[:8], "big") >> 1
