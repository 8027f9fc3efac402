"""One machine's generator: requests go in, rounds run, completions come out. Knows no Redis."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import mlx.core as mx

from ..kernels.packing import Packing
from ..kernels.pages.sizes import PAGE, pages_for
from .base_engine import BaseEngine
from .choose.constrained import Choice
from .depth.budget import Budget
from .depth.calibration import calibrated, known_costs
from .depth.command_buffers import LAUNCHES, Bound, Parts
from .depth.experience import Experience
from .depth.round_cost import Cost
from .depth.row_depths import RowDepths
from .drafting.context import Seen
from .drafting.drafter import DraftRow
from .drafting.kinds import Draft, context_for, drafter_for
from .drafting.load import load_pair, type_name
from .drafting.lookup import Lookup
from .drafting.source import Source
from .drafting.suffix import MOST as COPIED
from .models.folder import ModelError
from .models.pairs import Pair
from .models.targets.transformer import Transformer
from .recovery import Failure, renew
from .request import NO_ADAPTERS, SOURCES, Adapters, Origin, RequestError
from .rounds import Emitted, Round, adapters_of, chosen, in_order, pack, settle
from .schedule.room import Room, TokenRoom
from .schedule.row import FROM_DRAFT, Row
from .schedule.scheduler import FORCED, PREFILL_TOKENS, Plan, Scheduler, Segment
from .shares import Needs, Shares, remember
from .state.kv_pool import KVPool
from .text import Text

MAX_ROWS = 32

FIRST_TOKENS, FIRST_ROUNDS = 64, 32
"""Until a request has ended, for so many rounds at most, a CPU reads so many tokens of prompts a round, and drafts
nothing whose cost is unknown, so that the first answer comes soon."""


class Engine(BaseEngine):
    """Continuous batching over packed rounds, with speculation where there is a draft.

    `step` launches round r + 1 before it reads round r, so the device never waits for the host: anchors, cursors and
    accepted counts stay on the device. The host therefore learns of an end token one round late, and what that row
    did in the extra round is thrown away. A row whose next tokens are constrained by what the last ones were, as in a
    grammar, takes part in every second round, so that the others need not wait; in every one if all rows are such.
    All calls from one thread.

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
        copying: whether rows may draft from their own text, as a budget chooses.

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
        draft: Draft | None = None,
        depth: int | None = None,
        adapters: Adapters = NO_ADAPTERS,
        copying: bool = False,
    ):
        super().__init__(Text(tokenizer, target.vocabulary), context_length, target.vocabulary, max_rows, adapters)
        self.target, self.context_length = target, context_length
        block = draft.block if draft else 0
        most = max(0, block - 1)
        if depth is not None and depth > most:
            raise ModelError(f"depth {depth} is beyond the draft's block: it drafts {most} tokens at most")
        if depth == 0:
            draft, block, most = None, 0, 0
        shares = Shares.of(target, draft, copying, max_rows, context_length, memory)
        self.workspace = shares.workspace
        deepest = most if depth is None else depth
        most = max(most, COPIED if copying else 0)
        self.scheduler = Scheduler(shares.pages, max_rows, block, prefixes=shares.prefixes, forced=most or FORCED)
        self.scheduler.may_start = lambda rows: self.may_start([row.request.id for row in rows])
        self._most_pages = shares.pages
        self.state = target.make_state(self.scheduler.pages.count)
        self.pool = self.state.pool
        self.drafter = drafter_for(draft, target, self.pool.pages, max_rows) if draft else None
        self.lookup = Lookup(self.pool.pages) if copying else None
        self.depths = self.scheduler.depths = RowDepths(deepest, self.draft_origin, copying)
        self._context = context_for(draft, shares.late)
        # Where MLX scatters on a GPU, a round in flight would make the next one copy the pools that it still reads.
        self._waits = mx.default_device() != mx.cpu and not target.operations.in_place
        self.cost: Cost | None = None
        self._measures_later = False
        self.stats.accepted_per_position = [0] * most
        self._working: list[Row] = []  # rows of the round in flight and, while one is launched, of that
        self._read_at: float | None = None  # when the round before it was there

    @classmethod
    def load(
        cls,
        pair: Pair,
        cache: Path,
        max_rows: int | None = MAX_ROWS,
        memory: int | None = None,
        depth: int | None = None,
        draft_bits: int | None = None,
        adapters: Adapters = NO_ADAPTERS,
        drafts: Collection[str] | None = None,
    ) -> Engine:
        """An engine over what `load_pair` loads; unless a depth is given, it chooses depths by what rounds cost here,
        and each row drafts from whatever is worth most to it: of the sources named in `drafts`, or of all.

        At depth 0 the draft is not loaded. With any other depth it is the only source. `max_rows` None takes as many
        rows as have ample room.

        Raises:
            ModelError: as `load_pair` and the engine itself; the message is one line.
        """
        sources = () if depth == 0 else SOURCES if drafts is None else drafts
        parts = load_pair(pair, cache, draft_bits, sources, adapters)
        target, draft, length = parts.target, parts.draft, parts.loaded.context_length
        copying = depth is None and "lookup" in sources
        if drafts and "mtp" in drafts and not draft:
            raise ModelError(f"{pair.target} has no MTP head that can be used: leave mtp out of --drafts")
        needs = Needs.of(target, draft, copying, length)
        max_rows = max_rows or needs.rows(memory)
        remember(pair.target, needs, [parts.loaded.model, draft], cache)
        engine = cls(target, parts.loaded.tokenizer, length, max_rows, memory, draft, depth, adapters, copying)
        engine.verdict, engine.precision = parts.verdict, parts.precision
        if mx.default_device() == mx.cpu:
            engine.scheduler.room = engine._room_on_cpu
        budgeted = depth is None and (draft is not None or copying)
        if budgeted or mx.metal.is_available():  # there also for the bound of command buffers
            block, width = draft.block if draft else 1, 1 + COPIED if copying else 0
            types = " and ".join(dict.fromkeys(type_name(model.dtype) for model in (target, draft) if model))
            name = (
                f"{pair.target}, {parts.draft_name}, {draft_bits or 16} bits, {max_rows} rows, {types}, {width} tokens"
            )

            def measure() -> None:
                engine._measures_later = False
                engine.cost = calibrated(name, cache, target, draft, engine.scheduler.pages.most, max_rows, width)
                if budgeted:
                    engine.spend(budget := Budget(engine.cost, block, copying))
                    engine.after_round = Experience(cache, name, budget).keep

            if budgeted and mx.default_device() == mx.cpu and name not in known_costs(cache):
                engine._measure_later(measure)
            else:
                measure()
        return engine

    @property
    def _has_answered(self) -> bool:
        return self.stats.prompt_tokens > 0 or self.stats.rounds >= FIRST_ROUNDS

    def _room_on_cpu(self, decoding: Sequence[Row]) -> Room:
        most = PREFILL_TOKENS if self._has_answered else FIRST_TOKENS
        return TokenRoom(min(self.scheduler.prefill_tokens, most))

    def _measure_later(self, measure: Callable[[], None]) -> None:
        self.depths.fixed, self._measures_later = 0, True
        self.after_round = lambda _: measure() if self._has_answered else None

    @property
    def busy(self) -> bool:
        """Whether `step` has anything to do: what rounds cost may be left, once the answer to a lone request is out."""
        return super().busy or (self._measures_later and self._has_answered)

    @property
    def drafting(self) -> str:
        """Where drafts come from, in a few words."""
        sources = [self.drafter.about] if self.drafter else []
        return " and ".join([*sources, *(["copies of own text"] if self.lookup else [])]) or "no drafts, plain decoding"

    @property
    def draft_origin(self) -> Origin:
        return self.drafter.origin if self.drafter else "dflash"

    def _enqueue(self, row: Row) -> None:
        if (largest := self.scheduler.largest(row)) > (slots := self._most_pages * PAGE):
            raise RequestError(
                f"prompt and max_tokens need {largest:,} token slots, this worker has {slots:,}; "
                "shorten the prompt, lower max_tokens or raise the worker's --memory"
            )
        if (pages := pages_for(largest)) > self.scheduler.pages.most:  # there is less memory now than there was
            self.scheduler.pages.resize(pages)
        self.scheduler.add(row)

    def _read_all(self) -> None:
        self._read_in_flight(None)
        mx.synchronize()

    def _resize(self, less: bool) -> None:
        needed = (pages_for(self.scheduler.largest(row)) for row in self._rows.values())
        pages = max(int(self.share * self._most_pages), *needed, 1)
        self.scheduler.resize(self.max_rows, pages)
        if less:
            for pool in self._pools:
                pool.renew(self.scheduler.pages.count)
            self.state.renew()
            if self.drafter:
                self.drafter.renew()
            self.lookup = Lookup(self.pool.pages) if self.lookup else None

    def spend(self, budget: Budget) -> None:
        """Let a row budget choose depths from now on."""
        self.depths.budget = budget

    @property
    def budget(self) -> Budget | None:
        """What chooses depths, unless they are fixed."""
        return self.depths.budget

    def keep_within(self, seconds: float, launches: int = LAUNCHES) -> None:
        """From now on cut chunks of prompts and drafts so that no command buffer takes longer, where one ends after so
        many launches. Raises ValueError if nobody has measured what rounds cost here.
        """
        if not self.cost:
            raise ValueError("the cost of rounds is not known")
        parts = Parts(len(self.target.layers), len(self.target.attending), launches)
        bound = Bound(self.cost, parts, seconds, PREFILL_TOKENS, lambda: self.budget.times.pace if self.budget else 1.0)
        self.depths.bound = bound
        self.scheduler.room = lambda decoding: bound.room([row.bound for row in decoding])

    def _run_round(self) -> None:
        alone = self.scheduler.starts_suspect  # it is to fail alone, if it does
        if self._in_flight and (self._waits or alone or (self._in_flight.late and not self._in_flight.yielding)):
            self._read_in_flight(None)  # no row could take part in the next round before
            if self._waits or alone:
                mx.synchronize()  # for what it writes beside its tokens
                self._working = []
        plan = self.scheduler.plan()
        rows = [segment.row for segment in plan.segments]
        self._working += rows
        launched = self._launch(plan)
        self._read_in_flight(launched)
        self._in_flight, self._working = launched, rows

    def _send_all_back(self) -> tuple[list[Row], list[Row]]:
        rows = [row for row in dict.fromkeys(self._working) if row.finish_reason is None]
        self._read_at, self._working = None, []
        sent_back = self.scheduler.start_over()
        for row in sent_back:
            self.depths.forget(row)
        self.scheduler.prefixes.clear()  # what the round should have written may be missing or wrong
        self._context.clear()
        return rows, sent_back

    def _renew(self, failure: Failure) -> None:
        renew(self.target, self.state, self.drafter, self.lookup, failure)

    @property
    def _pools(self) -> list[KVPool]:
        """The target's pool and the draft's, whose pages are the same."""
        return [self.pool, *([self.drafter.pool] if self.drafter else [])]

    def _launch(self, plan: Plan) -> Round | None:
        """Build a round's graph, draft, verify, accept, and hand it to the device."""
        for row in plan.preempted:
            self._context.drop(row)
            self._histories.drop(row)
            self.depths.forget(row)
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
        launched = self._verify(hidden, packing, segments, drafted)
        pending = [hidden]
        if self.lookup:
            self.lookup.write(tokens, packing.places)
            pending.append(self.lookup.tokens)
        if self.drafter:
            emitted = launched.accepted.emitted
            self._context.hold(Seen(hidden, taps, packing.positions, segments, launched.yielding, emitted))
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
            if self.lookup:
                self.lookup.grow(pages)

    def _draft(self, segments: list[Segment]) -> mx.array:
        """The drafts of segments, each kind from its source; where all of a kind are forced, it is not asked."""
        asking = [s for s in segments if (s.depth or 0) > len(s.forced)]
        writing = [s for s in asking if s.kind == FROM_DRAFT]
        copying = [s for s in asking if s.kind != FROM_DRAFT]
        drafts: list[mx.array] = []
        if self.drafter and writing:
            self._extend(self._context.take([s.row for s in writing]))
            drafts.append(self._drafted(self.drafter, writing))
        if self.lookup and copying:
            drafts.append(self._drafted(self.lookup, copying))
        return in_order(segments, [*writing, *copying], drafts)

    def _drafted(self, source: Source, segments: list[Segment]) -> mx.array:
        change = self._histories.of
        rows = [
            DraftRow(s.row.request, s.slot, s.row.pages, s.first, s.exact, s.depth or 0, change(s.row))
            for s in segments
        ]
        return source.draft_blocks(rows, self._ends.anchors, self._ends.cursors)

    def _extend(self, late: tuple[Any, ...] | None) -> list[mx.array]:
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
        if isinstance(emitted, Choice):
            self._context.settle(emitted.segment.row, emitted.tokens)
        super()._take(emitted)

    def _count(self, segment: Segment, depth: int, accepted: int) -> None:
        super()._count(segment, depth, accepted)
        if self.budget and not segment.forced:
            self.budget.observe(segment.row.request.id, depth, accepted, segment.kind)

    def _remove(self, row: Row) -> None:
        self._context.drop(row)
        self.depths.forget(row)
        self.scheduler.remove(row)
