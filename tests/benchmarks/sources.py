"""What each source of drafts is worth: texts that quote their prompts beside texts that do not, one budget for all.

    python -m tests.benchmarks.sources [--rows 1 8] [--tokens 96] [--turns 4]

An arm keeps its row budget from turn to turn, as a worker does from batch to batch. The first turn, in which the budget
knows only what was calibrated, stands apart from the median of the others. On a CPU it counts processor time, which
other programs on the machine disturb less than the clock. `--prompts` are of each kind, so half of each is twice as
many: a batch has more requests than rows, and a row that is done early makes room for another.
"""

from __future__ import annotations

import argparse
import re
import time
from pathlib import Path
from statistics import median

import mlx.core as mx

from draftmill.engine.chat import ChatPrompt
from draftmill.engine.depth.budget import Budget
from draftmill.engine.depth.calibration import PAGES, measure
from draftmill.engine.depth.round_cost import NOTHING, Cost
from draftmill.engine.drafting.load import LoadedPair, load_pair
from draftmill.engine.drafting.suffix import MOST
from draftmill.engine.engine import Engine
from draftmill.engine.models.pairs import resolve
from draftmill.engine.request import Request, Sampling
from draftmill.producer.queue.paths import cache_dir

ROOT = Path(__file__).parents[2]

ARMS = {"none": (False, False), "lookup": (False, True), "dflash": (True, False), "both": (True, True)}
"""Whether the pair's draft writes, and whether rows copy."""

STORIES = (
    "Tell a story about a lighthouse keeper who finds a letter.",
    "Why is the sky blue? Explain it to a child.",
    "Write a short poem about a river in autumn.",
    "What should one look at when buying a used bicycle?",
    "Describe a market in the morning.",
    "How does a vaccine work?",
    "Tell a story about a fox and a train.",
    "What are the advantages of living in a small town?",
)


def extracts() -> list[str]:
    """Paragraphs of the project's own pages, of which the answer quotes much."""
    text = "\n\n".join((ROOT / page).read_text() for page in ("engine/README.md", "producer/README.md"))
    paragraphs = [" ".join(part.split()) for part in text.split("\n\n") if re.fullmatch(r"[A-Z][^|#]{200,500}", part)]
    return [f"Repeat the following text word for word.\n\n{part}" for part in paragraphs[: len(STORIES)]]


def unlearned(pair: LoadedPair, cost: Cost, arm: str) -> Budget | None:
    """The row budget of an arm before its first batch."""
    writing, copying = ARMS[arm]
    if not (writing or copying):
        return None
    assert pair.draft
    return Budget(cost if writing else Cost(cost.round, NOTHING), pair.draft.block if writing else 1, copying)


def tokens_per_second(
    pair: LoadedPair, budget: Budget | None, prompts: list[str], rows: int, tokens: int, arm: str
) -> tuple[float, float]:
    """Tokens for each second once all rows have begun, and tokens per round of a row."""
    clock = time.process_time if mx.default_device() == mx.cpu else time.perf_counter
    writing, copying = ARMS[arm]
    draft = pair.draft if writing else None
    engine = Engine(pair.target, pair.loaded.tokenizer, 1024, rows, draft=draft, copying=copying)
    if budget:
        engine.spend(budget)
    for number, prompt in enumerate(prompts):
        encoded = engine.text.encode(ChatPrompt(({"role": "user", "content": prompt},))).tokens
        engine.add(Request(f"r{number}", encoded, Sampling(max_tokens=tokens, seed=number)))
    begin = clock()
    while engine.busy:
        engine.step()
    spent = clock() - begin
    return engine.stats.generated_tokens / spent, engine.stats.accepted / engine.stats.row_rounds + 1


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rows", type=int, nargs="*", default=[1, 8])
    parser.add_argument("--tokens", type=int, default=96)
    parser.add_argument("--turns", type=int, default=4)
    parser.add_argument("--prompts", type=int, default=8)
    given = parser.parse_args()
    pair = load_pair(resolve("smollm2-135m"), cache_dir())
    assert pair.draft
    cost = measure(pair.target, pair.draft, PAGES, max(given.rows), MOST + 1)
    sets = {"extracts": extracts()[: given.prompts], "stories": [*STORIES][: given.prompts]}
    sets["half of each"] = [prompt for both in zip(*sets.values(), strict=True) for prompt in both]
    for rows in given.rows:
        for name, prompts in sets.items():
            found: dict[str, list[tuple[float, float]]] = {arm: [] for arm in ARMS}
            budgets = {arm: unlearned(pair, cost, arm) for arm in ARMS}
            for _ in range(given.turns):
                for arm, budget in budgets.items():
                    found[arm].append(tokens_per_second(pair, budget, prompts, rows, given.tokens, arm))
            base = [speed for speed, _ in found["none"]]
            for arm, own in found.items():
                first, *later = [speed / plain for (speed, _), plain in zip(own, base, strict=True)]
                speed, per_round = median(speed for speed, _ in own), own[-1][1]
                print(
                    f"{rows:3} rows  {name:12}  {arm:7} {speed:7.2f} tokens/s  {per_round:5.2f} a round  "
                    f"{first:5.2f}x first, then {median(later):5.2f}x ({min(later):.2f} to {max(later):.2f})",
                    flush=True,
                )


if __name__ == "__main__":
    main()
