"""The load check: before a worker claims anything, the engine's logits are compared with mlx-lm's, on this machine.

Whether an operation gives what it should depends on backend, chip and MLX, and operations that are right one by one
can be wrong together. So a few fixed texts go through this engine's forward in every way in which rounds use it, and
through mlx-lm's own forward of the same weights.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from math import inf, isnan
from pathlib import Path
from statistics import median
from typing import Any

import mlx.core as mx
from mlx_lm.models.cache import make_prompt_cache

from ...kernels.gpu.source import digest
from ...kernels.operations import STOCK, Operations
from ...kernels.packing import Packing, Span
from ...kernels.pages.sizes import pages_for
from ...kernels.race import measurements
from ..verdict import Verdict
from .boxed import ModelError
from .targets.transformer import Transformer

LEAST = {mx.float32: 1e-4, mx.float16: 4e-3, mx.bfloat16: 3e-2}
"""The error that each type of number excuses whatever the model."""

TIMES, MOST = 4.0, 0.1
"""Where mlx-lm's own logits depend by so much on how a text is cut into passes, so many times that is excused; but
never more than `MOST`. In bfloat16, a wrong rotation gives 0.13 with Qwen3-4B's shape, a wrong mask 0.3 or more.
"""

TAIL = 8
"""Of a row the last so many tokens of a round are compared: of a prompt's chunk its end, of a block all of it."""

STEPS = 4
"""Tokens that mlx-lm takes one by one, to see how its logits depend on that."""

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Turn:
    """What a row does in one round: `right` tokens of its text, then `wrong` drafts, which are not accepted."""

    row: int
    right: int
    wrong: int = 0
    prompt: bool = False

    @property
    def kind(self) -> str:
        return "a prompt's chunk" if self.prompt else "a block of drafts" if self.taped else "one token"

    @property
    def taped(self) -> bool:
        """Whether its steps in recurrent layers wait until they are accepted."""
        return not self.prompt and self.right + self.wrong > 1


def turns(chunk: int) -> list[list[Turn]]:
    """The rounds: a prompt whose first chunk has so many tokens, two short ones beside it, drafts that are all right,
    partly right and all wrong, single tokens, and a row that sits a round out.

    CUDA plans each product for each number of tokens, so there are few of these: chunk + 23, 16 and 3.
    """
    return [
        [Turn(0, chunk, prompt=True), Turn(1, 12, prompt=True), Turn(2, 11, prompt=True)],
        [Turn(0, 7, prompt=True), Turn(1, 4, 4), Turn(2, 1)],
        [Turn(0, 8), Turn(1, 1, 3), Turn(2, 2, 2)],
        [Turn(row, 1) for row in range(3)],
        [Turn(0, 2, 6), Turn(2, 3, 5)],
        [Turn(row, 1) for row in range(3)],
    ]


def chunk() -> int:
    """Tokens of the long chunk: more than a row decodes, and on a GPU enough to make kernels split their keys."""
    return 33 if mx.default_device() == mx.cpu else 300


def fixed_texts(vocabulary: int) -> list[list[int]]:
    """The texts of the rows, in tokens below `vocabulary`: a long one, and two short ones of one length."""
    rounds = turns(chunk())
    lengths = [sum(turn.right for taken in rounds for turn in taken if turn.row == row) for row in range(3)]
    return [[(7919 * i + 101 * row + 13) % vocabulary for i in range(n)] for row, n in enumerate(lengths)]


def excused_error(dtype: mx.Dtype, noise: float) -> float:
    """The error that is excused in this type, where mlx-lm's own logits vary by `noise`."""
    return min(MOST, max(LEAST[dtype], TIMES * noise))


def assure(target: Transformer, name: str, cache: Path) -> Verdict:
    """Let a target run only in forms that give mlx-lm's logits.

    What was found is remembered for the model called `name`, with these forms of its operations.

    Raises:
        ModelError: its logits are not mlx-lm's in any form.
    """
    known, checked = known_verdicts(cache), f"{name}, {target.dtype}, forms {_forms(target.operations)}"
    if verdict := known.get(checked):
        target.operations = target.operations.without(verdict.dropped)
        return verdict
    known[checked] = settle(target)
    mx.clear_cache()  # the pools come next, and may need all there is
    measurements.write(_file(cache), here(), {model: asdict(verdict) for model, verdict in known.items()})
    return known[checked]


