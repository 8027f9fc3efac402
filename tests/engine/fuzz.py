"""Random load over small random models: every row gets the tokens that mlx-lm gives it, whatever goes on beside it.

`python -m tests.engine.fuzz SEED…` repeats seeds, `--count N` runs the first N; both print what is wrong.
"""

from __future__ import annotations

import argparse
import sys
import traceback
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import cache, partial
from random import Random
from typing import Any

from draftmill.engine.drafting.kinds import Draft
from draftmill.engine.drafting.mtp.head import MTP
from draftmill.engine.drafting.suffix import MOST
from draftmill.engine.engine import Engine
from draftmill.engine.models.targets import adapt
from draftmill.engine.models.targets.qwen3_5 import Qwen35
from draftmill.engine.request import Completion, Request, Sampling
from draftmill.engine.schedule.row import FROM_DRAFT, Row

from .choose import test_grammar
from .choose.test_grammar import VOCABULARY
from .drafting.mtp.heads import random_head
from .drafting.test_speculation import BLOCK, Replay, random_draft
from .expected import Expectations, Expected, Wrong, told
from .load import CHANGES, FAMILIES, Load, drawn, with_stops
from .small import memory_for

tokenizer = partial(test_grammar.tokenizer, "<think>", "</think>")

READABLE = VOCABULARY - 8
"""Prompts have no end token, and none that the tokenizer does not know."""

MARKERS: Sequence[int] = tokenizer().convert_tokens_to_ids(["<think>", "</think>"])

FLIPS = 0.02
"""The largest part of rows that may leave the expected tokens at a near-tie."""

SHOWN = 3
"""How many wrong rows of a seed are told."""


REFUSED = 0.2
"""How often rows may not start yet."""

PLAIN = Sampling()


@dataclass
class Tally:
    """What has run and been seen so far, and what was wrong, a few lines each."""

    seen: Counter[str] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)

    @property
    def holds(self) -> bool:
        return not self.faults and self.seen["near-ties"] <= FLIPS * self.seen["rows"]

    @property
    def report(self) -> str:
        """What was wrong, and in the last line how much has run and been seen."""
        counts = [f"{count:,} {what}" for what, count in self.seen.items()]
        return "\n\n".join([*self.faults, ", ".join([f"{len(self.faults)} seeds with faults", *counts])])


@cache
def small_model(family: str) -> Any:
    return FAMILIES[family](vocab_size=VOCABULARY)


def fuzz(seeds: Iterable[int]) -> Tally:
    """Run these seeds; what is wrong with one does not stop the others."""
    tally = Tally()
    for seed in seeds:
        load = drawn(seed, READABLE, BLOCK, MARKERS)
        try:
            wrong = Machine(load, tally.seen).run()
        except Exception:
            wrong = [traceback.format_exc()]
        tally.seen["seeds"] += 1
        if wrong:
            repeat = f"seed {seed} ({load}); repeat it: python -m tests.engine.fuzz {seed}"
            tally.faults.append("\n".join([repeat, *wrong[:SHOWN]]))
    return tally


