"""After a round that failed: what it was, and how the engine begins anew. Some of its arrays can never be computed."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import NamedTuple

from .drafting.kinds import ModelSource
from .drafting.lookup import Lookup
from .models.folder import first_line
from .models.load_check import try_out
from .models.targets.transformer import Transformer
from .request import EngineFailed, Request
from .schedule.row import Matcher, Row
from .state.state import State

log = logging.getLogger(__name__)


class Failure(NamedTuple):
    """What an error was: its kind, and its story in one line. Not the error: its traceback holds the round's arrays."""

    kind: str
    story: str

    @staticmethod
    def of(error: Exception) -> Failure:
        kind = type(error).__name__
        return Failure(kind, f"{kind}: {first_line(error)}")


def rewind(rows: Sequence[Row], matcher: Callable[[Request], Matcher | None]) -> None:
    """Let the matchers of rows be behind what these have generated; a round that failed may have moved them."""
    for row in rows:
        if row.matcher:
            row.matcher = matcher(row.request)
            if row.matcher:
                row.matcher.advance(row.generated)


def renew(
    target: Transformer, state: State, drafter: ModelSource | None, lookup: Lookup | None, failure: Failure
) -> None:
    """Give the engine empty memory, and see whether it runs.

    Raises:
        EngineFailed: it does not, with memory of its own and fixed tokens.
    """

    def anew() -> None:
        state.renew()
        if drafter:
            drafter.renew()
        if lookup:
            lookup.renew()
        try_out(target)

    prove(anew, failure)


def prove(runs: Callable[[], None], failure: Failure) -> None:
    """See whether fixed tokens run, with memory of their own.

    Raises:
        EngineFailed: they do not.
    """
    try:
        runs()
    except Exception as error:
        again = first_line(error)
        raise EngineFailed(f"a round failed ({failure.story}), then one of fixed tokens did, too ({again})") from None