def _forms(operations: Operations) -> str:
    """Stands for the form of every operation."""
    return hashlib.sha256(repr(sorted(operations.winners.items(), key=repr)).encode()).hexdigest()[:8]


def known_verdicts(cache: Path) -> dict[str, Verdict]:
    """What was found on this machine, with this version, by model."""
    verdicts: dict[str, Verdict] = {}
    for name, fields in measurements.known(_file(cache), here()).items():
        with suppress(KeyError, TypeError):
            verdicts[name] = Verdict(**{**fields, "dropped": tuple(fields["dropped"])})
    return verdicts


def _file(cache: Path) -> Path:
    return cache / "checks.json"


def here() -> str:
    """What logits depend on beside the model: chip, MLX, kernels, and the engine around them."""
    return f"{measurements.machine()}, engine {digest(Path(__file__).parents[1])}"


def settle(target: Transformer) -> Verdict:
    """Check a target; if its logits are wrong, find the operations that make them so and leave these to stock MLX.

    Raises:
        ModelError: its logits are wrong with stock operations, too, or mlx-lm's own are not numbers.
    """
    reference = Reference.of(target)
    if not all(mx.isfinite(logits).all().item() for logits in reference.logits):
        raise ModelError("mlx-lm's own logits of this model are not numbers: fetch or convert the model again")
    verdict = reference.check(target)
    if verdict.good:
        return verdict
    chosen = target.operations
    names = dict.fromkeys(str(key[0]) for key, form in chosen.winners.items() if form != STOCK)
    wrong: list[str] = []
    for name in names:
        target.operations = chosen.without([other for other in names if other != name])
        if not reference.check(target).good:
            wrong.append(name)
    # If each is right by itself, some are wrong together: then none of them is to be trusted.
    target.operations = chosen.without(wrong or list(names))
    verdict = replace(reference.check(target), dropped=tuple(wrong or names))
    if not verdict.good:
        raise ModelError(
            f"this engine's logits are not mlx-lm's on this machine ({measurements.machine()}): off by "
            f"{verdict.error:.2g} in {verdict.where}, {verdict.excused:.2g} is excused; nothing was claimed. "
            "Try another MLX version, and report this"
        )
    log.warning("wrong on this machine, so stock MLX runs: %s", ", ".join(verdict.dropped))
    return verdict