class Machine:
    """Serves the load of one seed and compares what comes out."""

    def __init__(self, load: Load, seen: Counter[str]):
        self.load, self.seen = load, seen
        self.target = adapt(small_model(load.family))
        self.expectations = Expectations(
            small_model(load.family), tokenizer(), VOCABULARY, load.context, self._served_alone
        )

    def run(self) -> list[str]:
        """What is wrong with the rows."""
        expected = {request.id: self.expectations.of(request) for request in self.load.requests}
        requests = {
            request.id: with_stops(self.load, request, self.expectations.decode(expected[request.id].tokens))
            for request in self.load.requests
        }
        completions = self._serve(requests, expected)
        cancelled = {arrival.request.id for arrival in self.load.arrivals if arrival.cancelled is not None}
        wrong: list[str] = []
        for completion in completions:
            request = requests[completion.id]
            self._count(request, completion)
            try:
                if completion.finish_reason == "cancelled" and completion.id not in cancelled:
                    raise Wrong(f"{told(request)} is cancelled; nobody did that")
                flipped = self.expectations.flipped(request, expected[request.id], completion)
                self.seen["near-ties"] += flipped
                self.expectations.check_logprobs(request, completion)
            except Wrong as error:
                wrong.append(str(error))
        asked = Counter(requests.keys()) + Counter(a.request.id for a in self.load.arrivals if a.again)
        if (answered := Counter(completion.id for completion in completions)) != asked:
            wrong.append(f"completions {answered}, expected {asked}")
        return wrong

    def _serve(self, requests: dict[str, Request], expected: dict[str, Expected]) -> list[Completion]:
        """All completions. Requests come and are cancelled between steps; the last one comes when all have ended."""
        engine = self._engine(expected)
        started: Counter[str] = Counter()
        added: Counter[str] = Counter()
        draw = Random(len(requests))

        def may_start(ids: Sequence[str]) -> bool:
            if draw.random() < REFUSED:
                self.seen["refusals"] += 1
                return False
            started.update(ids)
            return True

        engine.may_start = may_start

        def add(id: str) -> None:
            engine.add(requests[id])
            added[id] += 1

        due: defaultdict[int, list[Callable[[], None]]] = defaultdict(list)
        for arrival in self.load.arrivals:
            due[arrival.step].append(partial(add, arrival.request.id))
            if arrival.cancelled is not None:
                due[arrival.step + arrival.cancelled].append(partial(engine.cancel, arrival.request.id))
                if arrival.again:
                    due[arrival.step + arrival.cancelled].append(partial(add, arrival.request.id))
        done: list[Completion] = []
        for step in range(self._most_steps):
            for act in due.pop(step, []):
                act()
            done += engine.step()
            if not due and not engine.busy:
                if added[self.load.last.id]:
                    break
                add(self.load.last.id)
        else:
            raise Wrong(f"stuck: {engine.unfinished} requests have not ended after {self._most_steps} steps")
        self.seen["preemptions"] += sum(max(0, count - added[id]) for id, count in started.items())
        return done

    @property
    def _most_steps(self) -> int:
        """More than rows ever take that come one after the other, each of them preempted a few times."""
        return 1000 + sum(10 * (len(r.tokens) // self.load.chunk + r.sampling.max_tokens) for r in self.load.requests)

    def _engine(self, expected: dict[str, Expected]) -> Engine:
        load = self.load
        draft = self._draft()
        depth = min(load.fixed, draft.block - 1) if draft and load.depths == "fixed" else None
        engine = Engine(
            self.target,
            tokenizer(),
            load.context,
            load.max_rows,
            memory_for(self.target, draft, load.slots, load.max_rows, load.copying),
            draft,
            depth,
            copying=load.copying,
        )
        engine.scheduler.prefill_tokens = load.chunk
        if (draft or load.copying) and load.depths.startswith("of each"):
            engine.scheduler.depths = changing(load)
        if engine.drafter and load.draft.startswith("right"):
            texts = {
                request.id: [*request.tokens, *expected[request.id].tokens, *[0] * request.sampling.max_tokens]
                for request in load.requests
            }
            every = {"third": 3, "fifth": 5}.get(load.draft.rpartition(" ")[2])
            engine.drafter = Replay(engine.drafter.draft, self.target, engine.pool.pages)
            engine.drafter.replay(texts, lambda i: bool(every) and i % every == 0)
        return engine

    def _draft(self) -> Draft | None:
        if self.load.draft == "none":
            return None
        if self.load.draft == "an MTP head" and type(self.target) is Qwen35:  # other targets have another draft
            return MTP(random_head(self.target.model.args), self.target)
        windows = {"layer_types": ["sliding_attention", "full_attention"], "sliding_window": 12}
        changes = windows if self.load.draft.endswith("window") else {}
        return random_draft(num_target_layers=len(self.target.layers), vocab_size=VOCABULARY, **changes)

    def _served_alone(self, request: Request, chunk: int) -> Completion:
        engine = Engine(self.target, tokenizer(), self.load.context, 1, memory_for(self.target, None, 1024, 1))
        engine.scheduler.prefill_tokens = chunk
        engine.add(request)
        done: list[Completion] = []
        while engine.busy:
            done += engine.step()
        return done[0]

    def _count(self, request: Request, completion: Completion) -> None:
        """Note what this row has tried, so that a load that tries nothing is seen."""
        self.seen["rows"] += 1
        self.seen["tokens"] += len(completion.tokens)
        self.seen["cached tokens"] += completion.cached_tokens
        self.seen["accepted drafts"] += completion.accepted
        self.seen["copied drafts"] += completion.accepted_by.get("lookup", 0)
        self.seen["cancelled"] += completion.finish_reason == "cancelled"
        self.seen["sampled"] += not request.sampling.greedy
        self.seen["constrained"] += request.grammar is not None
        self.seen["closed thoughts"] += tokenizer().think_end_id in completion.tokens
        self.seen["with log-probabilities"] += bool(completion.logprobs)
        self.seen["changed"] += any(getattr(request.sampling, name) != getattr(PLAIN, name) for name in CHANGES)
        self.seen["stopped"] += any(
            stop in self.expectations.decode(completion.tokens) for stop in request.sampling.stop
        )


def changing(load: Load) -> Callable[[Sequence[Row], int], list[int]]:
    """Depths that change from row to row, from round to round, or both; with them, whether a row copies."""
    draw = Random(load.seed)
    kinds = [*([FROM_DRAFT] if load.draft != "none" else []), *([FROM_DRAFT + 1] if load.copying else [])]

    def drawn_depth() -> tuple[int, int]:
        kind = draw.choice(kinds)
        return kind, draw.randrange(BLOCK if kind == FROM_DRAFT else 1 + MOST)

    own = {request.id: drawn_depth() for request in load.requests}

    def depths(rows: Sequence[Row], prompt: int) -> list[int]:
        if load.depths == "of each row":
            chosen = [own[row.request.id] for row in rows]
        elif load.depths == "of each round":
            chosen = [drawn_depth()] * len(rows)
        else:
            chosen = [drawn_depth() for _ in rows]
        for row, (kind, _) in zip(rows, chosen, strict=True):
            row.kind = kind
        return [depth for _, depth in chosen]

    return depths


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.engine.fuzz", description="Random load over small models.")
    parser.add_argument("seeds", nargs="*", type=int, help="seeds to run")
    parser.add_argument("--count", type=int, default=0, metavar="N", help="run the first N seeds, too")
    options = parser.parse_args()
    tally = fuzz([*range(options.count), *options.seeds])
    print(tally.report)
    return 0 if tally.holds else 1


if __name__ == "__main__":
    sys.exit(main())
