"""What /v1/responses answers: a chat's completion, told as a response."""

from __future__ import annotations

from typing import Any

from ....queue.wire import Sampling

PLAIN = Sampling()
ECHOED = ("instructions", "max_output_tokens", "safety_identifier", "prompt_cache_key", "user")
"""Parameters that a response repeats as they were given."""


def response_of(asked: dict[str, Any], completion: dict[str, Any], model: str) -> dict[str, Any]:
    """The response to the request `asked` whose chat was answered by `completion`, both bodies."""
    id = completion["id"].removeprefix("chatcmpl-")
    choice = completion["choices"][0]
    is_cut = choice["finish_reason"] == "length"
    reasoning = asked.get("reasoning") or {}
    return {
        "id": f"resp_{id}",
        "object": "response",
        "created_at": completion["created"],
        "status": "incomplete" if is_cut else "completed",
        "incomplete_details": {"reason": "max_output_tokens"} if is_cut else None,
        "error": None,
        "model": model,
        "output": _items(id, choice, is_cut),
        "usage": _usage(completion["usage"]),
        **{name: asked.get(name) for name in ECHOED},
        "metadata": asked.get("metadata") or {},
        "parallel_tool_calls": asked.get("parallel_tool_calls") is not False,
        "temperature": _first(asked.get("temperature"), PLAIN.temperature),
        "top_p": _first(asked.get("top_p"), PLAIN.top_p),
        "top_logprobs": asked.get("top_logprobs") or 0,
        "tools": [{"strict": None, "parameters": None} | tool for tool in asked.get("tools") or []],
        "tool_choice": asked.get("tool_choice") or "auto",
        "text": {"format": {"type": "text"}} | (asked.get("text") or {}),
        "reasoning": {"effort": reasoning.get("effort"), "summary": None},
        "truncation": "disabled",
        "background": False,
        "store": False,
        "previous_response_id": None,
        "service_tier": "default",
        **{name: completion[name] for name in ("draftmill",) if name in completion},  # notes
    }


def _first(given: Any, default: Any) -> Any:
    return default if given is None else given


def _items(id: str, choice: dict[str, Any], is_cut: bool) -> list[dict[str, Any]]:
    """What the model thought, said and called, in this order. A cut falls into the last of them."""
    message, items = choice["message"], []
    calls = message.get("tool_calls") or []
    if thoughts := message.get("reasoning_content"):
        content = [{"type": "reasoning_text", "text": thoughts}]
        items.append({"id": f"rs_{id}", "type": "reasoning", "summary": [], "content": content})
    if message.get("content") or not (thoughts or calls):
        logprobs = (choice.get("logprobs") or {}).get("content") or []
        part = {"type": "output_text", "text": message.get("content") or "", "annotations": [], "logprobs": logprobs}
        items.append({"id": f"msg_{id}", "type": "message", "role": "assistant", "content": [part]})
    for place, call in enumerate(calls):
        about = {"call_id": call["id"], **call["function"]}
        items.append({"id": f"fc_{id}_{place}", "type": "function_call", **about})
    for item in items:
        item["status"] = "completed"
    if is_cut:
        items[-1]["status"] = "incomplete"
    return items


def _usage(usage: dict[str, Any]) -> dict[str, Any]:
    details = usage.get("completion_tokens_details") or {}
    cached = usage["prompt_tokens_details"]["cached_tokens"]
    return {
        "input_tokens": usage["prompt_tokens"],
        "input_tokens_details": {"cached_tokens": cached, "cache_write_tokens": 0},
        "output_tokens": usage["completion_tokens"],
        "output_tokens_details": {"reasoning_tokens": details.get("reasoning_tokens", 0)},
        "total_tokens": usage["total_tokens"],
    }
