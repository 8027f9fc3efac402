"""Measures what rounds and draft passes cost on this machine, for the row budget: a few seconds, once.

Every token is another one. Equal tokens would all go through the same few experts of a mixture, which would then seem
to read no more weights for many tokens than for one.
"""

from __future__ import annotations

import os
import random
import statistics
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx

from ...kernels.packing import Packing, Span
from ...kernels.pages.places import Places, tabled
from ...kernels.pages.sizes import pages_for
from ...kernels.race import measurements
from ..drafting.context import ContextWrite
from ..drafting.drafter import DraftRow
from ..drafting.kinds import Draft, ModelSource, drafter_for
from ..drafting.mtp.drafter import MTPDrafter
from ..drafting.mtp.entries import EntryWrite
from ..models.targets.transformer import Transformer
from ..request import Request, Sampling
from ..state.state import State
from .round_cost import Cost, Point, RoundShape, shapes_to_time


@dataclass(frozen=True)
class Pace:
    """How long to measure: about so many `seconds` for what counts, so many for the `firsts`, the first runs of sizes,
    in which a GPU may have to compile. Sizes that are `stride` times the last one are timed, at least, `repeats` times
    each; the cost of those beyond the time is extrapolated.
    """

    seconds: float
    firsts: float
    stride: int = 1
    repeats: int = 3


ON_GPU = Pace(8.0, 24.0)
ON_CPU = Pace(0.3, 1.0, 4, 1)
"""Rounds take a tenth of a second and more, and rows wait for them. A CPU has no tiles, and compiles nothing."""

SLOW_FIRST, STRIDE = 1.0, 8
"""Where the first run of a size takes so many seconds more than the next one, as with quantised experts on CUDA, only
sizes that are so many times as large as the last one are timed from there on, and the largest, as far as the time
lasts. The very first size does not tell: with it, what all sizes share is compiled.
"""

LEAST = 1e-7
"""Seconds that a pass for one more token takes at least, whatever the clock says."""

TOKENS = "random tokens"
"""What is timed; costs that were measured with others are not used."""


def calibrated(
    name: str, cache: Path, target: Transformer, draft: Draft | None, pages: int, max_rows: int, width: int = 0
) -> Cost:
    """The cost of rounds of the pair called `name`: remembered from an earlier start, or measured now. A row has up to
    `width` tokens in a round, or as many as the draft's block if that is more.
    """
    known = known_costs(cache)
    if name not in known:
        known[name] = measure(target, draft, pages, max_rows, width)
        mx.clear_cache()  # the pools that rows need come next
        measurements.write(_file(cache), here(), {name: cost.to_dict() for name, cost in known.items()})
    return known[name]


def known_costs(cache: Path) -> dict[str, Cost]:
    """What was measured on this machine, by name; without what an earlier version measured in another way or took to
    cost nothing, and without what is damaged.
    """
    costs: dict[str, Cost] = {}
    for name, fields in measurements.known(_file(cache), here()).items():
        with suppress(KeyError, TypeError, ValueError):
            costs[name] = Cost.from_dict(fields)
    return costs


def _file(cache: Path) -> Path:
    return cache / "costs.json"


def here() -> str:
    """What a round's time depends on beside the pair: chip, MLX and kernels; without a GPU, cores and libraries."""
    machine = f"{measurements.machine()}, {TOKENS}"
    if mx.default_device() != mx.cpu:
        return machine
    threads, libraries = (os.environ.get(name, "") for name in ("OPENBLAS_NUM_THREADS", "LD_PRELOAD"))
    return f"{machine}, {os.cpu_count()} cores, threads {threads or 'all'}, preloaded {libraries or 'nothing'}"


