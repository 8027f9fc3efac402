"""Prompts to train on: read from files, and written by the target itself."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from ..chat import ChatPrompt
from ..engine import Engine
from ..request import Completion, Request, RequestError, Sampling

Tokens = tuple[int, ...]

OPENINGS = (
    "",
    "",
    "",
    "",
    "",
    "",
    "Write a Python function",
    "Write a Python program",
    "Complete this Python function:\n\n```python\ndef",
    "Complete the function below.\n\n```python\nfrom typing import List\n\n\ndef",
    "Explain",
    "A farmer has",
    "There are",
    "Anna bought",
)
"""How a prompt that the target writes begins; mostly by nothing, else towards code and word problems."""

SHORTEST = 4
"""Prompts of fewer tokens are broken off or empty."""


class TrainingError(ValueError):
    """Nothing to train on, or a folder that cannot be gone on with; one line that says what and what to do."""


def read_prompts(files: Iterable[Path]) -> list[str]:
    """The `prompt` of every line of JSONL files, each once.

    Raises:
        TrainingError: a file cannot be read, or a line has no prompt.
    """
    prompts: dict[str, None] = {}
    for file in files:
        try:
            lines = file.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise TrainingError(f"cannot read {file}: {error}") from error
        for number, line in enumerate(lines, start=1):
            try:
                prompt = json.loads(line)["prompt"]
                assert isinstance(prompt, str)
                prompts[prompt] = None
            except (ValueError, KeyError, TypeError, AssertionError):
                raise TrainingError(f'{file}:{number} is no JSON object with a "prompt"') from None
    return list(prompts)


def encode_prompts(engine: Engine, prompts: Iterable[str]) -> list[Tokens]:
    """Each prompt as the user's message in the target's chat template."""
    return [engine.text.encode(ChatPrompt(({"role": "user", "content": prompt},))).tokens for prompt in prompts]


def user_header(engine: Engine) -> str:
    """What the target's chat template puts before a user's message."""
    sentinel = "\u241f"
    tokenizer = engine.text.tokenizer
    try:
        rendered = tokenizer.apply_chat_template([{"role": "user", "content": sentinel}], tokenize=False)
    except Exception as error:  # a template is a program of the model's: it raises what it likes
        raise TrainingError(f"the target has no usable chat template ({error}); give --prompts instead") from error
    return rendered[: rendered.index(sentinel)]


def write_prompts(
    engine: Engine, count: int, seed: int, known: Iterable[str], longest: int = 200, seconds: float | None = None
) -> Iterator[str]:
    """New prompts that the target writes when it is given the user's header alone, or with an opening.

    Sampled at temperature 1 until the end token; those that do not end, that are too short, and those that are
    known already are dropped, so fewer than `count` may come.
    """
    header = user_header(engine)
    seen = set(known)
    heads = [tuple(engine.text.tokenizer.encode(header + text, add_special_tokens=False)) for text in OPENINGS]
    requests = (
        Request(
            str(index),
            heads[index % len(heads)],
            Sampling(max_tokens=longest, temperature=1.0, seed=seed * 1_000_003 + index),
        )
        for index in range(count)
    )
    for completion in run_all(engine, requests, seconds=seconds):
        prompt = (OPENINGS[int(completion.id) % len(OPENINGS)] + completion.text).strip()
        whole = completion.finish_reason == "stop" and len(completion.tokens) >= SHORTEST
        if whole and prompt not in seen and "\ufffd" not in prompt and "<|" not in prompt:
            seen.add(prompt)
            yield prompt


def run_all(
    engine: Engine,
    requests: Iterable[Request],
    seconds: float | None = None,
    refused: Callable[[Request], None] = lambda request: None,
) -> Iterator[Completion]:
    """Completions of a long stream of requests, as they finish; after `seconds` no new request is begun."""
    begin = time.monotonic()
    stream = iter(requests)
    more = True
    while more or engine.busy:
        while more and engine.unfinished < 2 * engine.max_rows:
            request = next(stream, None)
            more = request is not None and (seconds is None or time.monotonic() - begin < seconds)
            if request is not None and more:
                try:
                    engine.add(request)
                except RequestError:
                    refused(request)
        yield from engine.step()
