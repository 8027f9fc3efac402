"""Tools that the model may call, and the calls in messages, in OpenAI's form."""

from __future__ import annotations

from typing import Any

import orjson

from ...queue.wire import Grammar, Tools
from .asked import Asked
from .faults import Fault, kind, show


def tools(asked: Asked, grammar: Grammar | None) -> Tools | None:
    """The tools of a request, unless tool_choice drops them; raises Fault."""
    given, choice = asked.get("tools", []), asked.get("tool_choice")
    if not isinstance(given, list):
        raise Fault(f"tools is {kind(given)} instead of a list")
    names = [_tool(place, tool) for place, tool in enumerate(given, 1)]
    if twice := {name for name in names if names.count(name) > 1}:
        raise Fault(f"two tools have the name {show(min(twice))}")
    required, named = _choice(choice, names)
    if not given or choice == "none":
        return None
    if grammar:
        raise Fault('has tools and a grammar, such as response_format; keep one, or set tool_choice to "none"')
    single = asked.flag("parallel_tool_calls") is False
    return Tools(tools=tuple(given), required=required, named=named, single=single)


def calls(place: int, given: Any) -> tuple[dict[str, Any], ...]:
    """The tool_calls of message `place`; raises Fault."""
    if not isinstance(given, list):
        raise Fault(f"message {place}: tool_calls is {kind(given)} instead of a list")
    return tuple(_call(f"message {place}: call {number}", call) for number, call in enumerate(given, 1))


def _tool(place: int, tool: Any) -> str:
    """The name of a tool; raises Fault."""
    where = f"tool {place}"
    match tool:
        case {"type": "function", "function": {"name": str(name)} as function} if name:
            pass
        case {"type": type} if type != "function":
            raise Fault(f"{where} has the type {show(type)}; only functions are supported")
        case _:
            raise Fault(f'{where} is {show(tool)}; it must be {{"type": "function", "function": {{"name": …}}}}')
    parameters, description = function.get("parameters"), function.get("description")
    if not isinstance(parameters, dict | None):
        raise Fault(f"{where}: parameters is {kind(parameters)} instead of a JSON schema, an object")
    if not isinstance(description, str | None):
        raise Fault(f"{where}: description is {kind(description)} instead of a text")
    return name


def _choice(choice: Any, names: list[str]) -> tuple[bool, str | None]:
    """Whether a tool must be called, and which one."""
    match choice:
        case None | "none" | "auto":
            return False, None
        case "required" if names:
            return True, None
        case {"type": "function", "function": {"name": str(name)}} if name in names:
            return False, name
        case "required" | {"type": "function", "function": {"name": _}} if not names:
            raise Fault(f"tool_choice is {show(choice)}, but there are no tools")
        case {"type": "function", "function": {"name": name}}:
            raise Fault(f"tool_choice names {show(name)}; the tools are {', '.join(names)}")
        case {"type": "allowed_tools"}:
            raise Fault("tool_choice of the type allowed_tools is not supported; list only those tools")
        case _:
            raise Fault(f'tool_choice is {show(choice)}; it must be "none", "auto", "required" or a function\'s name')


def _call(where: str, call: Any) -> dict[str, Any]:
    match call:
        case {"type": type} if type != "function":
            raise Fault(f"{where} has the type {show(type)}; only functions are supported")
        case {"function": {"name": str(name)} as function} if name:
            pass
        case _:
            raise Fault(f'{where} is {show(call)}; it must be {{"type": "function", "function": {{"name": …}}}}')
    return call | {"function": function | {"arguments": _arguments(where, function.get("arguments"))}}


def _arguments(where: str, given: Any) -> Any:
    """Arguments as JSON or as the object that it says; none are an empty one."""
    if given is None or given == "":
        return "{}"
    try:
        arguments = orjson.loads(given) if isinstance(given, str) else given
    except orjson.JSONDecodeError as error:
        raise Fault(f"{where}: arguments are not JSON: {error.msg} at column {error.colno}") from None
    if not isinstance(arguments, dict):
        raise Fault(f"{where}: arguments are {kind(arguments)} instead of an object")
    return given
