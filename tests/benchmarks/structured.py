"""Asks a pair for JSON under schemas, and counts how much of it is valid; with and without schemas, drafts, forcing.

    python -m tests.benchmarks.structured --requests 200 --depth 2

Half of the requests are greedy, half sampled.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import click
import jsonschema

from draftmill.engine.chat import ChatPrompt
from draftmill.engine.engine import Engine
from draftmill.engine.models.pairs import resolve
from draftmill.engine.request import Completion, Grammar, Request, Sampling
from draftmill.producer.queue.paths import cache_dir

MOOD = {
    "type": "object",
    "properties": {"mood": {"enum": ["good", "bad"]}, "stars": {"type": "integer", "minimum": 1, "maximum": 5}},
    "required": ["mood", "stars"],
    "additionalProperties": False,
}
WORDS = {"type": "array", "items": {"type": "string", "pattern": "^[a-z]{2,9}$"}, "minItems": 1, "maxItems": 2}
CITY = {
    "type": "object",
    "properties": {
        "city": {"type": "string", "maxLength": 12},
        "country": {"type": "object", "properties": {"code": {"type": "string", "pattern": "^[A-Z]{2}$"}}},
        "capital": {"anyOf": [{"type": "boolean"}, {"type": "null"}]},
    },
    "required": ["city", "capital"],
    "additionalProperties": False,
}
CITY["properties"]["country"] |= {"required": ["code"], "additionalProperties": False}

QUESTIONS = (
    (MOOD, "Mood and stars of this review, as JSON: the {} was {}."),
    (WORDS, "Words for the {} that was {}, as a JSON list:"),
    (CITY, "A city with a {} {}, as JSON:"),
)
THINGS = ("room", "soup", "film", "book", "train", "lake", "market", "garden", "museum", "bridge", "song", "game")
KINDS = ("lovely", "cold", "far too long", "old", "bright", "boring", "quiet", "new", "broken", "famous", "dull")


def asking(engine: Engine, count: int) -> Iterator[tuple[Request, Any]]:
    """Requests with their schemas."""
    for i in range(count):
        schema, question = QUESTIONS[i % len(QUESTIONS)]
        text = question.format(THINGS[i % len(THINGS)], KINDS[i % len(KINDS)])
        prompt = engine.text.encode(ChatPrompt(({"role": "user", "content": text},))).tokens
        sampling = Sampling(max_tokens=80, temperature=0.8 * (i % 2), seed=i)
        yield Request(f"r{i}", prompt, sampling, Grammar("json", json.dumps(schema))), schema


def valid(completion: Completion, schema: Any) -> bool:
    """Whether an answer obeys a schema."""
    try:
        jsonschema.validate(json.loads(completion.text), schema)
    except (ValueError, jsonschema.ValidationError):
        return False
    return True


@dataclass(frozen=True)
class Outcome:
    """What became of some requests."""

    completions: dict[str, Completion]
    seconds: float

    @property
    def tokens(self) -> int:
        return sum(len(completion.tokens) for completion in self.completions.values())


def run(engine: Engine, requests: Sequence[Request]) -> Outcome:
    """Generates for all requests at once."""
    begin, completions = time.perf_counter(), {}
    for request in requests:
        engine.add(request)
    while engine.busy:
        completions |= {completion.id: completion for completion in engine.step()}
    return Outcome(completions, time.perf_counter() - begin)


@click.command(help=__doc__)
@click.option("--pair", default="smollm2-135m", show_default=True)
@click.option("--requests", "count", default=200, show_default=True)
@click.option("--rows", default=32, show_default=True)
@click.option("--depth", type=int, help="Drafted tokens to verify; by default as many as pay.")
def main(pair: str, count: int, rows: int, depth: int | None) -> None:
    engine = Engine.load(resolve(pair), cache_dir(), max_rows=rows, depth=depth)
    asked = list(asking(engine, count))
    free = [replace(request, grammar=None) for request, _ in asked]
    plain, unforced = (Engine(engine.target, engine.text.tokenizer, engine.context_length, rows) for _ in range(2))
    unforced.scheduler.forced = 0
    run(engine, free[:rows])  # so that nothing is measured for the first time
    for name, arm, requests in (
        ("with schemas, with the draft", engine, [request for request, _ in asked]),
        ("with schemas, without a draft", plain, [request for request, _ in asked]),
        ("with schemas, without a draft, nothing forced", unforced, [request for request, _ in asked]),
        ("without schemas, without a draft", plain, free),
    ):
        outcome = run(arm, requests)
        good = sum(valid(outcome.completions[request.id], schema) for request, schema in asked)
        rounds = sum(completion.rounds for completion in outcome.completions.values())
        accepted = sum(completion.accepted for completion in outcome.completions.values())
        print(
            f"{name}: {good} of {count} valid, {outcome.tokens:,} tokens in {outcome.seconds:.1f} s "
            f"({outcome.tokens / outcome.seconds:.0f} tokens/s), {1 + accepted / max(1, rounds):.2f} tokens a round",
            flush=True,
        )


if __name__ == "__main__":
    main()
