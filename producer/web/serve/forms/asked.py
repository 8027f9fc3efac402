"""What /v1/responses asks, as the chat that it is: its body becomes one of /v1/chat/completions, or is refused by name.

Names that neither API has (those of other servers) go through as they are, to be judged where all fields are.
"""

from __future__ import annotations

from typing import Any

from ....input.lines import Fault

NOT_KEPT = "nothing is kept here from one request to the next; send the whole conversation as input"
REFUSED = {
    "previous_response_id": NOT_KEPT,
    "conversation": NOT_KEPT,
    "prompt": "prompts are not kept here; send its text as instructions and input",
    "stream": "calls are queued and answered whole; remove it",
    "background": "use /v1/batches for what nobody waits for",
    "context_management": "nothing is dropped from a conversation here; remove it",
    "moderation": "there is no moderation here; remove it",
}
"""What would need something that is not here, with what to do; null, false and empty values ask for nothing."""
IN_CHATS = {
    "messages": "input",
    "max_tokens": "max_output_tokens",
    "max_completion_tokens": "max_output_tokens",
    "response_format": "text.format",
    "reasoning_effort": "reasoning.effort",
    "verbosity": "text.verbosity",
    "logprobs": "include",
    "functions": "tools",
    "function_call": "tool_choice",
}
"""Names of /v1/chat/completions, and what they are called here."""
OWN = frozenset(
    (
        *("input", "instructions", "max_output_tokens", "text", "reasoning", "tools", "tool_choice", "include"),
        *("top_logprobs", "store", "truncation", "stream_options", "max_tool_calls"),
        *REFUSED,
    )
)
"""What is read here. `max_tool_calls` limits built-in tools, of which there are none."""
MESSAGE = frozenset(("type", "role", "content", "id", "status", "phase"))
CALL = frozenset(("type", "call_id", "name", "arguments", "id", "status"))
OUTPUT = frozenset(("type", "call_id", "output", "id", "status"))
REASONING = frozenset(("type", "summary", "content", "encrypted_content", "id", "status"))
LOGPROBS = "message.output_text.logprobs"
MOST_SHOWN = 40
"""Characters that are shown of a name or a value."""


