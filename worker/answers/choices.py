"""The choices of a result line, in the forms of the OpenAI API."""

from __future__ import annotations

import hashlib
from typing import Any

from ...engine.answers.answer import Answer
from ...engine.request import Completion, Request
from ...engine.text import Text
from . import logprobs


def of_chat(index: int, request: Request, completion: Completion, answer: Answer, text: Text) -> dict[str, Any]:
    """A chat's choice. Thoughts have two names, for there are clients of both; calls are named after their request."""
    message: dict[str, Any] = {"role": "assistant", "content": answer.content}
    if request.thinking != "none":
        message |= {"reasoning_content": answer.reasoning, "reasoning": answer.reasoning}
    if answer.calls:
        message["tool_calls"] = [
            {
                "id": _call_id(f"{request.id} {n}"),
                "type": "function",
                "function": {"name": call.name, "arguments": call.arguments},
            }
            for n, call in enumerate(answer.calls)
        ]
    reason = completion.finish_reason
    return {
        "index": index,
        "message": message,
        "logprobs": None if _without(request) else logprobs.of_chat(completion.logprobs, text),
        "finish_reason": "tool_calls" if answer.calls and reason == "stop" else reason,
    }


def of_text(index: int, request: Request, completion: Completion, echo: str, text: Text) -> dict[str, Any]:
    """A text's choice, with what it repeats in front."""
    return {
        "index": index,
        "text": echo + completion.text,
        "logprobs": None if _without(request) else logprobs.of_text(completion.logprobs, text, len(echo)),
        "finish_reason": completion.finish_reason,
    }


def _without(request: Request) -> bool:
    return request.sampling.logprobs is None


def _call_id(name: str) -> str:
    return f"call_{hashlib.sha256(name.encode()).hexdigest()[:24]}"
