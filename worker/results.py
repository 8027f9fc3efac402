"""Builds the output lines, in the format of the OpenAI Batch API.

`error` is null exactly when a line has a completion. A refused request also carries the response that the API
would have given, status 400 and its error body; anything else that went wrong has no response. `keep`, where a line
has it, is ours: what of the dataset's row was to be handed back. So is `response.body.draftmill`: its `notes` say what
of the request could not be done.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from typing import Any

import orjson

from ..engine.answers.answer import Answer, read
from ..engine.request import Completion, Request
from ..engine.text import Text
from ..producer.queue.leases import Claimed, Outcome
from ..producer.queue.wire import JobBody
from .answers.choices import of_chat, of_text
from .jobs import Asked

CANCELLED = {
    "cancelled": ("batch_cancelled", "the batch was cancelled before this request finished"),
    "stopped": ("request_stopped", "this request was stopped by an operator"),
}
OVERDUE = "deadline_exceeded"


def completed(
    job: Claimed,
    body: JobBody,
    asked: Asked,
    completions: Sequence[Completion],
    text: Text,
    joules: float | None = None,
) -> Outcome:
    """The outcome of a job whose requests ran to their ends: a choice for each of them, in their order.

    `joules` are what the machine drew for it, if that is known.
    """
    answers = [
        read(completion, request.thinking, asked.tools, text) if body.messages is not None else Answer(completion.text)
        for request, completion in zip(asked.requests, completions, strict=True)
    ]
    parts = list(enumerate(zip(asked.requests, completions, answers, strict=True)))
    if body.messages is not None:
        head = {"id": f"chatcmpl-{job.id}", "object": "chat.completion"}
        choices = [of_chat(n, request, completion, answer, text) for n, (request, completion, answer) in parts]
    else:
        head = {"id": f"cmpl-{job.id}", "object": "text_completion"}
        choices = [
            of_text(n, request, completion, _echo(body, n, request, text), text)
            for n, (request, completion, _) in parts
        ]
    usage = _usage(body, asked.requests, completions, answers)
    adapter = asked.requests[0].adapter
    model = f"{body.pair}:{adapter}" if adapter else body.pair
    answer = {"created": int(time.time()), "model": model, **head, "choices": choices, "usage": usage}
    if notes := dict.fromkeys([*asked.notes, *(note for answer in answers for note in answer.notes)]):
        answer["draftmill"] = {"notes": list(notes)}
    line = _line(job, {"status_code": 200, "request_id": f"req_{job.id}", "body": answer}, None)
    return Outcome(job, "done", line, usage["prompt_tokens"], usage["completion_tokens"], joules=joules)


def refused(job: Claimed, reason: str) -> Outcome:
    """The outcome of a request that could not be run at all."""
    error = {"code": "invalid_request", "message": reason}
    detail = {"message": reason, "type": "invalid_request_error", "param": None, "code": error["code"]}
    response = {"status_code": 400, "request_id": f"req_{job.id}", "body": {"error": detail}}
    return Outcome(job, "failed", _line(job, response, error), reason=reason)


def overdue(job: Claimed, seconds: float) -> Outcome:
    """The outcome of a request that ran for longer than it may."""
    message = f"stopped after max_seconds = {seconds:g}"
    return Outcome(job, "failed", _line(job, None, {"code": OVERDUE, "message": message}), reason=message)


def retry(job: Claimed, reason: str) -> Outcome:
    """A request that the engine failed at, to be tried again. The reason has no error's message: that may quote it."""
    return Outcome(job, "retry", b"", reason=reason)


def returned(job: Claimed) -> Outcome:
    """A request that a drained worker did not finish in time: it goes back to the front of its queue."""
    return Outcome(job, "returned", b"")


def cancelled(job: Claimed, why: str) -> Outcome:
    """The outcome of a request that was cancelled with its batch, or stopped by RQ's command."""
    code, message = CANCELLED[why]
    return Outcome(job, "cancelled", _line(job, None, {"code": code, "message": message}), reason=message)


def _echo(body: JobBody, choice: int, request: Request, text: Text) -> str:
    """The prompt of a choice, if it is to be repeated."""
    if not (body.echo and body.prompts):
        return ""
    prompt = body.prompts[choice // body.n]
    return prompt if isinstance(prompt, str) else text.decode(request.tokens)


def _usage(
    body: JobBody, requests: Sequence[Request], completions: Sequence[Completion], answers: Sequence[Answer]
) -> dict[str, Any]:
    """Tokens of all choices. A prompt counts once, however many choices it has; of it those are cached that none of
    them had to read.
    """
    prompts = [completions[first : first + body.n] for first in range(0, len(completions), body.n)]
    prompt = sum(choices[0].prompt_tokens for choices in prompts)
    cached = sum(min(choice.cached_tokens for choice in choices) for choices in prompts)
    generated = sum(len(completion.tokens) for completion in completions)
    drafted, accepted, rounds = (
        sum(getattr(completion, name) for completion in completions) for name in ("drafted", "accepted", "rounds")
    )
    usage: dict[str, Any] = {
        "prompt_tokens": prompt,
        "completion_tokens": generated,
        "total_tokens": prompt + generated,
        "prompt_tokens_details": {"cached_tokens": cached},
    }
    details: dict[str, int] = {}
    if body.messages is not None and any(request.thinking != "none" for request in requests):
        details["reasoning_tokens"] = sum(answer.reasoning_tokens for answer in answers)
    if drafted:
        details |= {"accepted_prediction_tokens": accepted, "rejected_prediction_tokens": drafted - accepted}
        usage["tokens_per_round"] = round(accepted / rounds + 1, 3)
    kept = sum((Counter(completion.accepted_by) for completion in completions), Counter[str]())
    if kept:
        usage["accepted_tokens_by_source"] = dict(sorted(kept.items()))
    return usage | ({"completion_tokens_details": details} if details else {})


def _line(job: Claimed, response: dict[str, Any] | None, error: dict[str, str] | None) -> bytes:
    line = {"id": f"batch_req_{job.id}", "custom_id": job.custom_id, "response": response, "error": error}
    if job.keep:
        line["keep"] = orjson.Fragment(job.keep)
    return orjson.dumps(line)
