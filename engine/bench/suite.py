"""The tables of tests/benchmarks/README.md in one run: what a GPU does in eight minutes, or a CPU with tiny shapes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from .report import Table
from .synthetic import ARMS, SINGLE, Synthetic
from .tables import dataset_table, idle_table, rows_table, template_table

TABLES = ("idle", "grid-8", "grid-4", "hybrid", "dataset", "template", "grid-2", "grid-1")
"""Tables by name, in the order in which they are made. A grid is of so many tokens per round."""

OURS = ("depth-0", "full-depth", "adaptive")


@dataclass(frozen=True)
class Suite:
    """Shapes and sizes; lengths in tokens."""

    dense: str = "qwen3-4b"
    hybrid: str = "qwen3.5-4b"
    rows: tuple[int, ...] = (1, 2, 4, 8, 16, 32, 64, 128)
    context: int = 512
    tokens: int = 32
    """Timed tokens of a row for each token per round, and at least four times that."""
    repeats: int = 4
    hybrid_rows: tuple[int, ...] = (1, 8)
    idle_rows: tuple[int, ...] = (1, 8)
    requests: int = 512
    dataset_rows: tuple[int, ...] = (32, 64, 128)
    dataset_context: int = 256
    dataset_tokens: int = 128
    template_requests: int = 1000
    template: int = 1000

    def run(self, folder: Path, only: tuple[str, ...] = ()) -> Iterator[Table]:
        """The tables, one after another, or those of them that are named. `folder` is the engine's cache."""

        @cache
        def bench(shape: str) -> Synthetic:
            return Synthetic(shape, 16, folder)

        def grid(*accept: float) -> Table:
            tokens = int(self.tokens * max(4, *accept))
            # z-lab's engine is compared at one acceptance: elsewhere only the batch counts.
            arms = ARMS if accept == (8,) else tuple(arm for arm in ARMS if arm not in SINGLE)
            return rows_table(bench(self.dense), self.rows, accept, self.context, tokens, self.repeats, arms)

        tables: dict[str, Callable[[], Table]] = {
            "idle": lambda: idle_table(bench(self.dense), self.idle_rows, (8,), self.context, OURS),
            "grid-8": lambda: grid(8),
            "grid-4": lambda: grid(4),
            "hybrid": lambda: rows_table(
                bench(self.hybrid),
                self.hybrid_rows,
                (8,),
                self.context,
                8 * self.tokens,
                self.repeats,
                ("mlx-batch", *OURS),
            ),
            "dataset": lambda: dataset_table(
                bench(self.dense),
                self.requests,
                self.dataset_rows,
                (4,),
                self.dataset_context,
                self.dataset_tokens,
                1,
                ("mlx-batch", "adaptive"),
            ),
            "template": lambda: template_table(
                bench(self.dense), self.template_requests, self.template, min(32, self.template_requests), (8,)
            ),
            "grid-2": lambda: grid(2),
            "grid-1": lambda: grid(1),
        }
        for name in TABLES:
            if not only or name in only:
                yield tables[name]()


TINY = Suite(
    dense="tiny-qwen3",
    hybrid="tiny-qwen3.5",
    rows=(1, 2),
    context=32,
    tokens=4,
    repeats=2,
    hybrid_rows=(1, 2),
    idle_rows=(1,),
    requests=8,
    dataset_rows=(2, 4),
    dataset_context=16,
    dataset_tokens=16,
    template_requests=20,
    template=50,
)
"""Shows that the bench works, in a minute on a CPU; its figures mean nothing."""
