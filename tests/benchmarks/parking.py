"""What a draft costs that does not pay: the row budget against plain decoding where a verified token costs a whole one.

    OPENBLAS_NUM_THREADS=1 python -m tests.benchmarks.parking [--pairs 3]

Runs without a preloaded BLAS, on the slow one of MLX's own wheel. Counts processor time, which other programs on the
machine disturb less than the clock.
"""

from __future__ import annotations

import argparse
import time
from statistics import median

from draftmill.engine.chat import ChatPrompt
from draftmill.engine.depth.budget import Budget
from draftmill.engine.depth.calibration import PAGES, measure
from draftmill.engine.depth.round_cost import Cost
from draftmill.engine.drafting.load import LoadedPair, load_pair
from draftmill.engine.engine import Engine
from draftmill.engine.models.pairs import resolve
from draftmill.engine.request import Request, Sampling
from draftmill.producer.queue.paths import cache_dir

PROMPTS = ("Explain how rainbows form in simple words.", "Write a short poem about a river in autumn.")


def seconds_per_token(pair: LoadedPair, tokens: int, cost: Cost | None) -> tuple[float, int]:
    """Processor seconds for a token once all rows decode, and drafted tokens; without a cost, without the draft."""
    draft = pair.draft if cost else None
    engine = Engine(pair.target, pair.loaded.tokenizer, 512, len(PROMPTS), draft=draft)
    if cost and engine.drafter:
        engine.spend(Budget(cost, engine.drafter.block))
    for number, prompt in enumerate(PROMPTS):
        encoded = engine.text.encode(ChatPrompt(({"role": "user", "content": prompt},))).tokens
        engine.add(Request(f"r{number}", encoded, Sampling(max_tokens=tokens, seed=number)))
    engine.step()
    engine.step()
    before, begin = engine.stats.generated_tokens, time.process_time()
    while engine.busy:
        engine.step()
    spent = time.process_time() - begin
    return spent / (engine.stats.generated_tokens - before), engine.stats.drafted


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--tokens", type=int, default=40)
    given = parser.parse_args()
    pair = load_pair(resolve("smollm2-135m"), cache_dir())
    assert pair.draft
    cost = measure(pair.target, pair.draft, PAGES, len(PROMPTS))
    ratios: list[float] = []
    for number in range(given.pairs):
        arms = [None, cost] if number % 2 == 0 else [cost, None]
        found = {arm: seconds_per_token(pair, given.tokens, arm) for arm in arms}
        (plain, _), (budget, drafted) = found[None], found[cost]
        ratios.append(plain / budget)
        print(f"plain {plain:.4f} s a token, row budget {budget:.4f} s ({drafted} drafted), speed {ratios[-1]:.3f}")
    print(f"median speed of the row budget to plain decoding: {median(ratios):.3f}")


if __name__ == "__main__":
    main()
