"""`draftmill pairs`: the pairs that are known by name, and which of them are on this machine."""

from __future__ import annotations

from pathlib import Path

import click
from huggingface_hub import try_to_load_from_cache

from ...engine.models import boxed
from ...engine.models.pairs import PAIRS, Pair, resolve
from ...producer.cli import options
from ...producer.cli.report import print_json, print_table
from ...producer.queue.errors import UserError
from ...producer.queue.paths import cache_dir


@click.command()
@click.option("--fetch", metavar="PAIR", help="Fetch both models of PAIR, unless they are here already.")
@options.as_json
def pairs(fetch: str | None, as_json: bool) -> None:
    """List the known pairs of target and draft, and what of them is on this machine.

    Any quantisation of a target, by folder or hub id, takes the draft of its pair. Any other model that mlx-lm runs
    is served without a draft; the worker says so: "plain: no adapter for ...". A Qwen3.5 without a draft drafts by its
    own MTP head (mtp), if its checkpoint has one; the worker says so, too.

    \b
    Examples:
      draftmill pairs
      draftmill pairs --fetch qwen3-4b
      draftmill pairs --json | jq -r '.[] | select(.here == ["target", "draft"]).pair'
    """
    if fetch:
        return _fetch(fetch)
    if as_json:
        return print_json(
            [
                {
                    "pair": p.name,
                    "target": p.target,
                    "draft": p.draft,
                    "drafts": sources(p),
                    "here": here(p),
                    "advice": p.advice,
                }
                for p in PAIRS.values()
            ]
        )
    rows = []
    for pair in PAIRS.values():
        draft = pair.draft or "none"
        draft = "in the box" if Path(draft).is_absolute() else draft
        rows.append((pair.name, pair.target, draft, ", ".join(sources(pair)), " and ".join(here(pair))))
    print_table(("PAIR", "TARGET", "DRAFT", "SOURCES", "ON THIS MACHINE"), rows)
    for pair in PAIRS.values():
        if pair.advice:
            click.echo(f"{pair.name}: {pair.advice}")


def _fetch(name: str) -> None:
    """Prints the folder of each model of the pair."""
    from ...engine.models.folder import ModelError, locate

    try:
        pair = resolve(name)
        for model in filter(None, (pair.target, pair.draft)):
            click.echo(locate(model, cache_dir()))
    except ModelError as error:
        raise UserError(str(error)) from error


def sources(pair: Pair) -> list[str]:
    """Where its drafts come from: `draftmill worker --drafts` can leave some out."""
    return [*(["dflash"] if pair.draft else []), *(["mtp"] if has_head(pair.target) else []), "lookup"]


def has_head(target: str) -> bool:
    """Whether a target is here and its checkpoint has an MTP head. Nothing is fetched to find out."""
    from ...engine.drafting.mtp.load import has_own_head
    from ...engine.models.folder import ModelError

    file = Path(target, "config.json") if Path(target).is_absolute() else try_to_load_from_cache(target, "config.json")
    try:
        return isinstance(file, str | Path) and has_own_head(Path(file).parent)
    except ModelError:
        return False


def here(pair: Pair) -> list[str]:
    """Which of its two models are on this machine."""
    models = (("target", pair.target), ("draft", pair.draft))
    return [name for name, model in models if model and present(model)]


def present(model: str) -> bool:
    """Whether a boxed model, a folder or a hub id is here already."""
    if model == boxed.NAME:
        return boxed.folder(cache_dir()).exists()
    if Path(model).is_absolute():
        return Path(model).is_dir()
    return isinstance(try_to_load_from_cache(model, "config.json"), str)
