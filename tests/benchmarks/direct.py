"""Drives an engine without a queue: MODEL, rows, tokens, prompts file. Each line on standard input starts a run."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import orjson

from draftmill.worker.blas import preload


def main() -> None:
    preload()
    from draftmill.engine.engine import Engine
    from draftmill.engine.models.pairs import Pair
    from draftmill.engine.request import Request, Sampling
    from draftmill.producer.queue.paths import cache_dir

    model, rows, tokens, file = sys.argv[1:]
    prompts = orjson.loads(Path(file).read_bytes())
    engine = Engine.load(Pair(model, model), cache_dir(), max_rows=int(rows))
    print("ready", flush=True)
    for _ in sys.stdin:
        begin, generated = time.perf_counter(), engine.stats.generated_tokens
        for n, prompt in enumerate(prompts):
            engine.add(
                Request(str(n), engine.text.encode(prompt).tokens, Sampling(max_tokens=int(tokens), ignore_eos=True))
            )
        while engine.busy:
            engine.step()
        seconds = time.perf_counter() - begin
        print(orjson.dumps([seconds, engine.stats.generated_tokens - generated]).decode(), flush=True)


if __name__ == "__main__":
    main()
