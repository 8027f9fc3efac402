"""What applies where a line says nothing: what the options of a command or a program name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, get_args

import orjson

from ..queue.wire import MOST_CHOICES, MOST_LOGPROBS, DraftSource, Grammar
from .models import models
from .request.asked import Asked, whole
from .request.faults import Fault, show
from .request.sampling import SAMPLING, sampling
from .request.structure import Kind, made
from .request.thinking import template

TEMPLATE = {"thinking": "enable_thinking", "reasoning_effort": "reasoning_effort"}
"""Options that the chat template is told, with its names for them."""

KWARGS = "chat_template_kwargs"

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

    `adapter` is a LoRA adapter's name, `drafts` has the sources that may draft. `template` is what the chat template is
    told, `trusted` whether messages may name control tokens. With `model_defaults` the model's own generation defaults
    apply to what neither line nor `sampling` says. `models` has the pairs of models that lines may name. `served` says
    that lines are requests to a server, which chose the pair by their model.
    """

    sampling: dict[str, Any] = field(default_factory=dict)
    system: str | None = None
    grammar: Grammar | None = None
    n: int = 1
    adapter: str | None = None
    drafts: tuple[DraftSource, ...] | None = None
    template: dict[str, Any] = field(default_factory=dict)
    trusted: bool = False
    model_defaults: bool = False
    models: Mapping[str, str] = field(default_factory=dict[str, str])
    served: bool = False


def defaults(given: Mapping[str, Any], called: Mapping[str, str] | None = None) -> Defaults:
    """The defaults that options say, by their names in Python; raises Fault.

    `called` has the names by which a command's user knows them, `--top-k` or `--no-thinking`.
    """
    given = {name: value for name, value in given.items() if value is not None}
    said = {name: (called or {}).get(name, name) for name in given}
    values = {name: given[name] for name in SAMPLING if name in given}
    if "logprobs" in values:
        values["logprobs"] = whole(said["logprobs"], values["logprobs"], 0, MOST_LOGPROBS)
    sampling({}, values, said)
    return Defaults(
        values,
        given.get("system"),
        _grammar(given, said),
        whole(said.get("n", "n"), given.get("n", 1), 1, MOST_CHOICES),
        given.get("adapter"),
        _drafts(given["drafts"], said["drafts"]) if "drafts" in given else None,
        _template(given, said),
        bool(given.get("control_tokens")),
        bool(given.get("model_defaults")),
        models(given["models"], said["models"]) if "models" in given else {},
    )


def _drafts(names: Sequence[str], said: str) -> tuple[DraftSource, ...]:
    known: tuple[DraftSource, ...] = get_args(DraftSource)
    if wrong := [name for name in names if name not in known]:
        raise Fault(f"{said} has {show(wrong[0])}, which is no source of drafts: name some of {', '.join(known)}")
    return tuple(name for name in known if name in names)


def _grammar(given: Mapping[str, Any], said: Mapping[str, str]) -> Grammar | None:
    names = [name for name in GRAMMARS if name in given]
    if len(names) > 1:
        raise Fault(f"{said[names[0]]} contradicts {said[names[1]]}; keep one")
    return made(GRAMMARS[names[0]], given[names[0]], said[names[0]]) if names else None


def _template(given: Mapping[str, Any], said: Mapping[str, str]) -> dict[str, Any]:
    asked = Asked()
    for option, name in TEMPLATE.items():
        if (value := given.get(option)) is not None:
            is_switch = isinstance(value, bool) and said[option] != option
            asked.put(name, value, said[option], is_switch)
    if (told := given.get(KWARGS)) is not None:
        asked.put(KWARGS, _object(told, said[KWARGS]), said[KWARGS])
    return template(asked, {})


def _object(value: Any, said: str) -> Any:
    """What a program gives, or what JSON says."""
    if not isinstance(value, str):
        return dict(value) if isinstance(value, Mapping) else value
    try:
        return orjson.loads(value)
    except orjson.JSONDecodeError as error:
        raise Fault(f"{said} is not JSON: {error.msg} at column {error.colno}") from None
