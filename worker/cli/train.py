"""`draftmill train`: makes a draft for a target, on any machine that MLX runs on."""

from __future__ import annotations

import logging
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from ...producer.cli.options import Duration
from ...producer.queue.errors import Interrupted, UserError
from ...producer.queue.paths import cache_dir

FILE = click.Path(exists=True, dir_okay=False, path_type=Path)

OF_THE_BACKBONE = ("layers", "block", "mask_token")
"""Options that a finished draft answers."""


@click.command()
@click.option("--target", default="smollm2-135m", show_default=True, help="Model: a name, a folder or a hub id.")
@click.option("--prompts", type=FILE, multiple=True, help='JSONL file with a "prompt" a line; may be repeated.')
@click.option("--self-prompts", type=click.IntRange(0), default=0, help="Let the target write so many prompts.")
@click.option("--measure", type=FILE, multiple=True, help="Prompts never trained on, to measure the draft on.")
@click.option("--out", type=click.Path(file_okay=False, path_type=Path), required=True, help="The draft's folder.")
@click.option("--steps", type=click.IntRange(1), default=6000, show_default=True, help="Steps to train for.")
@click.option("--max-time", type=Duration(1), metavar="TIME", help="To train for, if it ends before the steps.")
@click.option("--max-tokens", type=click.IntRange(8), default=256, show_default=True, help="Longest response.")
@click.option("--max-rows", type=click.IntRange(1, 1024), default=256, show_default=True, help="Rows at a time.")
@click.option("--mask-token", type=click.IntRange(0), help="Token id that masks; by default an unused special one.")
@click.option("--bits", type=click.Choice(["8", "16"]), default="8", show_default=True, help="Of the weights.")
@click.option("--markov-rank", type=click.IntRange(1), help="Add a Markov head, with codes of so many numbers.")
@click.option(
    "--markov-head",
    type=click.Choice(["vanilla", "gated", "rnn"]),
    default="vanilla",
    show_default=True,
    help="Its kind.",
)
@click.option("--backbone", help="Train only a Markov head, on this DFlash draft: a pair's, a folder or a hub id.")
@click.option("--layers", type=click.IntRange(1), default=4, show_default=True, help="Layers of the draft.")
@click.option("--block", type=click.IntRange(2, 64), default=10, show_default=True, help="Tokens of a block.")
@click.option("--anchors", type=click.IntRange(1), default=24, show_default=True, help="Blocks of a sequence.")
@click.option("--batch", "batch_tokens", type=click.IntRange(1), default=12288, show_default=True, help="In tokens.")
@click.option("--longest", type=click.IntRange(16), default=512, show_default=True, help="Cut sequences to this.")
@click.option(
    "--learning-rate", type=click.FloatRange(0, min_open=True), default=1e-3, show_default=True, help="At its peak."
)
@click.option("--gamma", type=click.FloatRange(0, min_open=True), default=5.0, show_default=True, help="Loss decay.")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Of the draft and its samples.")
@click.pass_context
def train(context: click.Context, **options: Any) -> None:
    """Train a DFlash draft for a target, or a DSpark draft: with a Markov head.

    The target answers the prompts itself; the draft learns those answers. The folder --out keeps prompts, answers
    and a checkpoint below training/: the same command goes on from there.

    A Markov head tells each slot of a block which token was drafted before it. With --backbone, a finished DFlash
    draft stays as it is and only the head learns, from far fewer answers.

    \b
    Examples:
      draftmill train --prompts prompts.jsonl --out my-draft
      draftmill train --target Qwen/Qwen3-4B --prompts a.jsonl --prompts b.jsonl --out my-draft --max-time 1h
      draftmill train --target Qwen/Qwen3-8B --backbone qwen3-8b --markov-rank 256 --prompts a.jsonl --out my-draft
      draftmill worker --target Qwen/Qwen3-8B --draft my-draft            # use it
    """
    refuse_contradictions(context)
    from ..blas import preload
    from ..cuda import suit_rounds

    suit_rounds(options["max_rows"])
    slow = preload()
    logging.basicConfig(format="%(asctime)s %(message)s", datefmt="%H:%M:%S", level=logging.WARNING)
    if slow:
        logging.getLogger("draftmill.train").warning(slow)

    from ...engine.models.boxed import ModelError
    from ...engine.models.folder import locate
    from ...engine.models.pairs import PAIRS
    from ...engine.train.prompts import TrainingError
    from ...engine.train.recipe import Recipe, load_engine
    from ...engine.train.run import Run
    from ...engine.train.run import train as train_run

    named = {field.name: options[field.name] for field in fields(Recipe) if options.get(field.name) is not None}
    recipe = Recipe(**{**named, "backbone": ""})  # its name is found out from its files
    run = Run(
        target=options["target"],
        out=options["out"],
        prompt_files=options["prompts"],
        measure_files=options["measure"],
        self_prompts=options["self_prompts"],
        max_tokens=options["max_tokens"],
        steps=options["steps"],
        max_seconds=options["max_time"],
        mask_token=options["mask_token"],
        bits=int(options["bits"]),
        recipe=recipe,
    )
    try:
        if backbone := options["backbone"]:
            pair = PAIRS.get(backbone)
            run = replace(run, backbone=locate(pair.draft if pair and pair.draft else backbone, cache_dir()))
        engine = load_engine(run.target, cache_dir(), options["max_rows"])
        train_run(run, engine, click.echo)
    except (ModelError, TrainingError) as error:
        raise UserError(str(error)) from error
    except KeyboardInterrupt:
        raise Interrupted(f"interrupted; the same command goes on from what is in {run.work}") from None
    click.echo(f"the draft is in {run.out}")


def refuse_contradictions(context: click.Context) -> None:
    """Raise UserError for options that would have no effect beside others."""
    given = {name for name in context.params if context.get_parameter_source(name) == ParameterSource.COMMANDLINE}
    if context.params["markov_rank"] is None and (head := {"backbone", "markov_head"} & given):
        option = min(head).replace("_", "-")
        raise UserError(f"--{option} is for drafts with a Markov head: give --markov-rank, too, such as 64")
    if "backbone" in given and (shaping := [name for name in OF_THE_BACKBONE if name in given]):
        option = shaping[0].replace("_", "-")
        raise UserError(f"--{option} is what the --backbone has already: leave it out, or leave out --backbone")
