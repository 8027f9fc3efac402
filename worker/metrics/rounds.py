"""What Prometheus reads of rounds: the engine's own counters, as they are when it asks, and how long rounds took.

Rounds may take half a millisecond, so that a round costs this no more than two look-ups and two additions.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from itertools import accumulate

from prometheus_client.metrics_core import CounterMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from ...engine.request import ORIGINS
from ...engine.stats import Stats

ROWS = (1, 2, 4, 8, 12, 16, 24, 32, 48, 64, 96, 128)
ROUND_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)


class Buckets:
    """How many observations reach up to each of some limits, and the sum of all."""

    def __init__(self, limits: Sequence[float]) -> None:
        self._limits = limits
        self._counts = [0] * (len(limits) + 1)
        self._sum = 0.0

    def observe(self, value: float) -> None:
        self._counts[bisect_left(self._limits, value)] += 1
        self._sum += value

    def add_to(self, family: HistogramMetricFamily, *labels: str) -> None:
        """Say so in a family of histograms, under these labels."""
        names = [*(str(float(limit)) for limit in self._limits), "+Inf"]
        family.add_metric(labels, list(zip(names, accumulate(self._counts), strict=True)), self._sum)


class RoundMetrics(Collector):
    """The counters of one engine. They are read by another thread than the one that observes."""

    def __init__(self) -> None:
        self._stats = Stats()
        self._rounds = self._rows = self._prefilled = 0
        self._batch_size = Buckets(ROWS)
        self._seconds = {phase: Buckets(ROUND_SECONDS) for phase in ("decode", "prefill")}

    def observe(self, seconds: float, stats: Stats) -> None:
        """One step of the engine, whose counters these are, took so long."""
        self._stats = stats
        if rounds := stats.rounds - self._rounds:
            self._batch_size.observe((stats.rows - self._rows) / rounds)
            self._seconds["prefill" if stats.prefilled_tokens > self._prefilled else "decode"].observe(seconds)
        self._rounds, self._rows, self._prefilled = stats.rounds, stats.rows, stats.prefilled_tokens

    def collect(self) -> Iterator[Metric]:
        """All of it, as it is now."""
        stats = self._stats
        yield CounterMetricFamily("draftmill_generated_tokens", "Tokens generated.", stats.generated_tokens)
        yield CounterMetricFamily("draftmill_prompt_tokens", "Prompt tokens of ended requests.", stats.prompt_tokens)
        help = "Prompt tokens of ended requests that were not prefilled."
        yield CounterMetricFamily("draftmill_cached_tokens", help, stats.cached_tokens)
        yield CounterMetricFamily("draftmill_rounds", "Rounds of the engine.", stats.rounds)
        help = "Decoding rounds, counted for each row."
        yield CounterMetricFamily("draftmill_spec_rounds", help, stats.row_rounds)
        sources = [(source, stats.drafted_by[source], stats.accepted_by[source]) for source in ORIGINS]
        help = "Draft tokens verified, by source."
        yield _labelled("spec_draft_tokens", help, "source", ((source, count) for source, count, _ in sources))
        help = "Draft tokens accepted, by source."
        yield _labelled("spec_accepted_tokens", help, "source", ((source, count) for source, _, count in sources))
        positions = [(str(place), count) for place, count in enumerate(stats.accepted_per_position) if count]
        help = "Draft tokens accepted, by their place in the block."
        yield _labelled("spec_accepted_tokens_per_position", help, "position", positions)
        sizes = HistogramMetricFamily("draftmill_batch_size", "Rows in a round.")
        self._batch_size.add_to(sizes)
        yield sizes
        help = "Wall time of a round; prefill: with prompts."
        seconds = HistogramMetricFamily("draftmill_round_seconds", help, labels=["phase"])
        for phase, buckets in self._seconds.items():
            buckets.add_to(seconds, phase)
        yield seconds


def _labelled(name: str, help: str, label: str, counts: Iterable[tuple[str, int]]) -> Metric:
    family = CounterMetricFamily(f"draftmill_{name}", help, labels=[label])
    for value, count in counts:
        family.add_metric([value], count)
    return family
