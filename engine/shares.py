"""Who gets how much of the memory: pages for rows, recurrent memory, what waits, and what a round needs meanwhile."""

from __future__ import annotations

from dataclasses import dataclass

from ..kernels.pages.sizes import PAGE, pages_for
from .choose.history import Histories
from .drafting.kinds import Draft, most_waiting
from .drafting.lookup import Lookup
from .drafting.suffix import MOST as COPIED
from .models.folder import ModelError
from .models.targets.transformer import Transformer
from .schedule.prefix import MOST
from .schedule.scheduler import FORCED, PREFILL_TOKENS
from .state.memory import default_budget

PREFIXES = 8
"""One part in so many of the memory is for the recurrent memory behind shared prefixes: room for a few templates."""

LATE = 32
"""One part in so many of the memory is for taps of which the draft has had no need yet."""


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
        block = draft.block if draft else 0
        most = max(block or 1 + FORCED, 1 + COPIED if copying else 0)
        workspace = target.workspace(PREFILL_TOKENS + max_rows * most, max_rows * most)
        workspace += Histories.workspace(max_rows, target.vocabulary)
        workspace += Lookup.workspace(context_length) if copying else 0
        budget = default_budget(workspace) if memory is None else memory
        per_page = target.bytes_per_page + (draft.bytes_per_page if draft else 0)
        per_page += Lookup.bytes_per_page() if copying else 0
        per_row, per_prefix = target.bytes_per_row(most), target.bytes_per_row(0)
        prefixes = budget // PREFIXES if per_prefix else 0
        late = budget // LATE if draft else 0
        room = (budget - prefixes - late - max_rows * per_row) // per_page
        if room < 1:
            raise ModelError(
                f"no memory for keys and values: {budget:,} bytes allowed, {prefixes:,} of them for shared prefixes; "
                f"{PAGE} tokens need {per_page:,}, each of {max_rows} rows {per_row:,} besides: "
                "raise --memory or lower --max-rows"
            )
        return Shares(
            min(room, max_rows * pages_for(context_length + block)),
            min(MOST, prefixes // per_prefix) if per_prefix else MOST,
            most_waiting(draft, target, late) if draft else 0,
            workspace,
        )
