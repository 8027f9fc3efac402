"""A whole training run: prompts, responses, training, measuring, export; each part goes on where it was cut off."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import mlx.core as mx

from ..drafting.dflash import DFlashDraft
from ..drafting.dspark import DSparkDraft
from ..engine import Engine
from .export import Story, count_tokens, export, write_card
from .features import write_features
from .lessons import BlockLesson, HeadLesson, Lesson
from .markov import load_backbone, recipe_of, with_head
from .minibatches import split, usable
from .prompts import TrainingError, encode_prompts, read_prompts, write_prompts
from .recipe import Recipe, draft_config, new_draft, unused_token
from .replay import Replay
from .responses import Report, Transcript, load_prompts, load_responses, save_prompts, write_responses
from .trainer import Trainer

MEASURED_TOKENS = 128
"""Length of the responses on which a draft is finally measured."""


@dataclass(frozen=True)
class Run:
    """What to train, on what, and where.

    `work`, below `out`, holds prompts, responses and the checkpoint; `out` becomes the draft's folder. With a
    `backbone`, the folder of a finished DFlash draft, only a Markov head is trained on it.
    """

    target: str
    out: Path
    prompt_files: Sequence[Path]
    measure_files: Sequence[Path]
    self_prompts: int
    max_tokens: int
    steps: int
    max_seconds: float | None
    mask_token: int | None
    bits: int
    recipe: Recipe = field(default_factory=Recipe)
    backbone: Path | None = None

    @property
    def work(self) -> Path:
        return self.out / "training"


def train(run: Run, engine: Engine, report: Report) -> Story:
    """Do all of it; returns what the model card tells."""
    if not engine.target.trains_drafts:
        raise TrainingError(f"drafts of models such as {run.target} cannot be trained here; choose another --target")
    backbone, recipe = None, run.recipe
    if run.backbone:
        backbone = load_backbone(run.backbone, engine.target, run.bits)
        recipe = recipe_of(backbone, run.backbone, run.bits, recipe)
    sources = collect_prompts(run, engine, report)
    prompts = [prompt for group in sources.values() for prompt in group]
    encoded = encode_prompts(engine, prompts)
    longest = recipe.longest * 3 // 4
    fitting = [tokens if len(tokens) <= longest else () for tokens in encoded]
    write_responses(engine, fitting, run.work, run.max_tokens, report)
    sequences = usable(load_responses(run.work), recipe.longest)
    training, held_back = split(sequences, recipe.held_back, recipe.seed)
    report(f"{len(training):,} responses to train on, {count_tokens(training):,} tokens; {len(held_back)} held back")

    target = engine.target
    draft = draft_to_train(run, recipe, engine, backbone)
    lesson: Lesson
    if isinstance(draft, DSparkDraft) and backbone:
        folder = run.work / f"features-{recipe.key}-{len(training)}"
        files = write_features(target, backbone, training, recipe, folder, report)
        lesson = HeadLesson(target, draft, files, held_back, recipe)
    else:
        lesson = BlockLesson(target, draft, training, held_back, recipe)
    trainer = Trainer(lesson, recipe, run.work, run.steps, run.max_seconds, report)
    trainer.run()

    made = export(draft, run.out, run.bits)
    replay = Replay(target, made, recipe.batch_tokens)
    figures: dict[str, tuple[int, float]] = {}
    for file in run.measure_files:
        known = measuring_responses(run, engine, file, report)
        figures[file.stem] = (len(known), replay.tokens_per_round(known))
        report(f"{file.stem}: {figures[file.stem][1]:.3f} tokens per round on {len(known)} prompts")
    story = Story(
        target=run.target,
        prompts={name: len(group) for name, group in sources.items()},
        responses=len(training),
        response_tokens=count_tokens(training),
        steps=trainer.progress.step,
        seconds=trainer.progress.seconds,
        device=device_name(),
        held_back=len(held_back),
        held_back_figure=replay.tokens_per_round(held_back),
        measured=figures,
    )
    write_card(run.out, draft, recipe, story, run.bits)
    return story


def draft_to_train(run: Run, recipe: Recipe, engine: Engine, backbone: DFlashDraft | None) -> DFlashDraft:
    """A new draft, or the backbone; with a new Markov head if the recipe has one."""
    target, mask = engine.target, run.mask_token
    if backbone is None:
        if mask is None:
            tokenizer = engine.text.tokenizer
            mask = unused_token(tokenizer, tokenizer.chat_template or "")
        draft = new_draft(target, draft_config(target, recipe, mask), recipe.seed)
    else:
        draft = backbone
    mx.random.seed(recipe.seed)
    return with_head(draft, target, recipe) if recipe.markov_rank else draft


def collect_prompts(run: Run, engine: Engine, report: Report) -> dict[str, list[str]]:
    """Prompts by source; those to measure on are never among them. What the target writes is kept in `work`."""
    banned = set(read_prompts(run.measure_files))
    sources: dict[str, list[str]] = {}
    for file in run.prompt_files:
        sources[file.name] = [prompt for prompt in read_prompts([file]) if prompt not in banned]
    known = {prompt for group in sources.values() for prompt in group} | banned
    kept = run.work / "self-prompts.json"
    if run.self_prompts and not kept.exists():
        report(f"the target writes {run.self_prompts:,} prompts")
        save_prompts(kept, list(write_prompts(engine, run.self_prompts, run.recipe.seed, known)))
    if kept.exists():
        sources["written by the target itself, given the user header of its chat template"] = load_prompts(kept)
    if not any(sources.values()):
        raise TrainingError("there is no prompt to train on; give --prompts or --self-prompts")
    return sources


def measuring_responses(run: Run, engine: Engine, file: Path, report: Report) -> list[Transcript]:
    """The target's greedy responses to a file of prompts that are only measured on."""
    folder = run.work / f"measure-{file.stem}"
    write_responses(engine, encode_prompts(engine, read_prompts([file])), folder, MEASURED_TOKENS, report)
    return [each for each in load_responses(folder) if len(each.tokens) - each.prompt >= 2]


def device_name() -> str:
    info = mx.device_info()
    return str(info.get("device_name") or info.get("architecture") or mx.default_device())
