"""What the chat template is told beside the messages: whether and how much to think, and any names of its own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .asked import Asked, named, whole
from .faults import Fault, show

EFFORTS = ("none", "minimal", "low", "medium", "high", "xhigh", "max")

NO_THOUGHTS, THOUGHTS = ("none", "minimal"), EFFORTS[1:]
"""Efforts that go with thinking off, and with thinking on."""

SWITCHES = ("enable_thinking", "thinking", "reasoning_effort")
"""What a template may be told about thinking. A request that says one of them is free of the defaults of all."""

OWN_FIELDS = {
    "add_generation_prompt": "make it a field of the request",
    "continue_final_message": "make it a field of the request",
    "tools": "make it a field of the request",
    "messages": "make it a field of the request",
    "conversation": "make messages a field of the request",
    "documents": "put their texts into a message",
    "chat_template": "the model's own template is used; remove it",
    "tokenize": "remove it",
    "return_dict": "remove it",
    "return_tensors": "remove it",
}
"""Names that are no template's, but of the function that renders it."""


def unfold(asked: Asked) -> None:
    """Puts what `thinking` and `reasoning` hold under the names that there are for it."""
    match asked.get("thinking"):
        case None:
            pass
        case bool(on):
            asked.put("enable_thinking", on, "thinking")
        case {"type": ("enabled" | "disabled") as type, **others} if others.keys() <= {"budget_tokens"}:
            asked.put("enable_thinking", type == "enabled", "thinking.type")
            _put(asked, "thinking_budget", others.get("budget_tokens"), "thinking.budget_tokens")
        case other:
            form = '{"type": "enabled" or "disabled", "budget_tokens": …}'
            raise Fault(f"thinking is {show(other)}; it must be true, false or {form}")
    if (reasoning := asked.get("reasoning")) is not None:
        reasoning = named("reasoning", reasoning)
        if unknown := reasoning.keys() - {"effort", "max_tokens", "enabled"}:
            raise Fault(f"reasoning.{min(unknown)} is not supported; reasoning may have effort, max_tokens, enabled")
        _put(asked, "reasoning_effort", reasoning.get("effort"), "reasoning.effort")
        _put(asked, "thinking_budget", reasoning.get("max_tokens"), "reasoning.max_tokens")
        _put(asked, "enable_thinking", reasoning.get("enabled"), "reasoning.enabled")


def template(asked: Asked, defaults: Mapping[str, Any]) -> dict[str, Any]:
    """What the chat template is told, by the names that it has for it; raises Fault."""
    all_told = asked.said.get("chat_template_kwargs", "chat_template_kwargs")
    told = dict(named(all_told, asked.get("chat_template_kwargs", {})))
    words = {name: f"{all_told}.{name} is {show(value)}" for name, value in told.items()}
    for name in told:
        if name in OWN_FIELDS:
            raise Fault(f"{all_told}.{name} is not supported; {OWN_FIELDS[name]}")
    for name, value in (("enable_thinking", asked.flag("enable_thinking")), ("reasoning_effort", _effort(asked))):
        if value is not None:
            if told.get(name, value) != value:
                raise Fault(f"{words[name]} and {asked.words(name)}; keep one")
            told[name], words[name] = value, asked.words(name)
    _refuse_contradictions(told, words)
    if any(name in told for name in SWITCHES):
        defaults = {name: value for name, value in defaults.items() if name not in SWITCHES}
    return {**defaults, **told}


def _put(asked: Asked, name: str, value: Any, said: str) -> None:
    if value is not None:
        asked.put(name, whole(said, value, -1, 1_000_000) if name == "thinking_budget" else value, said)


def _effort(asked: Asked) -> str | None:
    effort = asked.get("reasoning_effort")
    if effort is not None and effort not in EFFORTS:
        raise Fault(f"{asked.said['reasoning_effort']} is {show(effort)}; it must be one of {', '.join(EFFORTS)}")
    return effort


def _refuse_contradictions(told: Mapping[str, Any], words: Mapping[str, str]) -> None:
    """Raises Fault if one says that the model thinks, and another that it does not; `words` has what the user said."""
    effort = told.get("reasoning_effort")
    switches = {name: told[name] for name in ("enable_thinking", "thinking") if isinstance(told.get(name), bool)}
    against = [
        name for name, on in switches.items() if effort in EFFORTS and effort not in (THOUGHTS if on else NO_THOUGHTS)
    ]
    if len(set(switches.values())) > 1 or against:
        names = [against[0], "reasoning_effort"] if against else list(switches)
        raise Fault(f"{' and '.join(words[name] for name in names)}; keep one")
