"""The training loop: steps, checkpoints, resuming, and what it says while it runs."""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.optimizers as optim
import numpy as np
from mlx.utils import tree_flatten, tree_map, tree_unflatten

from .blocks import compiled
from .lessons import Arrays, Lesson
from .prompts import TrainingError
from .recipe import Recipe
from .responses import Report

REPORT_STEPS = 50


@dataclass
class Progress:
    """Where a run is. `seconds` are those spent training; `measured` are (step, tokens per round on held-back)."""

    step: int = 0
    seconds: float = 0.0
    measured: list[tuple[int, float]] = field(default_factory=list)


class Trainer:
    """Trains what a lesson teaches.

    Master weights and the optimizer's state are float32; forward and backward run in the lesson's type.

    Args:
        folder: where the checkpoint is kept; a run goes on from the one it finds there.
        steps: the learning rate falls to zero over so many steps,
        max_seconds: or over so many seconds of training, whichever ends first.
    """

    def __init__(
        self,
        lesson: Lesson,
        recipe: Recipe,
        folder: Path,
        steps: int,
        max_seconds: float | None = None,
        report: Report = print,
    ):
        self.lesson, self.module, self.recipe = lesson, lesson.module, recipe
        self.folder, self.steps, self.max_seconds, self.report = folder, steps, max_seconds, report
        self.progress = Progress()
        self.optimizer = optim.AdamW(
            recipe.learning_rate, betas=[0.9, 0.95], weight_decay=recipe.weight_decay, bias_correction=True
        )
        self.optimizer.init(self.module.trainable_parameters())
        self._resume()
        self._step = self._compile()

    @property
    def fraction(self) -> float:
        """How much of the run is done."""
        spent = self.progress.seconds / self.max_seconds if self.max_seconds else 0.0
        return min(1.0, max(self.progress.step / self.steps, spent))

    def learning_rate(self) -> float:
        """Linear warm-up, then half a cosine down to zero."""
        warm = min(1.0, (self.progress.step + 1) / self.recipe.warmup)
        return self.recipe.learning_rate * warm * 0.5 * (1 + math.cos(math.pi * self.fraction))

    def run(
        self,
        checkpoint_seconds: float = 120.0,
        stop: Callable[[], bool] = lambda: False,
    ) -> bool:
        """Train to the end, or until `stop`; leaves a checkpoint either way. True when it came to the end."""
        said = saved = measured = mark = time.monotonic()
        losses: list[mx.array] = []
        hits: list[mx.array] = []
        learnt = 0
        while self.fraction < 1 and not stop():
            batch = self.lesson.batch(self.progress.step)
            loss, hit = self._advance(batch)
            losses.append(loss)
            hits.append(hit)
            learnt += self.lesson.size(batch)
            self.progress.step += 1
            if len(losses) > 2:
                mx.eval(losses[-2])  # one step ahead of the device, no more
            now = time.monotonic()
            self.progress.seconds += now - mark
            mark = now
            if self.progress.step % REPORT_STEPS == 0:
                mx.eval(losses, hits)
                now = time.monotonic()
                self._say(losses, hits, learnt / (now - said))
                losses, hits, learnt, said = [], [], 0, now
            if now - measured > self.lesson.measure_seconds:
                self.measure()
                measured = said = mark = time.monotonic()
            if now - saved > checkpoint_seconds:
                self.save()
                saved = said = mark = time.monotonic()
        ended = self.fraction >= 1
        self.measure()
        self.save()
        return ended

    def measure(self) -> float:
        """Tokens per round on the held-back sequences, recorded."""
        figure = self.lesson.measure()
        self.progress.measured.append((self.progress.step, round(figure, 4)))
        self.report(f"step {self.progress.step:,}: {figure:.3f} tokens per round on what was held back")
        return figure

    def save(self) -> None:
        """Write the checkpoint: weights, optimizer, progress and recipe in one file, replaced in one move."""
        self.folder.mkdir(parents=True, exist_ok=True)
        arrays: Any = tree_flatten({"draft": self.module.parameters(), "optimizer": self.optimizer.state})
        facts = {"progress": json.dumps(asdict(self.progress)), "recipe": json.dumps(asdict(self.recipe))}
        scratch = self.folder / "checkpoint.tmp.safetensors"
        mx.save_safetensors(str(scratch), dict(arrays), metadata=facts)
        os.replace(scratch, self.folder / "checkpoint.safetensors")

    def _resume(self) -> None:
        file = self.folder / "checkpoint.safetensors"
        if not file.exists():
            return
        try:
            loaded: Any = mx.load(str(file), return_metadata=True)
            arrays, facts = loaded
            recipe, progress = Recipe(**json.loads(facts["recipe"])), json.loads(facts["progress"])
        except (RuntimeError, KeyError, TypeError, ValueError) as error:
            raise TrainingError(f"the checkpoint {file} cannot be read ({error}); delete it to start again") from error
        if recipe != self.recipe:
            raise TrainingError(f"{file} was made with other settings; use the same ones, or another --out")
        state: Any = tree_unflatten(list(arrays.items()))
        self.module.update(state["draft"])
        self.optimizer.state = state["optimizer"]
        self.progress = Progress(**progress)
        self.report(f"going on from step {self.progress.step:,}")

    def _advance(self, batch: Arrays) -> tuple[mx.array, mx.array]:
        self.optimizer.learning_rate = self.learning_rate()
        loss, hits = self._step(*batch)
        mx.async_eval(loss, hits, self.module.parameters(), self.optimizer.state)
        return loss, hits

    def _compile(self) -> Callable[..., tuple[mx.array, mx.array]]:
        lesson, module, optimizer, recipe = self.lesson, self.module, self.optimizer, self.recipe

        def loss_of(weights: Any, batch: Arrays) -> Any:
            module.update(tree_map(lambda weight: weight.astype(lesson.dtype), weights))
            return lesson.loss(batch)

        def step(*batch: mx.array) -> tuple[mx.array, mx.array]:
            weights = module.trainable_parameters()
            (loss, hits), gradients = mx.value_and_grad(loss_of)(weights, batch)
            gradients, _ = optim.clip_grad_norm(gradients, recipe.clip)
            module.update(optimizer.apply_gradients(gradients, weights))
            return loss, hits

        state = [module.state, optimizer.state]
        return compiled(step, inputs=state, outputs=state)

    def _say(self, losses: Sequence[mx.array], hits: Sequence[mx.array], speed: float) -> None:
        right, all_ = np.array(mx.stack(list(hits)).sum(axis=0))
        accuracy = " ".join(f"{100 * share:.0f}" for share in right / np.maximum(all_, 1))
        loss = float(np.mean([each.item() for each in losses]))
        left = self.progress.seconds * (1 - self.fraction) / max(self.fraction, 1e-9)
        self.report(
            f"step {self.progress.step:,}  loss {loss:.3f}  right by slot % {accuracy}  "
            f"{speed:,.0f} {self.lesson.unit}/s  {left:,.0f} s left"
        )