def measure(
    target: Transformer, draft: Draft | None, pages: int, max_rows: int, width: int = 0, pace: Pace | None = None
) -> Cost:
    """Time rounds and draft passes of growing size, over pools of their own with so many pages at most; by default at
    the pace of this device.
    """
    pace = pace or (ON_CPU if mx.default_device() == mx.cpu else ON_GPU)
    block = draft.block if draft else 1
    width = max(block, width)
    shapes = shapes_to_time(max_rows, block, pages, width)
    drafter, state = drafter_for(draft, target, 1, max_rows) if draft else None, target.make_state(1)
    pools = [state.pool, *([drafter.pool] if drafter else [])]
    rounds: list[Point] = []
    drafts: list[Point] = []
    steps: list[Point] = []
    firsts: dict[int, float] = {}
    of_rounds = Sizes(max(shape.tokens for shape in shapes if not shape.draft), stride=pace.stride)
    of_drafts = Sizes(max((shape.tokens for shape in shapes if shape.draft), default=0), stride=pace.stride)
    stepping = isinstance(drafter, MTPDrafter)
    left, left_for_firsts = pace.seconds, pace.firsts
    workspace = 0
    for shape in shapes:
        if len(rounds) > 2 and (len(drafts) > 1 or not drafter) and min(left, left_for_firsts) < 0:
            break
        sizes = of_drafts if shape.draft else of_rounds
        if not sizes.wants(shape.tokens):
            continue
        if (room := shape.rows * pages_for(shape.context + width)) > state.pool.pages:
            for pool in pools:
                pool.renew(room)
        kept = mx.get_active_memory()
        mx.reset_peak_memory()
        if shape.draft and drafter:
            run = _draft_pass(shape, drafter, max_rows, 1 if stepping else block - 1)
        else:
            run = _round(shape, target, width, drafter.tapped if drafter else (), state)
        first, again = _seconds(run, pace.repeats)
        left -= pace.repeats * again
        left_for_firsts -= first
        sizes.took(shape.tokens, first, again)
        points = drafts if shape.draft else rounds
        points.append(Point(shape.tokens, shape.rows, shape.context * shape.rows, again))
        if shape.draft and drafter and stepping:
            _, whole = _seconds(_draft_pass(shape, drafter, max_rows, block - 1), pace.repeats)
            left -= pace.repeats * whole
            step = max(LEAST, (whole - again) / (block - 2))
            steps.append(Point(shape.rows, shape.rows, shape.context * shape.rows, step))
        if not shape.draft:
            firsts.setdefault(shape.tokens, first - again)
        workspace = max(workspace, mx.get_peak_memory() - kept)
    return Cost.fit(rounds, drafts, max(0.0, statistics.median(firsts.values())), workspace, steps)


@dataclass
class Sizes:
    """Which numbers of tokens to time, up to `most`, smallest first: all, unless new ones take long to compile for."""

    most: int
    last: int = 0
    stride: int = 1

    def wants(self, tokens: int) -> bool:
        return tokens in (self.last, self.most) or tokens >= self.stride * self.last

    def took(self, tokens: int, first: float, again: float) -> None:
        """A first run of a shape with so many tokens took `first` seconds, and others `again`."""
        # Where even a round takes that long, as on a CPU, a slow first one is no sign of compiling.
        if self.last and tokens > self.last and first - again > max(SLOW_FIRST, again):
            self.stride = STRIDE
        self.last = tokens


ROWS, PAGES = 64, 512
"""Of a measurement that is not for one engine."""


def measure_alone(target: Transformer, draft: Draft) -> Cost:
    """As `measure`, for no engine in particular."""
    return measure(target, draft, PAGES, ROWS)


def _seconds(run: Callable[[], list[mx.array]], repeats: int) -> tuple[float, float]:
    """Seconds of the first run, and the median of `repeats` others, each launched while the one before it runs."""
    begin = time.perf_counter()
    mx.eval(run())
    first = time.perf_counter() - begin
    times: list[float] = []
    before = run()
    mx.async_eval(before)
    for _ in range(repeats):
        start = time.perf_counter()
        after = run()
        mx.async_eval(after)
        mx.eval(before)
        before = after
        times.append(time.perf_counter() - start)
    mx.eval(before)
    return first, statistics.median(times)


