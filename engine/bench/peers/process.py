"""Runs another engine for `elsewhere.Elsewhere`, where that is installed and draftmill may not be.

Arguments: which engine, and what it takes. Each line of standard input, a JSON list of prompts with their most tokens,
is answered by a line with the tokens of each.
"""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Callable
from typing import Any, Protocol

Asked = list[tuple[list[int], int]]
"""Prompts, and the most tokens that each may get."""


class Generator(Protocol):
    def generate(self, asked: Asked) -> list[list[int]]:
        """The tokens of each prompt, without the end token."""
        ...


class DFlashMlx:
    """A pair, loaded as the package's own command line does it; one request after the other."""

    def __init__(self, target: str, draft: str):
        self.runtime: Any = importlib.import_module("dflash_mlx.runtime")
        loading: Any = importlib.import_module("dflash_mlx.runtime.bundle")
        contexts: Any = importlib.import_module("dflash_mlx.runtime.context")
        importlib.import_module("dflash_mlx.metal_limits").apply_metal_limits()
        self.context = contexts.build_offline_runtime_context()
        self.bundle = loading.load_runtime_bundle(
            model_ref=target, draft_ref=draft, draft_quant=None, verify_config=self.context.verify
        )
        self.ends = self.runtime.get_stop_token_ids(self.bundle.tokenizer)

    def generate(self, asked: Asked) -> list[list[int]]:
        return [self._generate(prompt, most) for prompt, most in asked]

    def _generate(self, prompt: list[int], most: int) -> list[int]:
        events = self.runtime.stream_dflash_generate(
            target_model=self.bundle.target_model,
            target_ops=self.bundle.target_ops,
            tokenizer=self.bundle.tokenizer,
            draft_model=self.bundle.draft_model,
            draft_backend=self.bundle.draft_backend,
            prompt_tokens_override=prompt,
            max_new_tokens=most,
            stop_token_ids=self.ends,
            runtime_context=self.context,
        )
        tokens = [int(event.token_id) for event in events if type(event).__name__ == "TokenEvent"]
        return [token for token in tokens if token not in self.ends]


class VllmMlx:
    """A target of a type of numbers behind vllm-mlx's scheduler, with its own settings but for how many rows it has."""

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

    def generate(self, asked: Asked) -> list[list[int]]:
        """By a scheduler that has seen none of them."""
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


ENGINES: dict[str, Callable[..., Generator]] = {"dflash-mlx": DFlashMlx, "vllm-mlx": VllmMlx}


def main() -> None:
    answers, sys.stdout = sys.stdout, sys.stderr  # whatever the package prints is no answer
    try:
        generator = ENGINES[sys.argv[1]](*sys.argv[2:])
        print(json.dumps({"done": "ready"}), file=answers, flush=True)
        for line in sys.stdin:
            print(json.dumps({"done": generator.generate(json.loads(line))}), file=answers, flush=True)
    except Exception as error:
        reason = (str(error).strip().splitlines() or [""])[0]
        print(json.dumps({"error": f"{type(error).__name__}: {reason}"[:160]}), file=answers, flush=True)


if __name__ == "__main__":
    main()
