"""What a model's chat template can be told, and what of a request it would ignore."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from jinja2 import Environment, TemplateSyntaxError, meta

from .request import RequestError

SWITCHES = ("enable_thinking", "thinking")
"""What templates call the switch that lets the model think or not."""

EFFORT = "reasoning_effort"
NO_EFFORT = ("none", "minimal")
"""Efforts that mean no thoughts, for a template that can only switch them on or off."""

OURS = frozenset(
    ("conversation", "messages", "tools", "chat_template", "add_generation_prompt", "continue_final_message",
     "tokenize", "padding", "truncation", "max_length", "return_tensors", "return_dict", "tokenizer_kwargs",
     "return_assistant_tokens_mask")
)  # fmt: skip
"""What a tokenizer takes beside what it hands to its template: not for requests to set."""

GENERATION = re.compile(r"\{%-?\s*(end)?generation\s*-?%\}")
"""Tags that transformers adds to Jinja; they name nothing."""


class Template:
    """The chat template of a tokenizer (mlx-lm's wrapper), as far as its names tell."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer

    @property
    def exists(self) -> bool:
        return self._source is not None or getattr(self._tokenizer, "_chat_template", None) is not None

    @property
    def names(self) -> frozenset[str] | None:
        """The variables that it reads; None if nobody can tell, as of templates that are programs in Python."""
        if self._source is None:
            return None
        sources = self._source.values() if isinstance(self._source, Mapping) else [self._source]
        found = [names for source in sources if (names := _names(source)) is not None]
        return frozenset().union(*found) if len(found) == len(sources) else None

    def names_token(self, token: str) -> bool:
        """Whether the template has this token in it, or nobody can tell."""
        return self._source is None or token in str(self._source)

    def settings(self, asked: Mapping[str, Any], tools: bool) -> tuple[dict[str, Any], list[str]]:
        """What to tell the template, and notes of what was `asked` and cannot be done.

        A switch goes by the template's name for it, and an effort becomes a switch where the template knows no efforts.
        Raises RequestError for names that are not the template's.
        """
        told, notes = dict(asked), []
        if taken := sorted(OURS & told.keys()):
            raise RequestError(f"chat_template_kwargs may not set {taken[0]!r}; leave it out")
        names = self.names
        if names is None:
            return told, []
        switch = next((name for name in SWITCHES if name in names), None)
        for name in SWITCHES:
            if name in told and name not in names:
                value = told.pop(name)
                if switch:
                    told.setdefault(switch, value)
                elif value or self._thinks:
                    notes.append(f"{name}: the model's chat template cannot switch thinking")
        if EFFORT in told and EFFORT not in names:
            effort = told.pop(EFFORT)
            off = effort in NO_EFFORT
            if switch:
                told.setdefault(switch, not off)
            if not off and switch:
                notes.append(f"{EFFORT}: the model's chat template knows thinking on and off only, so {effort!r} is on")
            elif not switch and (self._thinks or not off):
                notes.append(f"{EFFORT}: the model's chat template cannot be told how much to think")
        for name in sorted(told.keys() - names):
            del told[name]
            notes.append(f"chat_template_kwargs: the model's chat template does not know {name!r}")
        if tools and "tools" not in names:
            notes.append("tools: the model's chat template does not show them to the model")
        return told, notes

    @property
    def _source(self) -> Any:
        return getattr(self._tokenizer, "chat_template", None)

    @property
    def _thinks(self) -> bool:
        return getattr(self._tokenizer, "think_start", None) is not None


@lru_cache(64)
def _names(source: str) -> frozenset[str] | None:
    try:
        parsed = Environment(extensions=["jinja2.ext.loopcontrols"]).parse(GENERATION.sub("", source))
        return frozenset(meta.find_undeclared_variables(parsed))
    except TemplateSyntaxError:
        return None
