"""Who gets how much of the memory: pages for rows, recurrent memory, what waits, and what a round needs meanwhile."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

from mlx.utils import tree_flatten

from ..kernels.pages.sizes import PAGE, pages_for
from ..kernels.race import measurements
from .choose.history import Histories
from .drafting.kinds import Draft, most_waiting
from .drafting.lookup import Lookup
from .drafting.suffix import MOST as COPIED
from .models.folder import ModelError
from .models.targets.transformer import Transformer
from .schedule.prefix import MOST
from .schedule.scheduler import FORCED, PREFILL_TOKENS
from .state.memory import MARGIN, default_budget

PREFIXES = 8
"""One part in so many of the memory is for the recurrent memory behind shared prefixes: room for a few templates."""

LATE = 32
"""One part in so many of the memory is for taps of which the draft has had no need yet."""

ROWS = (32, 24, 16, 12, 8, 6, 4, 3, 2, 1)
"""How many rows an engine may have if nobody says: the most that have room for `AMPLE` tokens each."""

AMPLE = 512


class Fit(NamedTuple):
    """So many rows with so many tokens of keys and values in all; none if not even one row has ample room."""

    rows: int
    tokens: int


@dataclass(frozen=True)
class Needs:
    """What a pair takes, in bytes: of the memory for a page of all pools, a row beside its pages, and a prefix's
    recurrent memory; and beside what is kept, in rounds of so many rows as `ROWS` has.

    With `drafts` a part of the memory is for taps. `length` is the longest context, with what a draft writes past it.
    """

    page: int
    row: int
    prefix: int
    drafts: bool
    rounds: tuple[int, ...]
    length: int

    @staticmethod
    def of(target: Transformer, draft: Draft | None, copying: bool, context_length: int) -> Needs:
        """Of rows of such a context, which may be `copying` drafts from their own text."""
        block = draft.block if draft else 0
        page = target.bytes_per_page + (draft.bytes_per_page if draft else 0)
        return Needs(
            page=page + (Lookup.bytes_per_page() if copying else 0),
            row=target.bytes_per_row(_width(draft, copying)),
            prefix=target.bytes_per_row(0),
            drafts=draft is not None,
            rounds=tuple(_workspace(target, draft, copying, rows, context_length) for rows in ROWS),
            length=context_length + block,
        )

    def prefixes(self, budget: int) -> int:
        return budget // PREFIXES if self.prefix else 0

    def late(self, budget: int) -> int:
        return budget // LATE if self.drafts else 0

    def pages(self, budget: int, rows: int) -> int:
        """How many pages so many rows can have out of so many bytes; less than one if there is no room."""
        room = (budget - self.prefixes(budget) - self.late(budget) - rows * self.row) // self.page
        return min(room, rows * pages_for(self.length))

    def fit(self, limit: int, weights: int) -> Fit:
        """What fits on a device that may use `limit` bytes and has `weights` on it, if nothing else needs them."""
        spare = int(MARGIN * limit) - weights
        rounds = zip(ROWS, self.rounds, strict=True)
        fits = (Fit(rows, PAGE * max(0, self.pages(spare - workspace, rows))) for rows, workspace in rounds)
        ample = min(AMPLE, self.length)
        return next((fit for fit in fits if fit.tokens >= fit.rows * ample), Fit(0, 0))

    def rows(self, memory: int | None) -> int:
        """How many rows have ample room out of so many bytes; by default of what the machine can spare."""
        rounds = zip(ROWS, self.rounds, strict=True)
        budgets = ((rows, default_budget(workspace) if memory is None else memory) for rows, workspace in rounds)
        ample = min(pages_for(AMPLE), pages_for(self.length))
        return next((rows for rows, budget in budgets if self.pages(budget, rows) >= rows * ample), ROWS[-1])


@dataclass(frozen=True)
class Shares:
    """At most so many `pages`, so many `prefixes` and so many tokens' taps that wait (`late`); and the `workspace`: the
    bytes that rounds take beside what is kept.
    """

    pages: int
    prefixes: int
    late: int
    workspace: int

    @staticmethod
    def of(
        target: Transformer,
        draft: Draft | None,
        copying: bool,
        max_rows: int,
        context_length: int,
        memory: int | None,
    ) -> Shares:
        """For so many rows of such a context, out of so many bytes; by default of what the machine can spare. Rows may
        be `copying` drafts from their own text.

        Raises:
            ModelError: not even one page.
        """
        needs = Needs.of(target, draft, copying, context_length)
        workspace = _workspace(target, draft, copying, max_rows, context_length)
        budget = default_budget(workspace) if memory is None else memory
        prefixes = needs.prefixes(budget)
        pages = needs.pages(budget, max_rows)
        if pages < 1:
            raise ModelError(
                f"no memory for keys and values: {budget:,} bytes allowed, {prefixes:,} of them for shared prefixes; "
                f"{PAGE} tokens need {needs.page:,}, each of {max_rows} rows {needs.row:,} besides: "
                "raise --memory or lower --max-rows"
            )
        return Shares(
            pages,
            min(MOST, prefixes // needs.prefix) if needs.prefix else MOST,
            most_waiting(draft, target, needs.late(budget)) if draft else 0,
            workspace,
        )


def _width(draft: Draft | None, copying: bool) -> int:
    """Most tokens of a row in a round."""
    return max(draft.block if draft else 1 + FORCED, 1 + COPIED if copying else 0)


def _workspace(target: Transformer, draft: Draft | None, copying: bool, rows: int, context_length: int) -> int:
    """Bytes that rounds of so many rows take beside what is kept."""
    slots = rows * _width(draft, copying)
    workspace = target.workspace(PREFILL_TOKENS + slots, slots) + Histories.workspace(rows, target.vocabulary)
    return workspace + (Lookup.workspace(context_length) if copying else 0)


def remember(name: str, needs: Needs, models: Sequence[Any], cache: Path) -> None:
    """Keep what a pair that was loaded here takes, and the bytes of its weights, for `draftmill doctor`."""
    parts = [getattr(model, "own", model) for model in models if model]  # an MTP head has modules of its own
    arrays: list[Any] = [array for part in parts for _, array in tree_flatten(part.parameters())]
    weights = sum(array.nbytes for array in arrays)
    entry = {"weights": weights, **asdict(needs), "rounds": list(needs.rounds)}
    known = measurements.known(_file(cache), measurements.machine())
    if known.get(name) != entry:
        measurements.write(_file(cache), measurements.machine(), known | {name: entry})


def known_needs(cache: Path) -> dict[str, tuple[Needs, int]]:
    """What the pairs take that were loaded here, and the bytes of their weights, by the names of their targets."""
    found: dict[str, tuple[Needs, int]] = {}
    for name, entry in measurements.known(_file(cache), measurements.machine()).items():
        with suppress(KeyError, TypeError):  # of another version
            fields = {**entry, "rounds": tuple(entry["rounds"])}
            weights = fields.pop("weights")
            found[name] = Needs(**fields), weights
    return found


def _file(cache: Path) -> Path:
    return cache / "needs.json"
