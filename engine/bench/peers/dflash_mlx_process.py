"""Runs `dflash-mlx` for `elsewhere.DFlashMlx`: TARGET and DRAFT. Each line of standard input, a JSON list of prompts
with their most tokens, is answered by a line with the tokens of each.
"""

from __future__ import annotations

import importlib
import json
import sys
from typing import Any


class Generator:
    """A pair, loaded as the package's own command line does it."""

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

    def generate(self, prompt: list[int], most: int) -> list[int]:
        """The tokens of one request, without the end token."""
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


def main() -> None:
    answers, sys.stdout = sys.stdout, sys.stderr  # whatever the package prints is no answer
    try:
        generator = Generator(*sys.argv[1:])
        print(json.dumps({"done": "ready"}), file=answers, flush=True)
        for line in sys.stdin:
            done = [generator.generate(prompt, most) for prompt, most in json.loads(line)]
            print(json.dumps({"done": done}), file=answers, flush=True)
    except Exception as error:
        reason = (str(error).strip().splitlines() or [""])[0]
        print(json.dumps({"error": f"{type(error).__name__}: {reason}"[:160]}), file=answers, flush=True)


if __name__ == "__main__":
    main()