def _round(
    shape: RoundShape, target: Transformer, width: int, tapped: Sequence[int], state: State
) -> Callable[[], list[mx.array]]:
    """A round whose tokens are shared among its rows as evenly as they can be; all of them are verified."""
    room = pages_for(shape.context + width)
    counts = [shape.tokens // shape.rows + (i < shape.tokens % shape.rows) for i in range(shape.rows)]
    places = [(row, shape.context + i) for row, count in enumerate(counts) for i in range(count)]
    begins = [sum(counts[:row]) for row in range(shape.rows)]
    spans = [
        Span(begin, count, _pages(row, room), shape.context + count, False, row, fresh=True, final=count == 1)
        for row, (begin, count) in enumerate(zip(begins, counts, strict=True))
    ]
    tokens = _random_tokens(shape.tokens, target)
    positions = mx.array([position for _, position in places], mx.int32)
    replay = mx.zeros(shape.rows, mx.int32)

    def run() -> list[mx.array]:
        packing = Packing.of(spans, positions, replay)
        hidden, taps = target.forward(tokens, packing, state, tapped)
        return [mx.argmax(target.head(hidden), axis=-1), *taps]

    return run


def _draft_pass(shape: RoundShape, drafter: ModelSource, max_rows: int, depth: int) -> Callable[[], list[mx.array]]:
    """So many tokens drafted for each of some rows, once the context of a block's is written."""
    request = Request("", (0,), Sampling(max_tokens=1))
    room = pages_for(shape.context + drafter.block)
    rows = [DraftRow(request, row, _pages(row, room), shape.context, False, depth) for row in range(shape.rows)]
    anchors, cursors = _random_tokens(max_rows, drafter.target), mx.full(max_rows, shape.context, mx.int32)
    context: Any = _entries(rows, drafter) if isinstance(drafter, MTPDrafter) else _taps(rows, drafter)

    def run() -> list[mx.array]:
        drafter.extend(*context)
        return [drafter.draft_blocks(rows, anchors, cursors)]

    return run


def _taps(rows: Sequence[DraftRow], drafter: ModelSource) -> ContextWrite:
    """The taps of a block of each row, at its beginning."""
    table, firsts = tabled([row.pages for row in rows])
    ahead = mx.arange(drafter.block, dtype=mx.int32)
    starts = mx.repeat(mx.array(firsts, mx.int32), drafter.block)
    places = Places(table, starts, mx.tile(ahead, len(rows)))
    target = drafter.target
    return ContextWrite(mx.zeros((starts.size, len(drafter.tapped) * target.hidden_size), target.dtype), places)


def _entries(rows: Sequence[DraftRow], drafter: ModelSource) -> EntryWrite:
    """The entries of a block of each row, of which all are verified, behind its context."""
    target, block = drafter.target, drafter.block
    spans = [Span(i * block, block, row.pages, row.bound, row.exact, row.slot) for i, row in enumerate(rows)]
    positions = mx.concatenate([row.bound - block + mx.arange(block, dtype=mx.int32) for row in rows])
    hidden = mx.zeros((positions.size, target.hidden_size), target.dtype)
    tokens = _random_tokens(positions.size, target)
    return EntryWrite(hidden, tokens, Packing.of(spans, positions), mx.full(len(rows), block, mx.int32))


def _pages(row: int, room: int) -> range:
    """The pages of a row, of which each has so many."""
    return range(row * room, (row + 1) * room)


def _random_tokens(count: int, target: Transformer) -> mx.array:
    """So many tokens of the vocabulary [count], in every run the same."""
    draw = random.Random(count)
    return mx.array([draw.randrange(target.vocabulary) for _ in range(count)], mx.int32)
