"""Runs `vllm-mlx` for `elsewhere.VllmMlx`, in vllm-mlx's own environment, where draftmill is not: TARGET, its type of
numbers, and how many rows at a time. Each line of standard input, a JSON list of prompts with their most tokens, is
answered by a line with the tokens of each.
"""

from __future__ import annotations

import importlib
import json
import sys
from typing import Any


class Generator:
    """A target behind vllm-mlx's scheduler, with the scheduler's own settings but for the rows."""

    def __init__(self, target: str, dtype: str, rows: str):
        mx: Any = importlib.import_module("mlx.core")
        self.requests: Any = importlib.import_module("vllm_mlx.request")
        self.scheduling: Any = importlib.import_module("vllm_mlx.scheduler")
        loading: Any = importlib.import_module("mlx_lm.utils")
        self.model, self.tokenizer = loading.load(target)
        self.model.set_dtype(getattr(mx, dtype))
        if dtype == "float32":  # on a CPU, where quantised weights are slow: draftmill does the same
            self.model = loading.dequantize_model(self.model)
            self.model.set_dtype(mx.float32)
        self.rows = int(rows)

    def generate(self, asked: list[tuple[list[int], int]]) -> list[list[int]]:
        """The tokens of each prompt, without the end token, by a scheduler that has seen none of them."""
        config = self.scheduling.SchedulerConfig(max_num_seqs=self.rows, completion_batch_size=self.rows)
        scheduler = self.scheduling.Scheduler(self.model, self.tokenizer, config)
        for place, (prompt, most) in enumerate(asked):
            sampling = self.requests.SamplingParams(max_tokens=most, temperature=0.0)
            scheduler.add_request(self.requests.Request(str(place), prompt, sampling))
        done: dict[str, list[int]] = {}
        while scheduler.has_requests():
            for output in scheduler.step().outputs:
                if output.finished:
                    done[output.request_id] = output.output_token_ids
        ends = self.tokenizer.eos_token_ids
        return [[token for token in done[str(place)] if token not in ends] for place in range(len(asked))]


def main() -> None:
    answers, sys.stdout = sys.stdout, sys.stderr  # whatever the package prints is no answer
    try:
        generator = Generator(*sys.argv[1:])
        print(json.dumps({"done": "ready"}), file=answers, flush=True)
        for line in sys.stdin:
            print(json.dumps({"done": generator.generate(json.loads(line))}), file=answers, flush=True)
    except Exception as error:
        reason = (str(error).strip().splitlines() or [""])[0]
        print(json.dumps({"error": f"{type(error).__name__}: {reason}"[:160]}), file=answers, flush=True)


if __name__ == "__main__":
    main()
