"""What mlx-lm generates for the lines of a file with each of some models, and how close its second choices were.

    python -m tests.farm.models.expected FOLDER LINES NAME…

makes a model in FOLDER/NAME for each name, and prints a line of JSON for it: for each line of the file the tokens, why
they ended, and the margin of each choice. Of long answers only the beginning is generated.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import mlx.core as mx
import orjson
from mlx_lm import load, stream_generate

from .folders import write

LONGEST = 200
"""Tokens of an answer at most."""


def answer(model: Any, tokenizer: Any, body: dict[str, Any]) -> dict[str, Any]:
    """mlx-lm's greedy answer to the body of a line, which is a plain prompt."""
    end = tokenizer.eos_token_id
    tokenizer.eos_token_ids = set() if body.get("ignore_eos") else {end}
    steps = list(stream_generate(model, tokenizer, body["prompt"], max_tokens=min(LONGEST, body["max_tokens"])))
    reason = steps[-1].finish_reason
    tokens = [step.token for step in steps]
    return {
        "asked": body["max_tokens"],
        "tokens": tokens[:-1] if reason == "stop" else tokens,
        "reason": reason,
        "margins": margins(mx.stack([step.logprobs for step in steps])),
    }


def margins(logprobs: mx.array) -> Any:
    """How far the two likeliest tokens are apart, as a part of the distance to the unlikeliest: of each [T, V], [T]."""
    ordered = mx.sort(logprobs.astype(mx.float32))
    return ((ordered[:, -1] - ordered[:, -2]) / (ordered[:, -1] - ordered[:, 0])).tolist()


def main(folder: Path, lines: Path, names: list[str]) -> None:
    bodies = [orjson.loads(line)["body"] for line in lines.read_bytes().splitlines()]
    for name in names:
        write(name, folder / name)
        try:
            model, tokenizer = load(str(folder / name))[:2]
            answers = [answer(model, tokenizer, body) for body in bodies]
        except Exception as error:
            raise SystemExit(f"{name}, with mlx-lm itself: {type(error).__name__}: {error}") from error
        print(orjson.dumps({"name": name, "answers": answers}).decode(), flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:])
