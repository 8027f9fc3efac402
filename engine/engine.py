"""One machine's generator: requests go in, rounds run, completions come out. Knows no Redis."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx

from ..kernels.packing import Packing, Span
from . import models
from .families import adapt
from .families.transformer import Transformer
from .memory import default_budget
from .pool import KVPool
from .request import Completion, FinishReason, Request, RequestError
from .row import Row
from .sampling import choose
from .scheduler import Plan, Scheduler, Segment
from .text import Text

MAX_ROWS = 32


@dataclass
class Stats:
    """Counters since the engine was made. Seconds are the host's: building rounds, and waiting for their tokens."""

    rounds: int = 0
    rows: int = 0
    prompt_tokens: int = 0
    generated_tokens: int = 0
    drafted: int = 0
    accepted: int = 0
    build_seconds: float = 0.0
    wait_seconds: float = 0.0


@dataclass(frozen=True)
class Round:
    """A round in flight: the segments that yield, and their next tokens [M] on the device."""

    yielding: list[Segment]
    tokens: mx.array


class Engine:
    """Continuous batching over packed rounds.

    `step` launches round r + 1 before it reads round r, so the device never waits for the host; the host therefore
    learns of an end token one round late, and that row's extra token is thrown away. All calls from one thread.

    Args:
        target: adapter over the loaded target.
        tokenizer: mlx-lm's tokenizer wrapper.
        context_length: most tokens of prompt and completion together.
        max_rows: most rows in a round.
        memory: bytes for keys and values; by default what this machine can spare.
    """

    def __init__(
        self,
        target: Transformer,
        tokenizer: Any,
        context_length: int,
        max_rows: int = MAX_ROWS,
        memory: int | None = None,
    ):
        self.target = target
        self.text = Text(tokenizer)
        self.context_length = context_length
        self.max_rows = max_rows
        self.stats = Stats()
        shape = (target.kv_layers, target.kv_heads, target.head_dim, target.dtype)
        budget = default_budget() if memory is None else memory
        per_slot = KVPool.bytes_per_slot(*shape)
        slots = min(budget // per_slot, max_rows * context_length)
        if slots < 1:
            raise models.ModelError(
                f"no memory for keys and values: {budget:,} bytes allowed, one token needs {per_slot:,}; raise --memory"
            )
        self.pool = KVPool(shape[0], slots, *shape[1:])
        self.scheduler = Scheduler(slots, max_rows)
        self._anchors = mx.zeros(max_rows, mx.int32)
        self._in_flight: Round | None = None
        self._rows: dict[str, Row] = {}
        self._finished: list[Row] = []

    @classmethod
    def load(cls, name: str, cache: Path, max_rows: int = MAX_ROWS, memory: int | None = None) -> Engine:
        """Load a target by name, folder or hub id.

        Raises:
            ModelError: it cannot be found, read or served; the message is one line.
        """
        loaded = models.load(name, cache)
        return cls(adapt(loaded.model), loaded.tokenizer, loaded.context_length, max_rows, memory)

    @property
    def unfinished(self) -> int:
        """Requests running or waiting."""
        return len(self._rows)

    @property
    def busy(self) -> bool:
        """Whether `step` has anything to do."""
        return bool(self._rows or self._in_flight or self._finished)

    def encode(self, messages: Sequence[Mapping[str, str]] | None, prompt: str | None) -> list[int]:
        """Tokens of a chat or of a plain prompt; raises RequestError."""
        return self.text.encode(messages, prompt)

    def add(self, request: Request) -> None:
        """Queue a request; it starts when a row and memory are free.

        Raises:
            RequestError: it could never be served.
        """
        prompt, room = len(request.tokens), self.context_length - len(request.tokens)
        if request.id in self._rows:
            raise RequestError(f"request '{request.id}' is already running")
        if prompt == 0:
            raise RequestError("the prompt is empty")
        if room < 1:
            raise RequestError(
                f"the prompt has {prompt:,} tokens, the context {self.context_length:,}; shorten the prompt"
            )
        row = Row(request, limit=min(request.sampling.max_tokens, room))
        if row.largest > self.pool.slots:
            raise RequestError(
                f"prompt and max_tokens need {row.largest:,} token slots, this worker has {self.pool.slots:,}; "
                "shorten the prompt, lower max_tokens or raise the worker's --memory"
            )
        self._rows[request.id] = row
        self.scheduler.waiting.append(row)

    def cancel(self, id: str) -> None:
        """Stop a request; what it generated so far comes out as a completion with finish reason "cancelled"."""
        if row := self._rows.get(id):
            self._finish(row, "cancelled")

    def step(self) -> list[Completion]:
        """Launch the next round, then read the one before it; returns the requests that finished."""
        begin = time.perf_counter()
        launched = self._launch(self.scheduler.plan())
        built = time.perf_counter()
        if self._in_flight:
            self._read(self._in_flight)
        self._in_flight = launched
        self.stats.build_seconds += built - begin
        self.stats.wait_seconds += time.perf_counter() - built
        finished, self._finished = self._finished, []
        return [self._complete(row) for row in finished]

    def _launch(self, plan: Plan) -> Round | None:
        """Build a round's graph and hand it to the device."""
        for move in plan.moves:
            self.pool.move(move.old, move.new, move.count)
        if not plan.segments:
            return None
        tokens, packing = self._pack(plan.segments)
        hidden, _ = self.target.forward(tokens, packing, self.pool)
        ends = [span.query + span.count - 1 for span in packing.spans]
        yielding = [segment for segment in plan.segments if segment.yields]
        last = mx.array([end for end, segment in zip(ends, plan.segments, strict=True) if segment.yields], mx.int32)
        chosen = mx.zeros(0, mx.int32)
        if yielding:
            samplings = [segment.row.request.sampling for segment in yielding]
            chosen = choose(self.target.head(hidden[last]), samplings, packing.positions[last] + 1)
            self._anchors[mx.array([segment.row.slot for segment in yielding])] = chosen
        # Attention reads what the round wrote, so this evaluates the pools too. Naming them would hold them until
        # the round ends, and the next round's first write would then have to copy a pool.
        mx.async_eval(hidden, chosen, self._anchors)
        for segment in yielding:
            segment.row.in_flight += 1
        self.stats.rounds += 1
        self.stats.rows += len(plan.segments)
        return Round(yielding, chosen)

    def _pack(self, segments: list[Segment]) -> tuple[mx.array, Packing]:
        """Tokens [N] and packing of a round. Prompt tokens come from the host, anchors from the device."""
        spans: list[Span] = []
        prompt: list[int] = []
        source: list[int] = []  # of every packed token, in the anchors followed by the prompt tokens
        positions: list[int] = []
        starts: list[int] = []
        for segment in segments:
            row, count = segment.row, segment.count
            assert row.extent is not None
            spans.append(Span(len(source), count, row.extent.start, row.cursor))
            first = row.cursor - count
            if first < len(row.feed):
                source.extend(range(self.max_rows + len(prompt), self.max_rows + len(prompt) + count))
                prompt.extend(row.feed[first : row.cursor])
            else:
                source.append(row.slot)
            positions.extend(range(first, row.cursor))
            starts.extend([row.extent.start] * count)
        table = mx.concatenate([self._anchors, mx.array(prompt, mx.int32)]) if prompt else self._anchors
        at = mx.array(positions, mx.int32)
        return table[mx.array(source)], Packing(tuple(spans), at, at + mx.array(starts, mx.int32))

    def _read(self, launched: Round) -> None:
        """Take the tokens of a round that has run."""
        for segment, token in zip(launched.yielding, launched.tokens.tolist(), strict=True):
            row = segment.row
            row.in_flight -= 1
            if row.finish_reason is None:
                row.rounds += 1
                self._accept(row, token)

    def _accept(self, row: Row, token: int) -> None:
        if token in self.text.end_tokens:
            return self._finish(row, "stop")
        row.generated.append(token)
        self.stats.generated_tokens += 1
        if self.text.stopped(row.generated, row.request.sampling.stop):
            self._finish(row, "stop")
        elif len(row.generated) >= row.limit:
            self._finish(row, "length")

    def _finish(self, row: Row, reason: FinishReason) -> None:
        row.finish_reason = reason
        self.scheduler.remove(row)
        del self._rows[row.request.id]
        self._finished.append(row)

    def _complete(self, row: Row) -> Completion:
        self.stats.prompt_tokens += len(row.request.tokens)
        text = self.text.decode(row.generated)
        return row.completion(self.text.cut(text, row.request.sampling.stop))
