"""`draftmill pairs`: the pairs that are known by name, and which of them are on this machine."""

from __future__ import annotations

from pathlib import Path

import click
from huggingface_hub import try_to_load_from_cache

from ..engine import boxed
from ..engine.pairs import PAIRS
from ..producer.paths import cache_dir


@click.command()
def pairs() -> None:
    """List the known pairs. Any quantisation of a target, by folder or hub id, takes the draft of its pair."""
    rows = [("PAIR", "TARGET", "DRAFT", "ON THIS MACHINE")]
    for pair in PAIRS.values():
        draft = pair.draft or "none"
        parts = [name for name, model in (("target", pair.target), ("draft", draft)) if present(model)]
        rows.append((pair.name, pair.target, "in the box" if Path(draft).is_absolute() else draft, " and ".join(parts)))
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    for row in rows:
        click.echo(
            "  ".join([f"{cell:<{width}}" for cell, width in zip(row, widths, strict=False)] + [row[3]]).rstrip()
        )


def present(model: str) -> bool:
    """Whether a boxed model, a folder or a hub id is here already."""
    if model == boxed.NAME:
        return boxed.folder(cache_dir()).exists()
    if Path(model).is_absolute():
        return Path(model).is_dir()
    return isinstance(try_to_load_from_cache(model, "config.json"), str)
