"""One machine's generator: requests go in, rounds run, completions come out. Knows no Redis."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import mlx.core as mx

from ..kernels.packing import Packing
from ..kernels.pages.sizes import PAGE
from .admission import Admission
from .choose.constrained import Choice
from .choose.history import Histories
from .depth.budget import Budget
from .depth.calibration import calibrated
from .depth.depth_choice import Candidate
from .drafting.context import ContextWrite, WaitingContext
from .drafting.dflash import DFlashDraft
from .drafting.drafter import Drafter, DraftRow
from .drafting.load import load_pair, type_name
from .emission import emit, shown
from .models.folder import ModelError
from .models.lora import lay, read
from .models.pairs import Pair
from .models.targets.transformer import Transformer
from .recovery import Failure, log, renew, rewind
from .request import NO_ADAPTERS, Adapters, Completion, FinishReason, Request, RequestError
from .rounds import Emitted, Round, adapters_of, chosen, pack, settle, with_forced
from .schedule.blame import blame
from .schedule.row import Row
from .schedule.scheduler import FORCED, Plan, Scheduler, Segment, fixed
from .shares import Shares
from .state.kv_pool import KVPool
from .state.row_ends import RowEnds
from .stats import Stats
from .text import Text
from .verdict import Verdict

MAX_ROWS = 32


class Engine:
    """Continuous batching over packed rounds, with speculation where there is a draft.

    `step` launches round r + 1 before it reads round r, so the device never waits for the host: anchors, cursors and
    accepted counts stay on the device. The host therefore learns of an end token one round late, and what that row
    did in the extra round is thrown away. A row whose next tokens are constrained by what the last ones were, as in a
    grammar, takes part in every second round, so that the others need not wait; in every one if all rows are such.
    All calls from one thread.

    After a round that failed, all rows begin anew: what they have generated is prefilled again.

    Args:
        target: adapter over the loaded target.
        tokenizer: mlx-lm's tokenizer wrapper.
        context_length: most tokens of prompt and completion together.
        max_rows: most rows in a round. `workspace` is how many bytes rounds then take beside what is kept.
        memory: bytes for what rows keep, keys and values above all; by default what this machine can spare.
        draft: the target's draft; None for plain decoding.
        depth: drafted tokens of a row to verify in a round; by default all of its block, unless a budget chooses. At
            depth 0 the draft is not used at all: it takes no memory and no time.
        adapters: the LoRA adapters that are laid over the target.

    Raises:
        ModelError: no memory for a single row, a draft that does not fit, a depth beyond its block.
    """

    remark = None

    def __init__(
        self,
        target: Transformer,
        tokenizer: Any,
        context_length: int,
        max_rows: int = MAX_ROWS,
        memory: int | None = None,
        draft: DFlashDraft | None = None,
        depth: int | None = None,
        adapters: Adapters = NO_ADAPTERS,
    ):
        self.target = target
        self.text = Text(tokenizer, target.vocabulary)
        self.context_length, self.adapters = context_length, adapters
        self.max_rows = max_rows
        self.stats = Stats()
        block = draft.config.block_size if draft else 0
        most = max(0, block - 1)
        if depth is not None and depth > most:
            raise ModelError(f"depth {depth} is beyond the draft's block: it drafts {most} tokens at most")
        if depth == 0:
            draft, block, most = None, 0, 0
        shares = Shares.of(target, draft, max_rows, context_length, memory)
        self.workspace = shares.workspace
        depths = fixed(most if depth is None else depth)
        self.scheduler = Scheduler(shares.pages, max_rows, block, depths, shares.prefixes, most if draft else FORCED)
        self.state = target.make_state(self.scheduler.pages.count)
        self.pool = self.state.pool
        self.drafter = Drafter(draft, target, self.pool.pages) if draft else None
        self._context = WaitingContext(shares.late)
        # Where MLX scatters on a GPU, a round in flight would make the next one copy the pools that it still reads.
        self._waits = mx.default_device() != mx.cpu and not target.operations.in_place
        self.budget: Budget | None = None
        self.verdict: Verdict | None = None
        self.precision: str | None = None
        self.stats.accepted_per_position = [0] * most
        self._admission = Admission(self.text, context_length, target.vocabulary, self.adapters)
        self._ends = RowEnds(max_rows)
        self._histories = Histories(target.vocabulary)
        self._in_flight: Round | None = None
        self._working: list[Row] = []  # rows of the round in flight and, while one is launched, of that
        self._read_at: float | None = None  # when the round before it was there
        self._rows: dict[str, Row] = {}
        self._finished: list[Row] = []
        self.starting: Callable[[Sequence[str]], None] = lambda ids: None  # who wants to know sets it

    @classmethod
    def load(
        cls,
        pair: Pair,
        cache: Path,
        max_rows: int = MAX_ROWS,
        memory: int | None = None,
        depth: int | None = None,
        draft_bits: int | None = None,
        adapters: Adapters = NO_ADAPTERS,
    ) -> Engine:
        """An engine over what `load_pair` loads; unless a depth is given, it chooses depths by what rounds cost here.

        At depth 0 the draft is not loaded.

        Raises:
            ModelError: as `load_pair` and the engine itself; the message is one line.
        """
        loras = read(adapters)  # what is wrong with them comes to light at once
        parts = load_pair(replace(pair, draft=None) if depth == 0 else pair, cache, draft_bits)
        target, tokenizer = parts.target, parts.loaded.tokenizer
        lay(loras, target, parts.loaded.model)
        engine = cls(target, tokenizer, parts.loaded.context_length, max_rows, memory, parts.draft, depth, adapters)
        engine.verdict, engine.precision = parts.verdict, parts.precision
        if parts.draft and depth is None:
            types = " and ".join(dict.fromkeys(map(type_name, (target.dtype, parts.draft.dtype))))
            name = f"{pair.target}, {pair.draft}, {draft_bits or 16} bits, {max_rows} rows, {types}"
            cost = calibrated(name, cache, target, parts.draft, engine.scheduler.pages.most, max_rows)
            engine.spend(Budget(cost, parts.draft.config.block_size))
        return engine

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
        if (largest := self.scheduler.largest(row)) > (slots := self.scheduler.pages.most * PAGE):
            raise RequestError(
                f"prompt and max_tokens need {largest:,} token slots, this worker has {slots:,}; "
                "shorten the prompt, lower max_tokens or raise the worker's --memory"
            )
        self._rows[request.id] = row
        self.scheduler.add(row)

    def spend(self, budget: Budget) -> None:
        """Let a row budget choose depths from now on."""
        self.budget = budget
        self.scheduler.depths = lambda rows, prompt: budget.depths(
            [Candidate(row.request.id, row.left, row.bound) for row in rows], prompt
        )

    def cancel(self, id: str) -> None:
        """Stop a request; what it generated so far comes out as a completion with finish reason "cancelled"."""
        if row := self._rows.get(id):
            self._finish(row, "cancelled")

    def step(self) -> list[Completion]:
        """Launch the next round, then read the one before it; returns the requests that finished.

        Raises:
            EngineFailed: rounds fail, and no request alone is to blame. Of those running none is lost: all wait.
        """
        if failure := self._run_round():
            self._start_over(failure)
        finished, self._finished = self._finished, []
        return [self._complete(row) for row in finished]

    def _run_round(self) -> Failure | None:
        try:
            if self._in_flight and (self._waits or (self._in_flight.late and not self._in_flight.yielding)):
                self._read_in_flight(None)  # no row could take part in the next round before
                if self._waits:
                    mx.synchronize()  # for what it writes beside its tokens
            plan = self.scheduler.plan()
            rows = [segment.row for segment in plan.segments]
            self._working += rows
            if plan.started:
                self.starting([row.request.id for row in plan.started])
            launched = self._launch(plan)
            self._read_in_flight(launched)
        except Exception as error:
            return Failure.of(error)
        self._in_flight, self._working = launched, rows
        return None

    def _start_over(self, failure: Failure) -> None:
        """After a failed round: forget what any round has computed, and let all rows begin anew."""
        rows = [row for row in dict.fromkeys(self._working) if row.finish_reason is None]
        log.error("a round of %d requests failed: %s", len(rows), failure.story)
        self._in_flight, self._read_at, self._working = None, None, []
        sent_back = self.scheduler.start_over()
        rewind(sent_back, self._admission.matcher)
        if self.budget:
            for row in sent_back:
                self.budget.forget(row.request.id)
        self.scheduler.prefixes.clear()  # what the round should have written may be missing or wrong
        self._context.clear()
        self._histories.clear()
        self._ends = RowEnds(self.max_rows)
        renew(self.target, self.state, self.drafter, failure)
        if guilty := blame(rows, failure.story):
            guilty.error = f"the engine failed with {failure.kind}"
            self._finish(guilty, "failed")

    @property
    def _pools(self) -> list[KVPool]:
        """The target's pool and the draft's, whose pages are the same."""
        return [self.pool, *([self.drafter.pool] if self.drafter else [])]

    def _launch(self, plan: Plan) -> Round | None:
        """Build a round's graph, draft, verify, accept, and hand it to the device."""
        for row in plan.preempted:
            self._context.drop(row)
            self._histories.drop(row)
            if self.budget:  # what they were to draft will not be seen
                self.budget.forget(row.request.id)
        self._grow()
        segments = plan.segments
        if not segments:
            return None
        for s in segments:
            if s.cached and self.state.recurrent:
                self.state.recurrent.load(s.slot, s.cached.memory)
        verifying = [segment for segment in segments if segment.depth]
        drafted = self._draft(verifying) if verifying else None
        tokens, packing = pack(segments, drafted, self._ends)
        tapped = self.drafter.tapped if self.drafter else ()
        hidden, taps = self.target.forward(tokens, packing, self.state, tapped, adapters_of(segments))
        pending = [hidden]
        if self.drafter:
            self._context.hold(taps, packing.positions, [(segment.row, segment.count) for segment in segments])
            # Not later: the next round may have another token at the place of a rejected one.
            pending += self._extend(self._context.take([segment.row for segment in verifying]))
            pending += self._extend(self._context.take_if_full())
        for s in segments:
            if s.keep:
                pending += self._extend(self._context.take([s.row]))
                if self.state.recurrent:
                    s.keep.memory = memory = self.state.recurrent.save(s.slot)
                    pending += memory.arrays
                s.keep.ready = True
        launched = self._verify(hidden, packing, segments, drafted)
        if self.budget:
            launched = replace(launched, forecast=self.budget.forecast)
        # Attention reads what the round wrote, so this evaluates the pools, too.
        mx.async_eval(*pending, *launched.arrays, *self._ends.arrays, *self._histories.arrays)
        self.stats.rounds += 1
        self.stats.rows += len(segments)
        self.stats.prefilled_tokens += sum(s.count for s in segments if s.depth is None)
        return launched

    def _grow(self) -> None:
        """Let the pools have the pages that the scheduler has given to rows."""
        if (pages := self.scheduler.pages.count) > self.pool.pages:
            mx.synchronize()  # what is in flight would hold the pools that are to be replaced
            for pool in self._pools:
                pool.grow(pages)

    def _draft(self, segments: list[Segment]) -> mx.array:
        """The drafts of segments; where they are all forced, the draft is not asked."""
        asking = [s for s in segments if (s.depth or 0) > len(s.forced)]
        if not self.drafter or not asking:
            return with_forced(segments, None)
        self._extend(self._context.take([s.row for s in asking]))
        change = self._histories.of
        rows = [
            DraftRow(s.row.request, s.slot, s.row.pages, s.first, s.exact, s.depth or 0, change(s.row)) for s in asking
        ]
        drafts = self.drafter.draft_blocks(rows, self._ends.anchors, self._ends.cursors)
        return with_forced(segments, drafts) if any(s.forced for s in segments) else drafts

    def _extend(self, late: ContextWrite | None) -> list[mx.array]:
        """Write draft context; returns what to evaluate if nothing in the round reads it."""
        return self.drafter.extend(*late) if self.drafter and late else []

    def _verify(self, hidden: mx.array, packing: Packing, segments: list[Segment], drafted: mx.array | None) -> Round:
        """What the yielding rows emit; moves the ends of those that are not constrained."""
        wanted: list[int] = []  # packed tokens whose logits are needed: a chunk's last, a block's all
        for span, segment in zip(packing.spans, segments, strict=True):
            if segment.yields:
                end = span.query + span.count
                wanted.extend(range(end - 1 - (segment.depth or 0), end))
        yielding = [segment for segment in segments if segment.yields]
        if not yielding:
            return Round()
        logits = self.target.head(hidden[mx.array(wanted)])
        return chosen(yielding, logits, drafted, self.target.operations, self._ends, self._histories)

    def _read_in_flight(self, launched: Round | None) -> None:
        """Take the tokens of the round in flight, if there is one, as soon as it has run; `launched` runs after it."""
        read, self._in_flight = self._in_flight, None
        if not read:
            return
        emitted = read.emitted()
        self._time(read, launched)
        settle(read, emitted, self._take, self._ends, self._histories)

    def _time(self, read: Round, launched: Round | None) -> None:
        """Tell the budget what a round took that was there just now, if nothing came between it and its neighbours."""
        before, now = self._read_at, time.perf_counter()
        self._read_at = now if launched else None
        if self.budget and launched and before is not None and not read.late and not launched.late:
            self.budget.ran(read.forecast, launched.forecast, now - before)

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
            self._count(row, segment.depth, emitted.accepted)
            if self.budget and not segment.forced:
                self.budget.observe(row.request.id, segment.depth, emitted.accepted)
        before = len(row.generated)
        reason = emit(row, emitted.tokens, emitted.logprobs, self.text)
        self.stats.generated_tokens += len(row.generated) - before
        if reason:
            self._finish(row, reason)

    def _count(self, row: Row, depth: int, accepted: int) -> None:
        for counters in (row, self.stats):
            counters.drafted += depth
            counters.accepted += accepted
        row.rounds += 1
        self.stats.row_rounds += 1
        for position in range(min(accepted, len(self.stats.accepted_per_position))):
            self.stats.accepted_per_position[position] += 1

    def _finish(self, row: Row, reason: FinishReason) -> None:
        row.finish_reason = reason
        self._context.drop(row)
        self._histories.drop(row)
        if self.budget:
            self.budget.forget(row.request.id)
        self.scheduler.remove(row)
        del self._rows[row.request.id]
        self._finished.append(row)

    def _complete(self, row: Row) -> Completion:
        self.stats.prompt_tokens += len(row.request.tokens)
        self.stats.cached_tokens += row.cached
        return row.completion(shown(row, self.text))