def chat_of(asked: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """The body for /v1/chat/completions, and notes about what is ignored; raises Fault."""
    _refuse(asked)
    said: list[str] = []
    chat = {name: value for name, value in asked.items() if name not in OWN}
    chat["messages"] = _messages(asked, said)
    if (most := asked.get("max_output_tokens")) is not None:
        if not isinstance(most, int) or isinstance(most, bool) or most < 1:
            raise Fault("max_output_tokens must be a whole number, at least 1")
        chat["max_completion_tokens"] = most
    chat |= _text(asked) | _reasoning(asked, said) | _tools(asked) | _logprobs(asked, said)
    if asked.get("store"):
        said.append("store is ignored: responses are not kept")
    return chat, said


def _refuse(asked: dict[str, Any]) -> None:
    for name, why in REFUSED.items():
        if asked.get(name):
            raise Fault(f"{name} is not supported: {why}")
    for name, here in IN_CHATS.items():
        if asked.get(name) is not None:
            raise Fault(f"{name} belongs to /v1/chat/completions; /v1/responses calls it {here}")
    if asked.get("n") not in (None, 1):
        raise Fault("n is not supported: a response has one answer; use /v1/chat/completions")
    if asked.get("truncation") not in (None, "disabled"):
        raise Fault("truncation is not supported: an input that is too long is refused; remove it")


def _text(asked: dict[str, Any]) -> dict[str, Any]:
    """`text`: the answer's format and verbosity."""
    text = _object(asked, "text", ("format", "verbosity"))
    chat = {} if text.get("verbosity") is None else {"verbosity": text["verbosity"]}
    match text.get("format"):
        case None | {"type": "text"}:
            return chat
        case {"type": "json_schema", **schema}:
            return chat | {"response_format": {"type": "json_schema", "json_schema": schema}}
        case {"type": _} as other:
            return chat | {"response_format": other}
    raise Fault("text.format must be an object with a type")


def _reasoning(asked: dict[str, Any], said: list[str]) -> dict[str, Any]:
    given = _object(asked, "reasoning", ("effort", "summary", "generate_summary", "context", "mode"))
    for name, harmless in (("context", "auto"), ("mode", "standard")):
        if given.get(name) not in (None, harmless):
            raise Fault(f"reasoning.{name} is not supported; remove it")
    if given.get("summary") or given.get("generate_summary"):
        said.append("reasoning.summary is ignored: thoughts are given whole, as reasoning_text")
    return {} if given.get("effort") is None else {"reasoning_effort": given["effort"]}


def _logprobs(asked: dict[str, Any], said: list[str]) -> dict[str, Any]:
    include, top = asked.get("include") or [], asked.get("top_logprobs")
    if not isinstance(include, list):
        raise Fault("include must be a list")
    said += [f"include {_shown(name)} is ignored: there is no such thing here" for name in include if name != LOGPROBS]
    if LOGPROBS not in include and not top:
        return {}
    return {"logprobs": True, "top_logprobs": top or 0}


def _tools(asked: dict[str, Any]) -> dict[str, Any]:
    """Functions and the choice among them, as chats have them."""
    chat: dict[str, Any] = {}
    if tools := asked.get("tools"):
        if not isinstance(tools, list):
            raise Fault("tools must be a list")
        chat["tools"] = [_function(place, tool) for place, tool in enumerate(tools, 1)]
    match asked.get("tool_choice"):
        case None:
            pass
        case str(choice):
            chat["tool_choice"] = choice
        case {"type": "function", "name": str(name)}:
            chat["tool_choice"] = {"type": "function", "function": {"name": name}}
        case {"type": str(kind)}:
            raise Fault(f"tool_choice of type {_shown(kind)} is not supported; only functions are")
        case _:
            raise Fault("tool_choice must be a text, or an object with a type")
    return chat


def _function(place: int, tool: Any) -> dict[str, Any]:
    kind = tool.get("type") if isinstance(tool, dict) else None
    if kind != "function":
        raise Fault(f"tool {place} has the type {_shown(kind)}, which is not supported; only functions are")
    return {"type": "function", "function": {name: value for name, value in tool.items() if name != "type"}}


def _messages(asked: dict[str, Any], said: list[str]) -> list[dict[str, Any]]:
    """The chat that `instructions` and `input` make."""
    messages: list[dict[str, Any]] = []
    if (instructions := asked.get("instructions")) is not None:
        messages.append({"role": "system", "content": instructions})
    match asked.get("input"):
        case None:
            raise Fault("has no input")
        case str(text):
            messages.append({"role": "user", "content": text})
        case list(items):
            for place, item in enumerate(items, 1):
                _add(messages, f"input {place}", item, said)
        case _:
            raise Fault("input must be a text or a list")
    return messages


def _add(messages: list[dict[str, Any]], where: str, item: Any, said: list[str]) -> None:
    """Adds an item of the input to the chat: what the assistant thought, said and called is one message of it."""
    if not isinstance(item, dict):
        raise Fault(f"{where} must be an object")
    last = messages[-1] if messages else {}
    match item.get("type", "message"):
        case "message":
            known, role, content = MESSAGE, item.get("role"), _content(where, item.get("content"))
            if role == "assistant" and last.keys() == {"role", "reasoning_content"}:
                last["content"] = content
            else:
                messages.append({"role": role, "content": content})
        case "reasoning":
            known = REASONING
            messages.append({"role": "assistant", "reasoning_content": _thoughts(where, item)})
        case "function_call":
            known = CALL
            function = {"name": item.get("name"), "arguments": item.get("arguments")}
            if last.get("role") != "assistant":
                messages.append({"role": "assistant", "content": None})
            calls = messages[-1].setdefault("tool_calls", [])
            calls.append({"id": item.get("call_id"), "type": "function", "function": function})
            messages[-1].setdefault("content", None)
        case "function_call_output":
            known, output = OUTPUT, _content(where, item.get("output"))
            messages.append({"role": "tool", "tool_call_id": item.get("call_id"), "content": output})
        case other:
            raise Fault(f"{where} has the type {_shown(other)}, which is not supported")
    said += [f"{where.split()[0]} field {_shown(name)} is unknown and ignored" for name in item if name not in known]


def _content(where: str, content: Any) -> str:
    """A text, or parts that are texts."""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise Fault(f"{where} has no content that is a text or a list")
    texts = []
    for part in content:
        match part:
            case {"type": "input_text" | "output_text", "text": str(text)} | {"type": "refusal", "refusal": str(text)}:
                texts.append(text)
            case {"type": kind}:
                raise Fault(f"{where} has content of type {_shown(kind)}, which is not supported; only text is")
            case _:
                raise Fault(f"{where} has content without a type")
    return "".join(texts)


def _thoughts(where: str, item: dict[str, Any]) -> str:
    match item.get("content") or []:
        case [*parts] if all(isinstance(part, dict) and isinstance(part.get("text"), str) for part in parts):
            text = "".join(part["text"] for part in parts)
        case _:
            raise Fault(f"{where} has thoughts that are no texts")
    if not text and (item.get("encrypted_content") or item.get("summary")):
        raise Fault(f"{where} has thoughts without their text; leave it out")
    return text


def _object(asked: dict[str, Any], name: str, known: tuple[str, ...]) -> dict[str, Any]:
    """An object of which only `known` names are there."""
    given = asked.get(name)
    if given is None:
        return {}
    if not isinstance(given, dict):
        raise Fault(f"{name} must be an object")
    for other in given:
        if other not in known:
            raise Fault(f"{name}.{other[:MOST_SHOWN]} is not supported; remove it")
    return given


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= MOST_SHOWN else f"{text[: MOST_SHOWN - 1]}…"
