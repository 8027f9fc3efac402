"""Which pair a line runs on: that of the model that it names, or the one that applies where a line says nothing.

Lines and options decide, and nothing that changes by itself, such as who works just now: the same file with the same
options is the same batch at any time.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from ..queue.pair_names import KNOWN, canonical
from .notes import Notes
from .request.faults import Fault, show


def models(given: Any, said: str) -> dict[str, str]:
    """The pairs of models by their names, as a program or a command gives them; raises Fault.

    A program gives a mapping, a command texts such as `gpt-4o=qwen3-8b,/models/mine`: a name without a pair is one. An
    adapter may stand behind a pair, as in `sql=qwen3-8b:sql`.
    """
    named = given.items() if isinstance(given, Mapping) else _parsed([given] if isinstance(given, str) else given)
    found: dict[str, str] = {}
    for name, told in named:
        if not (isinstance(name, str) and isinstance(told, str) and name and told):
            raise Fault(f"{said} gives {show(name)} the pair {show(told)}; write it as NAME=PAIR, or as PAIR alone")
        pair, adapter = split(told)
        full = f"{pair}:{adapter}" if adapter else pair
        if found.setdefault(name, full) != full:
            raise Fault(f"{said} gives {show(name)} two pairs, {found[name]} and {told}; keep one")
    return found


def split(model: Any) -> tuple[str, str | None]:
    """The pair in `PAIR` or `PAIR:ADAPTER`, and the adapter. What is no text is no pair."""
    if not isinstance(model, str):
        return "", None
    head, _, adapter = model.rpartition(":")
    return (canonical(head), adapter) if head and adapter and "/" not in adapter else (canonical(model), None)


def _parsed(texts: Iterable[str]) -> Iterable[tuple[str, str]]:
    for text in ",".join(texts).split(","):
        name, equals, pair = text.strip().partition("=")
        yield name.strip(), pair.strip() if equals else name.strip()


def target_of(model: Any, pair: str, named: Mapping[str, str], notes: Notes) -> tuple[str, str | None]:
    """Pair and adapter of a line that names `model`, where `pair` applies to lines that name none; notes what may
    surprise.

    Names in `named` come first, then those of the registry. Another name says nothing: files that were written for
    other servers name what those have.
    """
    if model is None:
        return pair, None
    found = (pair, None) if model == pair else split(model)
    if isinstance(model, str) and model in named:
        found = split(named[model])
    elif found[0] in KNOWN and found[0] != pair:
        notes.surprises[f"model {show(model)} is a pair and runs these lines, instead of {pair}"] += 1
    elif found[0] != pair:
        notes.surprises[f"model {show(model)} is ignored: the pair is {pair}"] += 1
        found = pair, None
    if isinstance(model, str):
        notes.models[model] = found[0]
    return found