@dataclass(frozen=True)
class Reference:
    """Texts, and the logits [T, vocabulary] of each by mlx-lm's `model`."""

    model: Any
    chunk: int
    texts: list[list[int]]
    logits: list[mx.array]

    @staticmethod
    def of(target: Transformer) -> Reference:
        """mlx-lm's own forward of the target's model."""
        texts = fixed_texts(target.vocabulary)
        logits = [*target.model(mx.array(texts[:1])), *target.model(mx.array(texts[1:]))]  # two are of one length
        mx.eval(logits)
        return Reference(target.model, chunk(), texts, logits)

    @cached_property
    def noise(self) -> float:
        """How much mlx-lm's logits depend on how a text is cut into passes."""
        return noise(self.model, self.texts[1], self.logits[1])

    def check(self, target: Transformer) -> Verdict:
        """Compare the target, as it runs now. Where it cannot run, it could not be more wrong."""
        least = LEAST[target.dtype]
        errors: dict[str, list[float]] = {}
        try:
            for turn, begin, logits in run(target, self.texts, turns(self.chunk)):
                where = f"{turn.kind} of text {turn.row + 1}"
                expected = self.logits[turn.row][begin : begin + logits.shape[0]]
                errors.setdefault(where, []).extend(distances(logits, expected))
        except Exception as error:  # whatever a compiler or driver objects to
            return Verdict(inf, (str(error) or type(error).__name__).splitlines()[0][:200], least)
        # With experts, a near tie may send some tokens through others: then the lower quarter speaks for all.
        share = 4 if target.expert_layers else 2
        worst = {where: sorted(distances)[(len(distances) - 1) // share] for where, distances in errors.items()}
        where = max(worst, key=lambda where: inf if isnan(worst[where]) else worst[where])
        excused = least if worst[where] <= least else excused_error(target.dtype, self.noise)
        return Verdict(worst[where], where, excused)


def run(
    target: Transformer, texts: Sequence[Sequence[int]], rounds: Sequence[Sequence[Turn]]
) -> Iterator[tuple[Turn, int, mx.array]]:
    """Take turns as the engine's rounds do; yields each with the place in its text from which on there are logits."""
    room = pages_for(max(map(len, texts)) + 16)
    state = target.make_state(room * len(texts))
    cursors, replay = [0] * len(texts), [0] * len(texts)
    for taken in rounds:
        tokens, packing = _pack(taken, texts, cursors, replay, room)
        hidden, _ = target.forward(tokens, packing, state)
        tails = [min(TAIL, span.count) for span in packing.spans]
        ends = [span.query + span.count for span in packing.spans]
        kept = [i for end, tail in zip(ends, tails, strict=True) for i in range(end - tail, end)]
        logits, first = target.head(hidden[mx.array(kept)]), 0
        outputs = []
        for turn, tail in zip(taken, tails, strict=True):
            count = tail - turn.wrong
            outputs.append((turn, cursors[turn.row] + turn.right - count, logits[first : first + count]))
            first += tail
            cursors[turn.row] += turn.right
            replay[turn.row] = turn.right if turn.taped else 0
        mx.eval([logits for _, _, logits in outputs], state.pool.written)
        yield from outputs


def try_out(target: Transformer) -> None:
    """Run three rounds of one row; raises whatever keeps rounds from running."""
    rounds = [[Turn(0, 5, prompt=True)], [Turn(0, 1)], [Turn(0, 2, 2)]]
    for _ in run(target, [list(range(8))], rounds):
        pass


def _pack(
    taken: Sequence[Turn], texts: Sequence[Sequence[int]], cursors: Sequence[int], replay: Sequence[int], room: int
) -> tuple[mx.array, Packing]:
    tokens: list[int] = []
    positions: list[int] = []
    spans: list[Span] = []
    for turn in taken:
        text, cursor = texts[turn.row], cursors[turn.row]
        own = [*text[cursor : cursor + turn.right], *text[: turn.wrong]]
        pages = range(room * (len(texts) - turn.row) - 1, room * (len(texts) - 1 - turn.row) - 1, -1)  # in any order
        # The host does not know how much of a block was accepted: its bound is higher, as the engine's is.
        length = cursor + len(own) + (0 if turn.prompt else 3)
        fresh, final = cursor == 0, not turn.taped
        spans.append(Span(len(tokens), len(own), pages, length, turn.prompt, turn.row, fresh, final))
        tokens += own
        positions += range(cursor, cursor + len(own))
    accepted = mx.array([replay[turn.row] for turn in taken], mx.int32)
    return mx.array(tokens), Packing.of(spans, mx.array(positions, mx.int32), accepted)


def noise(model: Any, text: Sequence[int], logits: mx.array) -> float:
    """How far mlx-lm's logits of a text's end are from `logits`, if it takes the last tokens one by one."""
    cache, first = make_prompt_cache(model), len(text) - STEPS
    model(mx.array([text[:first]]), cache=cache)
    steps = [model(mx.array([[token]]), cache=cache)[0] for token in text[first:]]
    return median(distances(mx.concatenate(steps), logits[first:]))


def distances(logits: mx.array, expected: mx.array) -> list[float]:
    """Of each token: the distance between logits [T, vocabulary], through the length of what is expected.

    Both less their mean, on which no token that is chosen depends.
    """
    a, b = (x.astype(mx.float32) for x in (logits, expected))
    a, b = (x - x.mean(axis=-1, keepdims=True) for x in (a, b))
    lengths = mx.maximum(mx.linalg.norm(b, axis=-1), 1e-9)
    distances: Any = (mx.linalg.norm(a - b, axis=-1) / lengths).tolist()
    return distances


def fingerprint(folder: Path) -> str:
    """Stands for the weights and configuration in a model's folder, without reading them."""
    files = sorted(file for file in folder.glob("*") if file.suffix in (".safetensors", ".json") and file.is_file())
    facts = [f"{file.name} {(stat := file.stat()).st_size} {stat.st_mtime_ns}" for file in files]
    return hashlib.sha256("\n".join(facts).encode()).hexdigest()[:12]
