"""The messages of a chat, and the prompts of a text completion."""

from __future__ import annotations

from typing import Any

from pydantic import ValidationError

from ...queue.wire import Message
from ..notes import Notes
from .asked import Asked
from .faults import Fault, kind, reason, show
from .tools import calls

MOST_ANSWERS = 2_048
"""Answers of one line: prompts, each as often as `n` says."""

REFUSED = {
    "function_call": "use tool_calls",
    "audio": "only text is supported",
    "refusal": "make it the content",
    "prefix": "say continue_final_message beside the messages",
    "partial": "say continue_final_message beside the messages",
}
"""Names in messages that are refused unless their value is null, false or empty, and what to do instead."""

HONOURED = ("role", "content", "name", "tool_calls", "tool_call_id", "reasoning_content", "reasoning")
CHANGE_NOTHING = ("annotations", "id")
NAMES = frozenset((*HONOURED, *REFUSED, *CHANGE_NOTHING))

CONTINUED = "a chat that ends with an assistant's message is continued there, as continue_final_message says"


def messages(asked: Asked, system: str | None, notes: Notes) -> tuple[Message, ...]:
    """The messages of a chat, behind the system message `system` unless it has one; raises Fault."""
    given = asked.get("messages")
    if given is None:
        raise Fault("has no messages")
    if not isinstance(given, list) or not given:
        raise Fault("messages must be a list that is not empty")
    found = tuple(_message(place, message) for place, message in enumerate(given, 1))
    unknown = {name for message in given for name in message if name not in NAMES}
    notes.unknown.update(f"field {show(name)} of a message is unknown and ignored" for name in unknown)
    if system is not None and all(message.role != "system" for message in found):
        return (Message(role="system", content=system), *found)
    return found


def turn(asked: Asked, messages: tuple[Message, ...], notes: Notes) -> tuple[bool, bool]:
    """Whether the answer continues the last message, and if not, whether the template begins an answer."""
    continues, prompted = asked.flag("continue_final_message"), asked.flag("add_generation_prompt")
    last = messages[-1]
    if last.tool_calls:
        raise Fault("ends with calls of tools; add their results, messages of the role tool")
    if continues:
        if prompted:
            raise Fault("continue_final_message and add_generation_prompt contradict each other; keep one")
        if last.role != "assistant":
            raise Fault("continue_final_message needs an assistant's message at the end")
        return True, True
    if last.role == "assistant":
        if (continues, prompted) != (None, None):
            raise Fault("ends with an assistant's message; say continue_final_message, or add a user's message")
        notes.surprises[CONTINUED] += 1
        return False, True
    return False, prompted is not False


def prompts(asked: Asked, n: int) -> tuple[str | tuple[int, ...], ...]:
    """The prompts of a text completion, each to be answered `n` times: a text, token ids, or a list of either."""
    given = asked.get("prompt")
    if isinstance(given, list) and given and all(isinstance(each, str | list) for each in given):
        if n * len(given) > MOST_ANSWERS:
            wanted = f"{len(given):,} prompts and n = {n} are {n * len(given):,} answers"
            raise Fault(f"{wanted}; at most {MOST_ANSWERS:,} are allowed in a line")
        return tuple(_prompt(each, f"prompt {place}") for place, each in enumerate(given, 1))
    return (_prompt(given, "prompt"),)


def instruction(prompt: Any) -> str:
    """The prompt of a short line, one text."""
    if not isinstance(prompt, str):
        raise Fault(f"prompt is {kind(prompt)} instead of one text")
    if not prompt:
        raise Fault("prompt is empty")
    return prompt


def _prompt(given: Any, name: str) -> str | tuple[int, ...]:
    match given:
        case None:
            raise Fault("has no prompt")
        case "" | []:
            raise Fault(f"{name} is empty")
        case str():
            return given
        case list() if all(type(each) is int and 0 <= each < 2**31 for each in given):
            return tuple(given)
        case list():
            raise Fault(f"{name} is {show(given)}; it must be a text, or token ids")
        case _:
            raise Fault(f"{name} is {kind(given)} instead of a text, token ids, or a list of them")


def _message(place: int, message: Any) -> Message:
    if not isinstance(message, dict):
        raise Fault(f"message {place} is {kind(message)} instead of a JSON object")
    for name, instead in REFUSED.items():
        if message.get(name):
            raise Fault(f"message {place} has {name}, which is not supported; {instead}")
    role = "system" if message.get("role") == "developer" else message.get("role")
    if role == "function":
        raise Fault(f'message {place}: the role "function" is not supported; use "tool"')
    found = {
        "role": role,
        "content": _content(place, message),
        "name": message.get("name"),
        "reasoning_content": _thoughts(place, message),
        "tool_calls": calls(place, message.get("tool_calls") or []),
        "tool_call_id": message.get("tool_call_id"),
    }
    try:
        valid = Message.model_validate(found, strict=True)
    except ValidationError as error:
        raise Fault(f"message {place}: {reason(error)}") from None
    if valid.role != "assistant" and (valid.tool_calls or valid.reasoning_content):
        has = "tool_calls" if valid.tool_calls else "reasoning_content"
        raise Fault(f"message {place} has {has}, and is not the assistant's")
    return valid


def _thoughts(place: int, message: dict[str, Any]) -> Any:
    ours, others = message.get("reasoning_content"), message.get("reasoning")
    if ours is not None and others is not None and ours != others:
        raise Fault(f"message {place} has both reasoning_content and reasoning; keep one")
    return others if ours is None else ours


def _content(place: int, message: dict[str, Any]) -> str | None:
    """Content is a text, or parts of which only the type text is served; a message that calls tools needs none."""
    content = message.get("content")
    if content is None:
        if message.get("tool_calls"):
            return None
        raise Fault(f"message {place} has no content")
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise Fault(f"message {place}: content is {kind(content)} instead of a text")
    for part in content:
        if not (isinstance(part, dict) and part.get("type") == "text" and isinstance(part.get("text"), str)):
            given = part.get("type") if isinstance(part, dict) else kind(part)
            raise Fault(f"message {place}: content of type {show(given)} is not supported, only text is")
    return "".join(part["text"] for part in content)
