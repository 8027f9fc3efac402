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

    A program gives a mapping, a command texts such as `gpt-4o=qwen3-8b,/models/mine`: a name without a pair is one.
    """
    named = given.items() if isinstance(given, Mapping) else _parsed([given] if isinstance(given, str) else given)
    found: dict[str, str] = {}
    for name, pair in named:
        if not (isinstance(name, str) and isinstance(pair, str) and name and pair):
            raise Fault(f"{said} gives {show(name)} the pair {show(pair)}; write it as NAME=PAIR, or as PAIR alone")
        if found.setdefault(name, canonical(pair)) != canonical(pair):
            raise Fault(f"{said} gives {show(name)} two pairs, {found[name]} and {pair}; keep one")
    return found


def _parsed(texts: Iterable[str]) -> Iterable[tuple[str, str]]:
    for text in ",".join(texts).split(","):
        name, equals, pair = text.strip().partition("=")
        yield name.strip(), pair.strip() if equals else name.strip()


def pair_of(model: Any, pair: str, named: Mapping[str, str], notes: Notes) -> str:
    """The pair of a line that names `model`, where `pair` applies to lines that name none; notes what may surprise.

    Names in `named` come first, then those of the registry. Another name says nothing: files that were written for
    other servers name what those have.
    """
    if model is None:
        return pair
    chosen = named.get(model) if isinstance(model, str) else None
    if chosen is None and isinstance(model, str) and (canonical(model) == pair or canonical(model) in KNOWN):
        chosen = canonical(model)
        if chosen != pair:
            notes.surprises[f"model {show(model)} is a pair and runs these lines, instead of {pair}"] += 1
    if chosen is None:
        notes.surprises[f"model {show(model)} is ignored: the pair is {pair}"] += 1
    if isinstance(model, str):
        notes.models[model] = chosen or pair
    return chosen or pair
