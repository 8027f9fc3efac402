"""What every engine does with its requests, whatever runs its rounds: they come, emit, end, are cancelled, and fail."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence

import mlx.core as mx

from .admission import Admission
from .choose.constrained import Choice
from .choose.history import Histories
from .emission import emit, shown
from .recovery import Failure, log, rewind
from .request import Adapters, Completion, EngineFailed, FinishReason, Origin, Request, RequestError
from .rounds import Emitted, Round
from .schedule.blame import MOST_BLAMED, blame, check_device
from .schedule.row import FROM_DRAFT, Row
from .schedule.scheduler import Segment
from .state.row_ends import RowEnds
from .stats import Stats
from .text import Text
from .verdict import Verdict


class BaseEngine(ABC):
    """Keeps requests from `add` to their completions; a subclass runs their rounds. All calls from one thread.

    After a round that failed, all rows begin anew: what they have generated is prefilled again.
    """

    def __init__(self, text: Text, context_length: int, vocabulary: int, max_rows: int, adapters: Adapters):
        self.text, self.max_rows, self.adapters = text, max_rows, adapters
        self.share = 1.0
        """The part of the rows and of the memory that it began with that it may have now."""
        self._most_rows = max_rows
        self.stats = Stats()
        self.verdict: Verdict | None = None
        self.precision: str | None = None
        self.may_start: Callable[[Sequence[str]], bool] = lambda ids: True  # who must know before sets it
        self.after_round: Callable[[bool], None] = lambda idle: None  # likewise
        self._admission = Admission(text, context_length, vocabulary, adapters)
        self._ends = RowEnds(max_rows)
        self._histories = Histories(vocabulary)
        self._rows: dict[str, Row] = {}
        self._in_flight: Round | None = None
        self._finished: list[Row] = []
        self._guilty = 0  # requests that were to blame
        self._blamed: set[str] = set()  # of these, since a request ended well

    @property
    def unfinished(self) -> int:
        """Requests running or waiting."""
        return len(self._rows)

    @property
    def busy(self) -> bool:
        """Whether `step` has anything to do."""
        return bool(self._rows or self._in_flight or self._finished)

    def add(self, request: Request) -> None:
        """Queue a request; it starts when a row and memory are free.

        Raises:
            RequestError: it could never be served.
        """
        if request.id in self._rows:
            raise RequestError(f"request '{request.id}' is already running")
        row = self._admission.row(request)
        self._enqueue(row)
        self._rows[request.id] = row

    def cancel(self, id: str) -> None:
        """Stop a request; what it generated so far comes out as a completion with finish reason "cancelled"."""
        if row := self._rows.get(id):
            self._finish(row, "cancelled")

    def step(self) -> list[Completion]:
        """Launch the next round, then read the one before it; returns the requests that finished.

        Raises:
            DeviceFailed: the system took the GPU away.
            EngineFailed: rounds fail, and no request alone is to blame, or one after the other would be. Of those
                running none is lost: all wait.
        """
        failure: Failure | None = None
        try:
            self._run_round()
        except Exception as error:
            check_device(error)
            failure = Failure.of(error)
        if failure:
            self._start_over(failure)
        self.after_round(not self._rows)
        finished, self._finished = self._finished, []
        return [self._complete(row) for row in finished]

    def resize(self, share: float) -> None:
        """From now on have this part of the rows and of the memory that it began with.

        If that is less than before, what rows and prefixes keep is given back at once, and all rows begin anew.
        """
        less, self.share = share < self.share, share
        if less:
            try:
                self._read_all()
            except Exception as error:  # its rows begin anew in any case
                check_device(error)
            _, sent_back = self._lose_rounds()
            rewind(sent_back, self._admission.matcher)
            self._histories.clear()
            self._ends = RowEnds(self._most_rows)
        self.max_rows = max(1, int(share * self._most_rows))
        self._resize(less)
        if less:
            mx.clear_cache()

    @abstractmethod
    def _read_all(self) -> None:
        """Wait for the round in flight, if there is one, and take what it emits."""

    @abstractmethod
    def _resize(self, less: bool) -> None:
        """Have `max_rows` rows and this `share` of the memory; if that is `less` than before, nobody uses it now."""

    @abstractmethod
    def _enqueue(self, row: Row) -> None:
        """Let a row wait. Raises RequestError if there will never be memory for it."""

    @abstractmethod
    def _run_round(self) -> None:
        """Launch the next round, then read the one before it."""

    @abstractmethod
    def _remove(self, row: Row) -> None:
        """A row ends, running or waiting: keep nothing of it."""

    @abstractmethod
    def _send_all_back(self) -> tuple[list[Row], list[Row]]:
        """Forget all rounds; rows that ran wait again. Returns those of the failed round, and all that ran."""

    @abstractmethod
    def _renew(self, failure: Failure) -> None:
        """Begin with empty memory. Raises EngineFailed if nothing runs even so."""

    def _lose_rounds(self) -> tuple[list[Row], list[Row]]:
        """Read no round in flight; all rows wait again. Returns those of the failed round, and all that ran."""
        rows, sent_back = self._send_all_back()
        self._in_flight = None
        for row in self._rows.values():  # also those that had to wait again while their last round was in flight
            row.lose_rounds()
        return rows, sent_back

    def _start_over(self, failure: Failure) -> None:
        """After a failed round: forget what any round has computed, and let all rows begin anew."""
        rows, sent_back = self._lose_rounds()
        log.error("a round of %d requests failed: %s", len(rows), failure.story)
        rewind(sent_back, self._admission.matcher)
        self._histories.clear()
        self._ends = RowEnds(self._most_rows)
        self._renew(failure)
        if guilty := blame(rows, failure.story, self._guilty):
            self._guilty += 1
            self._blamed.add(guilty.request.id)  # which may have been tried before, and counts once
            if len(self._blamed) > MOST_BLAMED:
                raise EngineFailed(f"rounds fail with each of the last {len(self._blamed)} requests: {failure.story}")
            guilty.error = f"the engine failed with {failure.kind}"
            self._finish(guilty, "failed")

    def _take(self, emitted: Emitted | Choice) -> None:
        """A segment has emitted tokens, or its row cannot go on."""
        segment, row = emitted.segment, emitted.segment.row
        row.in_flight.popleft()
        if row.finish_reason is not None:
            return
        if emitted.error:
            row.error = str(emitted.error)
            return self._finish(row, "error")
        if segment.depth is not None:
            row.cursor += len(emitted.tokens)
            self._count(segment, segment.depth, emitted.accepted)
        before = len(row.generated)
        reason = emit(row, emitted.tokens, emitted.logprobs, self.text)
        self.stats.generated_tokens += len(row.generated) - before
        if reason:
            self._finish(row, reason)

    @property
    def draft_origin(self) -> Origin:
        """What the drafts come from that a model writes."""
        return "dflash"

    def _count(self, segment: Segment, depth: int, accepted: int) -> None:
        """Of the drafted tokens of a segment so many were accepted."""
        row, stats = segment.row, self.stats
        for counters in (row, stats):
            counters.drafted += depth
            counters.accepted += accepted
        origin: Origin = self.draft_origin if segment.kind == FROM_DRAFT else "lookup"
        forced = min(len(segment.forced), depth)
        for own, drafted, kept in (
            ("grammar", forced, min(forced, accepted)),
            (origin, depth - forced, max(0, accepted - forced)),
        ):
            if drafted:
                stats.drafted_by[own] += drafted
                stats.accepted_by[own] += kept
                row.accepted_by[own] += kept
        row.rounds += 1
        stats.row_rounds += 1
        for position in range(min(accepted, len(self.stats.accepted_per_position))):
            self.stats.accepted_per_position[position] += 1

    def _finish(self, row: Row, reason: FinishReason) -> None:
        row.finish_reason = reason
        if reason in ("stop", "length"):
            self._blamed.clear()
        self._histories.drop(row)
        self._remove(row)
        del self._rows[row.request.id]
        self._finished.append(row)

    def _complete(self, row: Row) -> Completion:
        self.stats.prompt_tokens += len(row.request.tokens)
        self.stats.cached_tokens += row.cached
        return row.completion(shown(row, self.text))
