"""What applies where a line says nothing: what the options of a command or a program name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import orjson

from ..queue.wire import MOST_CHOICES, MOST_LOGPROBS, Grammar
from .request.asked import Asked, whole
from .request.faults import Fault
from .request.sampling import SAMPLING, sampling
from .request.structure import Kind, made
from .request.thinking import template

TEMPLATE = {"thinking": "enable_thinking", "reasoning_effort": "reasoning_effort"}
"""Options that the chat template is told, with its names for them."""

GRAMMARS: dict[str, Kind] = {
    "schema": "json",
    "regex": "regex",
    "choice": "choice",
    "grammar": "lark",
}
"""Options that the answer must obey, of which kind."""


@dataclass(frozen=True)
class Defaults:
    """What applies where a line says nothing: sampling parameters by name, a system message, a grammar, and so on.

    `template` is what the chat template is told, `trusted` whether messages may name control tokens. With
    `model_defaults` the model's own generation defaults apply to what neither line nor `sampling` says. `served` says
    that lines are requests to a server, which chose the pair by their model.
    """

    sampling: dict[str, Any] = field(default_factory=dict)
    system: str | None = None
    grammar: Grammar | None = None
    n: int = 1
    template: dict[str, Any] = field(default_factory=dict)
    trusted: bool = False
    model_defaults: bool = False
    served: bool = False


def defaults(given: Mapping[str, Any]) -> Defaults:
    """The defaults that options say, by the options' names; raises Fault, which begins with the name of one."""
    given = {name: value for name, value in given.items() if value is not None}
    values = {name: given[name] for name in SAMPLING if name in given}
    if "logprobs" in values:
        values["logprobs"] = whole("logprobs", values["logprobs"], 0, MOST_LOGPROBS)
    sampling({}, values)
    return Defaults(
        values,
        given.get("system"),
        _grammar(given),
        whole("n", given.get("n", 1), 1, MOST_CHOICES),
        _template(given),
        bool(given.get("control_tokens")),
        bool(given.get("model_defaults")),
    )


def _grammar(given: Mapping[str, Any]) -> Grammar | None:
    names = [name for name in GRAMMARS if name in given]
    if len(names) > 1:
        raise Fault(f"{names[0]} contradicts {names[1]}; keep one")
    return made(GRAMMARS[names[0]], given[names[0]], names[0]) if names else None


def _template(given: Mapping[str, Any]) -> dict[str, Any]:
    asked = Asked()
    for option, name in TEMPLATE.items():
        if option in given:
            asked.put(name, given[option], option)
    if (told := given.get("chat_template_kwargs")) is not None:
        asked.put("chat_template_kwargs", _object(told))
    return template(asked, {})


def _object(value: Any) -> Any:
    """What a program gives, or what JSON says."""
    if not isinstance(value, str):
        return dict(value) if isinstance(value, Mapping) else value
    try:
        return orjson.loads(value)
    except orjson.JSONDecodeError as error:
        raise Fault(f"chat_template_kwargs is not JSON: {error.msg} at column {error.colno}") from None
