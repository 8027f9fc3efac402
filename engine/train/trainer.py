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

from ..drafting.dflash import DFlashDraft
from ..models.targets.transformer import Transformer
from .batches import Batch, Batches
from .blocks import block_labels, block_logits, block_loss, compiled, target_taps
from .prompts import TrainingError
from .recipe import Recipe
from .replay import Replay
from .responses import Report, Transcript

REPORT_STEPS = 50


@dataclass
class Progress:
    """Where a run is. `seconds` are those spent training; `measured` are (step, tokens per round on held-back)."""

    step: int = 0
    seconds: float = 0.0
    measured: list[tuple[int, float]] = field(default_factory=list)


class Trainer:
    """Trains one draft for one target.

    Master weights and the optimizer's state are float32; forward and backward run in the target's type.

    Args:
        folder: where the checkpoint is kept; a run goes on from the one it finds there.
        steps: the learning rate falls to zero over so many steps,
        max_seconds: or over so many seconds of training, whichever ends first.
    """

    def __init__(
        self,
        target: Transformer,
        draft: DFlashDraft,
        sequences: Sequence[Transcript],
        held_back: Sequence[Transcript],
        recipe: Recipe,
        folder: Path,
        steps: int,
        max_seconds: float | None = None,
        report: Report = print,
    ):
        self.target, self.draft, self.recipe = target, draft, recipe
        self.folder, self.steps, self.max_seconds, self.report = folder, steps, max_seconds, report
        self.batches = Batches(sequences, recipe)
        self.held_back = held_back
        self.progress = Progress()
        self.optimizer = optim.AdamW(
            recipe.learning_rate, betas=[0.9, 0.95], weight_decay=recipe.weight_decay, bias_correction=True
        )
        self.optimizer.init(draft.trainable_parameters())
        self.replay = Replay(target, draft, recipe.batch_tokens)
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
        measure_seconds: float = 60.0,
        stop: Callable[[], bool] = lambda: False,
    ) -> bool:
        """Train to the end, or until `stop`; leaves a checkpoint either way. True when it came to the end."""
        said = saved = measured = mark = time.monotonic()
        losses: list[mx.array] = []
        hits: list[mx.array] = []
        tokens = 0
        while self.fraction < 1 and not stop():
            batch = self.batches.batch(self.progress.step)
            loss, hit = self._advance(batch)
            losses.append(loss)
            hits.append(hit)
            tokens += int(batch.lengths.sum())
            self.progress.step += 1
            if len(losses) > 2:
                mx.eval(losses[-2])  # one step ahead of the device, no more
            now = time.monotonic()
            self.progress.seconds += now - mark
            mark = now
            if self.progress.step % REPORT_STEPS == 0:
                mx.eval(losses, hits)
                now = time.monotonic()
                self._say(losses, hits, tokens / (now - said))
                losses, hits, tokens, said = [], [], 0, now
            if now - measured > measure_seconds:
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
        figure = self.replay.tokens_per_round(self.held_back)
        self.progress.measured.append((self.progress.step, round(figure, 4)))
        self.report(f"step {self.progress.step:,}: {figure:.3f} tokens per round on {len(self.held_back)} held back")
        return figure

    def save(self) -> None:
        """Write the checkpoint: weights, optimizer, progress and recipe in one file, replaced in one move."""
        self.folder.mkdir(parents=True, exist_ok=True)
        arrays: Any = tree_flatten({"draft": self.draft.parameters(), "optimizer": self.optimizer.state})
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
            recipe, progress = json.loads(facts["recipe"]), json.loads(facts["progress"])
        except (RuntimeError, KeyError, ValueError) as error:
            raise TrainingError(f"the checkpoint {file} cannot be read ({error}); delete it to start again") from error
        if recipe != asdict(self.recipe):
            raise TrainingError(f"{file} was made with other settings; use the same ones, or another --out")
        state: Any = tree_unflatten(list(arrays.items()))
        self.draft.update(state["draft"])
        self.optimizer.state = state["optimizer"]
        self.progress = Progress(**progress)
        self.report(f"going on from step {self.progress.step:,}")

    def _advance(self, batch: Batch) -> tuple[mx.array, mx.array]:
        self.optimizer.learning_rate = self.learning_rate()
        arrays = (mx.array(each) for each in (batch.tokens, batch.lengths, batch.anchors))
        loss, hits = self._step(*arrays)
        mx.async_eval(loss, hits, self.draft.parameters(), self.optimizer.state)
        return loss, hits

    def _compile(self) -> Callable[[mx.array, mx.array, mx.array], tuple[mx.array, mx.array]]:
        target, draft, optimizer, recipe = self.target, self.draft, self.optimizer, self.recipe

        def loss_of(weights: Any, taps: mx.array, tokens: mx.array, lengths: mx.array, anchors: mx.array) -> Any:
            draft.update(tree_map(lambda weight: weight.astype(target.dtype), weights))
            logits = block_logits(target, draft, taps, tokens, anchors)
            labels, valid = block_labels(tokens, lengths, anchors, recipe.block)
            return block_loss(logits, labels, valid, recipe.gamma)

        def step(taps: mx.array, tokens: mx.array, lengths: mx.array, anchors: mx.array) -> tuple[mx.array, mx.array]:
            weights = draft.trainable_parameters()
            (loss, hits), gradients = mx.value_and_grad(loss_of)(weights, taps, tokens, lengths, anchors)
            gradients, _ = optim.clip_grad_norm(gradients, recipe.clip)
            draft.update(optimizer.apply_gradients(gradients, weights))
            return loss, hits

        taps = compiled(lambda tokens: target_taps(target, tokens, draft.config.target_layer_ids))
        state = [draft.state, optimizer.state]
        learn = compiled(step, inputs=state, outputs=state)
        return lambda tokens, lengths, anchors: learn(taps(tokens), tokens, lengths, anchors)

    def _say(self, losses: Sequence[mx.array], hits: Sequence[mx.array], speed: float) -> None:
        right, all_ = np.array(mx.stack(list(hits)).sum(axis=0))
        accuracy = " ".join(f"{100 * share:.0f}" for share in right / np.maximum(all_, 1))
        loss = float(np.mean([each.item() for each in losses]))
        left = self.progress.seconds * (1 - self.fraction) / max(self.fraction, 1e-9)
        self.report(
            f"step {self.progress.step:,}  loss {loss:.3f}  right by slot % {accuracy}  "
            f"{speed:,.0f} tokens/s  {left:,.0f} s left"
        )
