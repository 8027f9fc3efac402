"""The plain engine: any model that mlx-lm runs, in a continuous batch over mlx-lm's own modules and caches.

It chooses tokens, ends texts and recovers as the engine with adapters does, by the same code; it has no drafts.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import mlx.core as mx

from ...kernels.operations import Operations
from ...kernels.race.contestants import ChoiceShape, OperationShape
from ..base_engine import BaseEngine
from ..choose.history import Histories
from ..depth.command_buffers import LAUNCHES, Parts, TimedChunks
from ..models.folder import ModelError, first_line
from ..recovery import Failure, prove
from ..request import NO_ADAPTERS, Adapters, RequestError
from ..rounds import Round, chosen, settle
from ..schedule.row import Row
from ..schedule.scheduler import HEADROOM, Segment
from ..schedule.waiting import OVERTAKING, Waiting
from ..state.memory import default_budget
from ..state.row_ends import End
from ..text import Text
from .caches import Caches, join, pick, states
from .prefill import Prefill, Prefix
from .ways import find_ways, try_out

PREFILL_TOKENS = 2048
"""Most prompt tokens that are read beside one round, as in mlx-lm."""

TOGETHER = 8
"""Most different prompts that are read together."""

LOGITS = 4
"""Copies of the logits that a round takes, those of the next round among them."""

SPARE = 8
"""One part in so many of the memory is for caches of which rows join or leave: these are copied, layer by layer."""


class PlainEngine(BaseEngine):
    """Continuous batching over mlx-lm's batch caches.

    Every round is one token of each row. `step` launches round r + 1 before it reads round r, unless a row's next token
    is constrained by what its last one was, as in a grammar: then all wait for it. Prompts are read beside the rounds,
    in chunks. A model whose rows cannot run together, as far as `find_ways` sees, runs one row at a time.

    Args:
        model: as mlx-lm loads it.
        tokenizer: mlx-lm's tokenizer wrapper.
        context_length: most tokens of prompt and completion together.
        max_rows: most rows in a round.
        memory: bytes for what rows keep; by default what this machine can spare.
        adapters: one LoRA adapter, with which mlx-lm has loaded the model, or none.
        kind: for which kind of model there is no adapter, in a few words; its type, if nothing is said.

    Raises:
        ModelError: the model does not run, or there is no memory for a single row.
    """

    drafter = None

    @property
    def drafting(self) -> str:
        """Why there are no drafts, in a few words."""
        return self.remark

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        context_length: int,
        max_rows: int,
        memory: int | None = None,
        adapters: Adapters = NO_ADAPTERS,
        kind: str | None = None,
    ):
        try:
            self._ways = ways = find_ways(model)
        except Exception as error:
            raise ModelError(
                f"mlx-lm cannot run this model of type {model.model_type}: {first_line(error)}; "
                "choose another model, or try another mlx-lm"
            ) from error
        text, rows = Text(tokenizer, ways.vocabulary), max_rows if ways.batched else 1
        super().__init__(text, context_length, ways.vocabulary, rows, adapters)
        self.model, self._kind = model, kind or model.model_type
        self.operations = Operations()
        self.workspace = PREFILL_TOKENS * ways.activations + Histories.workspace(self.max_rows, ways.vocabulary)
        self.workspace += LOGITS * self.max_rows * ways.vocabulary * ways.dtype.size
        self.workspace += self.operations.bytes_to_choose(self.max_rows, ways.vocabulary, ways.dtype)
        budget = default_budget(self.workspace) if memory is None else memory
        self._memory = self._most_memory = budget - budget // SPARE
        if ways.footprint.bytes(1) > self._memory:
            raise ModelError(
                f"no memory for a single row: {budget:,} bytes allowed, {ways.footprint.bytes(1):,} needed; "
                "raise --memory"
            )
        self.prefill_tokens = PREFILL_TOKENS
        self._chunks: TimedChunks | None = None
        self._waiting = Waiting(OVERTAKING * self.max_rows, self._rounds)
        self._slots = list(range(self.max_rows))
        self._running: list[Row] = []  # in the order in which they started
        self._suspects: list[Row] = []  # of failed rounds; each is to show alone that it is not to blame
        self._decoding: list[Row] = []  # in the order of `_caches`
        self._caches: Caches = []
        self._prefill: Prefill | None = None
        self._prefix = Prefix()

    @property
    def dtype(self) -> mx.Dtype:
        """The type of the model's numbers."""
        return self._ways.dtype

    @property
    def shapes(self) -> list[OperationShape]:
        """What its operations work on: logits."""
        own = ChoiceShape(self._ways.vocabulary, self.dtype)
        changed = ChoiceShape(self._ways.vocabulary, mx.float32, most=16)  # by what rows ask for, a few at a time
        return [own] if self.dtype == mx.float32 else [own, changed]

    def keep_within(self, seconds: float, launches: int = LAUNCHES) -> None:
        """From now on no command buffer is to take longer, where one ends after so many launches: each chunk is timed,
        and the next one is as large as fits.
        """
        layers = len(self.model.layers)
        self._chunks = chunks = TimedChunks(Parts(layers, layers, launches), seconds, PREFILL_TOKENS)
        self.prefill_tokens = chunks.tokens

    @property
    def remark(self) -> str:
        """What there is to know of how this model runs, in one line."""
        plain, reason = f"plain: no adapter for {self._kind}", self._ways.reason
        if not self._ways.batched:
            return f"{plain}, one row at a time ({reason})"
        return plain if self._ways.ragged else f"{plain}, prompts one at a time ({reason})"

    def _enqueue(self, row: Row) -> None:
        need = self._ways.footprint.bytes(len(row.request.tokens) + row.limit)
        if need > self._most_memory:
            raise RequestError(
                f"prompt and max_tokens need {need:,} bytes, this worker has {self._most_memory:,}; "
                "shorten the prompt, lower max_tokens or raise the worker's --memory"
            )
        self._waiting.add(row)

    def _read_all(self) -> None:
        self._read_in_flight()
        mx.synchronize()

    def _resize(self, less: bool) -> None:
        self._memory = int(self.share * self._most_memory)
        taken = {row.slot for row in self._running}
        self._slots = [slot for slot in range(self.max_rows) if slot not in taken]

    def _run_round(self) -> None:
        if any(row.left > 0 and not row.ready for row in self._decoding):
            self._read_in_flight()
        self._make_room()
        self._part_suspects()
        self._start()
        self._read_prompts()
        launched = self._launch()
        self._read_in_flight()
        self._in_flight = launched

    def _make_room(self) -> None:
        """Where the rows that go on have outgrown the memory, the kept prefix gives way, then the youngest rows."""
        if self._fits(self._running):
            return
        self._prefix = Prefix()
        self._read_in_flight()
        while len(self._running) > 1 and not self._fits(self._running):
            self._send_back(self._running[-1])
        self._leave()

    def _fits(self, rows: Sequence[Row], ahead: int = 1) -> bool:
        """Whether the memory holds these rows with so many more tokens: all take as much as the longest."""
        longest = max((max(row.bound, len(row.feed)) for row in rows), default=0)
        each = self._ways.footprint.bytes(longest + ahead)
        return len(rows) * each + self._prefix.bytes(self._ways.footprint) <= self._memory

    def _part_suspects(self) -> None:
        """A suspect that has come further makes way for the next one."""
        self._suspects = [row for row in self._suspects if row.suspect and row.finish_reason is None]
        if self._suspects and not all(row.suspect for row in self._running):
            self._read_in_flight()
            for row in self._running[:]:
                self._send_back(row)
            self._leave()

    def _start(self) -> None:
        """Begin with the prompts of the next waiting rows, as many as memory and slots allow."""
        rows: list[Row] = []
        while not self._prefill and self._slots and (row := self._next) and self._has_room_for(row, rows):
            self._waiting.remove(row)
            row.feed, row.slot, row.cursor = row.request.tokens + tuple(row.generated), self._slots.pop(), 0
            self._running.append(row)
            rows.append(row)
        if rows and self.may_start([row.request.id for row in rows]):
            self._prefill = Prefill(self.model, self._ways, rows, self._prefix)
        else:
            for row in reversed(rows):
                self._send_back(row)

    @property
    def _next(self) -> Row | None:
        """The row to start next."""
        return self._suspects[-1] if self._suspects else self._waiting.next

    def _has_room_for(self, row: Row, rows: Sequence[Row]) -> bool:
        """Whether a row can start beside those that run, with these of which the prompts are read first."""
        if self._suspects and self._running:
            return False
        feed = row.request.tokens + tuple(row.generated)
        feeds = {other.feed for other in rows} | {feed}
        if len(feeds) > (TOGETHER if self._ways.ragged else 1):
            return False
        row.feed = feed
        return self._fits([*self._running, row], HEADROOM) or not self._running

    def _read_prompts(self) -> None:
        """Read the next chunk of the prompts; rows whose prompts are read take part in rounds from now on."""
        prefill = self._prefill
        if not prefill:
            return
        if not any(row.running for row in prefill.rows):
            self._prefill = None
            return
        if not prefill.done:
            self.stats.prefilled_tokens += self._step(prefill)
            self.stats.rounds += 1
            self.stats.rows += len(prefill.rows)
        if prefill.done:
            self._prefill, self._prefix = None, prefill.kept
            self._join(prefill.rows, prefill.caches)

    def _step(self, prefill: Prefill) -> int:
        """Read a chunk; where it must not take too long, see how long it takes."""
        if not (chunks := self._chunks):
            return prefill.step(self.prefill_tokens)
        mx.synchronize()  # what is in flight is not the chunk's time
        begin = time.perf_counter()
        read = prefill.step(self.prefill_tokens)
        mx.synchronize()
        chunks.took(read, time.perf_counter() - begin)
        self.prefill_tokens = chunks.tokens
        return read

    def _join(self, rows: Sequence[Row], caches: Caches) -> None:
        """Let rows take part that have been read but for the last token of their prompts."""
        for row in rows:
            row.cursor = len(row.feed) - 1
        self._ends.put([End(row.slot, row.feed[-1], row.cursor, 0) for row in rows if row.running])
        self._leave()
        self._caches = join(self._caches, caches) if self._decoding else caches
        self._decoding += rows

    def _leave(self) -> None:
        """Take the rows out of the caches that have ended, or whose last token is in flight."""
        going_on = [place for place, row in enumerate(self._decoding) if row.running and row.left > 0]
        if len(going_on) == len(self._decoding):
            return
        self._decoding = [self._decoding[place] for place in going_on]
        if going_on:
            pick(self._caches, going_on)
        else:
            self._caches = []

    def _launch(self) -> Round | None:
        """Build a round's graph and hand it to the device."""
        self._leave()
        if not self._decoding:
            return None
        segments = [self._segment(row) for row in self._decoding]
        slots = mx.array([segment.slot for segment in segments])
        logits = self.model(self._ends.anchors[slots][:, None], cache=self._caches)[:, -1]
        launched = chosen(segments, logits, None, self.operations, self._ends, self._histories)
        evaluated = [*launched.arrays, *self._ends.arrays, *self._histories.arrays]
        mx.async_eval(evaluated, states(self._caches))
        self.stats.rounds += 1
        self.stats.rows += len(segments)
        self.stats.prefilled_tokens += sum(segment.depth is None for segment in segments)
        return launched

    def _segment(self, row: Row) -> Segment:
        """A row's token in a round: its anchor, or the last token of its prompt."""
        depth, late = None if row.prefilling else 0, row.free < 1
        first = row.bound
        if row.prefilling:
            row.cursor += 1
        row.in_flight.append(0 if depth is None else 1)
        return Segment(row, row.slot, first, 1, True, depth, True, late=late)

    def _read_in_flight(self) -> None:
        """Take the tokens of the round in flight, if there is one, as soon as it has run."""
        read, self._in_flight = self._in_flight, None
        if read:
            settle(read, read.emitted(), self._take, self._ends, self._histories)

    def _remove(self, row: Row) -> None:
        """A row ends, running or waiting. Its caches go with the next round."""
        if not row.running:
            return self._waiting.remove(row)
        self._running.remove(row)
        self._slots.append(row.slot)
        row.slot = -1

    def _send_back(self, row: Row) -> None:
        """Let a running row wait again; what it has generated becomes part of its prefill."""
        self._histories.drop(row)
        self._remove(row)
        self._waiting.put_back(row)

    def _send_all_back(self) -> tuple[list[Row], list[Row]]:
        rows = self._running[:]
        for row in reversed(rows):
            self._send_back(row)
        self._prefill, self._prefix = None, Prefix()
        self._decoding, self._caches = [], []
        return rows, rows

    def _renew(self, failure: Failure) -> None:
        prove(lambda: try_out(self.model), failure)

    def _start_over(self, failure: Failure) -> None:
        super()._start_over(failure)
        self._suspects = [row for row in self._rows.values() if row.suspect]

    def _rounds(self, row: Row) -> int:
        """The rounds that a row takes at most: one for each chunk of its prompt and for each token."""
        return -(-len(row.request.tokens) // self.prefill_tokens) + row.limit
