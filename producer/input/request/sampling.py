"""Sampling parameters: the values of a line, else the defaults, checked."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from ...queue.wire import MOST_CHOICES, MOST_LOGPROBS, Sampling
from .asked import Asked, whole
from .faults import Fault, kind, reason, show

SAMPLING = tuple(Sampling.model_fields)

WHOLE = ("max_tokens", "min_tokens", "top_k", "seed", "thinking_budget")
"""Those that are whole numbers."""

LISTS = ("stop", "stop_token_ids", "allowed_token_ids", "bad_words")

TOKEN = re.compile("[0-9]{1,20}")
"""A token id as a key of JSON."""

OFF = {"seed": None, "top_k": 0, "thinking_budget": None}
"""What -1 means, with which other servers say that a parameter is off."""


def given(asked: Asked, is_chat: bool) -> dict[str, Any]:
    """The sampling parameters that a request names, by our names; None where it says that there is none."""
    values = {name: asked.get(name) for name in SAMPLING if name in asked and name != "logprobs"}
    if "logprobs" in asked or asked.get("top_logprobs"):
        values["logprobs"] = _in_chat(asked) if is_chat else _in_text(asked.get("logprobs"))
    return values


def sampling(given: Mapping[str, Any], defaults: Mapping[str, Any], said: Mapping[str, str] | None = None) -> Sampling:
    """Checked sampling parameters: what is given, else the defaults. `said` has the user's names for ours."""
    values = {**defaults, **given}
    for name, off in OFF.items():
        if values.get(name) == -1:
            values[name] = off
    for name in WHOLE:  # a table whose column has gaps makes 3.0 of 3
        if isinstance(value := values.get(name), float) and value.is_integer():
            values[name] = int(value)
    if isinstance(stop := values.get("stop"), str):
        values["stop"] = (stop,)
    for name in LISTS:
        if isinstance(value := values.get(name), list):
            values[name] = tuple(value)
    if values.get("allowed_token_ids") == ():
        raise Fault("allowed_token_ids is empty, so no token may come; remove it")
    if "logit_bias" in values:
        values["logit_bias"] = _bias(values["logit_bias"])
    try:
        sampling = Sampling.model_validate(values, strict=True)
    except ValidationError as error:
        raise Fault(reason(error, said)) from None
    if sampling.min_tokens > sampling.max_tokens:
        least, most = ((said or {}).get(name, name) for name in ("min_tokens", "max_tokens"))
        raise Fault(f"{least} is {sampling.min_tokens}, more than {most}, {sampling.max_tokens}")
    return sampling


def choices(asked: Asked, default: int) -> int:
    """How many answers each prompt has."""
    n = whole("n", asked.get("n", default), 1, MOST_CHOICES)
    best_of = asked.get("best_of", n)
    if best_of != n:
        raise Fault(f"best_of = {show(best_of)} is not supported unless it is n, {n}; remove it")
    return n


def _bias(value: Any) -> dict[int, Any]:
    """OpenAI's form: token ids are keys, and so they are texts in JSON."""
    if not isinstance(value, Mapping):
        raise Fault(f"logit_bias is {kind(value)} instead of an object of token ids")
    names: dict[int, Any] = {}
    for key in value:
        if not TOKEN.fullmatch(str(key)):
            raise Fault(f"logit_bias has the key {show(key)}; keys must be token ids")
        if (first := names.setdefault(int(key), key)) is not key:
            raise Fault(f"logit_bias has the keys {show(first)} and {show(key)} for one token; keep one")
    return {token: value[key] for token, key in names.items()}


def _in_chat(asked: Asked) -> int | None:
    """How many likeliest tokens a chat asks log-probabilities for; None if for none, and not for those chosen."""
    wanted, top = asked.get("logprobs"), asked.get("top_logprobs", 0)
    if not isinstance(wanted, bool | None):
        raise Fault(f"logprobs is {show(wanted)}; in a chat it must be true or false, and top_logprobs a number")
    if top and not wanted:
        raise Fault(f"top_logprobs is {show(top)}, but logprobs is not true")
    return whole("top_logprobs", top, 0, MOST_LOGPROBS) if wanted else None


def _in_text(wanted: Any) -> int | None:
    return None if wanted is False else whole("logprobs", wanted, 0, MOST_LOGPROBS)
