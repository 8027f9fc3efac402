"""Builds the output lines, in the format of the OpenAI Batch API.

`error` is null exactly when a line has a completion. A refused request also carries the response that the API
would have given, status 400 and its error body; anything else that went wrong has no response. `keep`, where a line
has it, is ours: what of the dataset's row was to be handed back.
"""

from __future__ import annotations

import time
from typing import Any

import orjson

from ..engine.request import Completion
from ..producer.queue.leases import Claimed, Outcome
from ..producer.queue.wire import JobBody

CANCELLED = {
    "cancelled": ("batch_cancelled", "the batch was cancelled before this request finished"),
    "stopped": ("request_stopped", "this request was stopped by an operator"),
}
OVERDUE = "deadline_exceeded"


def completed(job: Claimed, body: JobBody, completion: Completion) -> Outcome:
    """The outcome of a request that ran to its end."""
    content = _chat(completion) if body.messages is not None else _text(completion)
    prompt, generated = completion.prompt_tokens, len(completion.tokens)
    usage: dict[str, Any] = {
        "prompt_tokens": prompt,
        "completion_tokens": generated,
        "total_tokens": prompt + generated,
        "prompt_tokens_details": {"cached_tokens": completion.cached_tokens},
    }
    if completion.drafted:
        usage["completion_tokens_details"] = {
            "accepted_prediction_tokens": completion.accepted,
            "rejected_prediction_tokens": completion.drafted - completion.accepted,
        }
        usage["tokens_per_round"] = round(completion.accepted / completion.rounds + 1, 3)
    answer = {"created": int(time.time()), "model": body.pair, **content, "usage": usage}
    line = _line(job, {"status_code": 200, "request_id": f"req_{job.id}", "body": answer}, None)
    return Outcome(job, "done", line, prompt, generated)


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


def _chat(completion: Completion) -> dict[str, Any]:
    message = {"role": "assistant", "content": completion.text}
    choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": completion.finish_reason}
    return {"id": f"chatcmpl-{completion.id}", "object": "chat.completion", "choices": [choice]}


def _text(completion: Completion) -> dict[str, Any]:
    choice = {
        "index": 0,
        "text": completion.text,
        "logprobs": None,
        "finish_reason": completion.finish_reason,
    }
    return {"id": f"cmpl-{completion.id}", "object": "text_completion", "choices": [choice]}


def _line(job: Claimed, response: dict[str, Any] | None, error: dict[str, str] | None) -> bytes:
    line = {"id": f"batch_req_{job.id}", "custom_id": job.custom_id, "response": response, "error": error}
    if job.keep:
        line["keep"] = orjson.Fragment(job.keep)
    return orjson.dumps(line)
