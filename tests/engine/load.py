"""Random load for an engine: what one seed draws, from the model to the moment at which each request is cancelled."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from random import Random
from typing import Any

from draftmill.engine.request import Grammar, Request, Sampling

from .small import llama_model, qwen3_5_model, qwen3_5_moe_model, qwen3_model, qwen3_moe_model

PAGE = 64
"""Slots of a page: lengths around it and its multiples are drawn often."""

LONG = 180
"""Most tokens of the longest completions: more than any room that a row gets for its first ones."""

FAMILIES: dict[str, Callable[..., Any]] = {
    "llama": llama_model,
    "qwen3": qwen3_model,
    "qwen3-moe": qwen3_moe_model,
    "qwen3.5": qwen3_5_model,
    "qwen3.5-moe": qwen3_5_moe_model,
    "llama-window-16": lambda **changes: sliding(16, **changes),
    "llama-window-100": lambda **changes: sliding(100, **changes),
}

DRAFTS = (
    "none",
    "random",
    "random with a window",
    "right",
    "right but for every third",
    "right but for every fifth",
    "an MTP head",
)
DEPTHS = ("whole block", "fixed", "of each row", "of each round", "of each row and round")

CHANGES = (
    "min_p",
    "repetition_penalty",
    "presence_penalty",
    "frequency_penalty",
    "logit_bias",
    "allowed_token_ids",
    "bad_words",
    "stop_token_ids",
    "ignore_eos",
    "min_tokens",
    "include_stop",
    "logprobs",
)
"""Parameters of which a request draws a few."""

SCHEMAS: tuple[Any, ...] = (
    {"enum": ["good", "bad", "so so"]},
    {"type": "array", "items": {"type": "boolean"}, "minItems": 1, "maxItems": 4},
    {"type": "array", "items": {"type": "string", "pattern": "^[a-z]{2,5}$"}, "maxItems": 2},
    {"type": "object", "properties": {"n": {"type": "integer", "minimum": 0, "maximum": 99}}, "required": ["n"]},
)

GRAMMARS = (
    *(Grammar("json", json.dumps(schema)) for schema in SCHEMAS),
    Grammar("regex", "(yes|no), [a-z]{1,9}"),
    Grammar("choice", '["one", "one of them", "the other one"]'),
    Grammar("lark", 'start: "nothing" | "(" start ")"'),
)


@dataclass(frozen=True)
class Arrival:
    """A request that comes before this step, the steps after which it is cancelled, and whether it then comes again."""

    step: int
    request: Request
    cancelled: int | None = None
    again: bool = False


@dataclass(frozen=True)
class Load:
    """An engine and what it has to do. `slots` are those of its pools, `fixed` the depth where all have one; rows may
    be `copying` from their own text.

    `last` comes when all others have gone: it needs nearly all of a tight pool.
    """

    seed: int
    family: str
    max_rows: int
    context: int
    slots: int
    chunk: int
    draft: str
    depths: str
    fixed: int
    copying: bool
    arrivals: tuple[Arrival, ...]
    last: Request

    @property
    def requests(self) -> list[Request]:
        return [*(arrival.request for arrival in self.arrivals), self.last]

    def __str__(self) -> str:
        depths = f", depths {self.depths}" if self.draft != "none" or self.copying else ""
        depths += ", copying" if self.copying else ""
        return (
            f"{self.family}, {self.max_rows} rows, {self.slots} slots, chunks of {self.chunk}, "
            f"draft {self.draft}{depths}, {len(self.requests)} requests"
        )


def sliding(window: int, **changes: Any) -> Any:
    layers = ["full_attention", "sliding_attention", "sliding_attention"]
    return llama_model(layer_types=layers, sliding_window=window, **changes)


def drawn(seed: int, vocabulary: int, block: int, markers: Sequence[int]) -> Load:
    """What a seed draws, for prompts of tokens below `vocabulary`, drafts that write `block` tokens ahead, and thoughts
    that begin and end with these `markers`.

    Seeds take families in turn, so that the first few have met them all.
    """
    draw = Random(seed)
    chunk = draw.choice((5, 16, PAGE - 1, PAGE, PAGE + 1, 150, 512))
    prompts = drawn_prompts(draw, draw.randint(5, 11), chunk, vocabulary)
    arrivals = drawn_arrivals(draw, [drawn_request(draw, f"r{i}", prompt, markers) for i, prompt in enumerate(prompts)])
    largest = max(len(a.request.tokens) + a.request.sampling.max_tokens for a in arrivals) + block
    tight = (-(-largest // PAGE) + draw.randint(1, 4)) * PAGE
    context = draw.choice((max(map(len, prompts)) + draw.randint(1, 60), 512))
    room = min(context, tight - PAGE - block)
    last = tuple(draw.randrange(vocabulary) for _ in range(room - draw.randint(1, 12)))
    return Load(
        seed,
        family=list(FAMILIES)[seed % len(FAMILIES)],
        max_rows=draw.randint(1, 8),
        context=context,
        slots=draw.choice((tight, 4096)),
        chunk=chunk,
        draft=draw.choice(DRAFTS),
        depths=draw.choice(DEPTHS),
        fixed=draw.randrange(block),
        copying=draw.random() < 0.5,
        arrivals=tuple(replace(arrival, request=within(arrival.request, context)) for arrival in arrivals),
        last=Request("last", last, Sampling(room - len(last))),
    )


def within(request: Request, context: int) -> Request:
    """The request, of which a context of so many tokens leaves room for as many as it must have."""
    least = min(request.sampling.min_tokens, context - len(request.tokens))
    return replace(request, sampling=replace(request.sampling, min_tokens=least))


def drawn_prompts(draw: Random, count: int, chunk: int, vocabulary: int) -> list[tuple[int, ...]]:
    """Prompts of 1 to 300 tokens, of which many begin alike: for less than a page or chunk, for just one, for more."""

    def text(length: int) -> list[int]:
        return [draw.randrange(vocabulary) for _ in range(length)]

    edges = [n + d for n in (32, PAGE, 2 * PAGE, 3 * PAGE, chunk, 2 * chunk) for d in (-1, 0, 1)]
    template = text(300)
    templates = [template, template[: draw.choice(edges)] + text(300)]
    prompts: list[list[int]] = []
    for _ in range(count):
        own = text(draw.randint(0, draw.choice((3, 20, 100))))
        kind = draw.random()
        if kind < 0.5:
            prompt = draw.choice(templates)[: draw.choice((*edges, draw.randint(1, 300)))] + own
        elif kind < 0.7 and prompts:
            prompt = draw.choice(prompts) + own
        else:
            prompt = text(draw.randint(0, draw.choice((20, 100, 300)))) + own
        prompts.append(prompt[:300] or text(1))
    return [tuple(prompt) for prompt in prompts]


def drawn_request(draw: Random, id: str, prompt: tuple[int, ...], markers: Sequence[int]) -> Request:
    """Greedy or sampled, free or under a grammar, perhaps with thoughts before, whose end may come if a budget forces
    it; its stop strings depend on its text and are drawn later.
    """
    sampling = Sampling(draw.choice((1, draw.randint(1, 20), draw.randint(20, 60), draw.randint(20, 60), LONG)))
    if draw.random() < 0.35:
        sampling = replace(
            sampling,
            temperature=draw.choice((0.3, 0.7, 1.0, 1.5)),
            top_p=draw.choice((1.0, 0.9, 0.5)),
            top_k=draw.choice((0, 1, 5, 40, 1000)),
            seed=draw.randrange(2**40),
        )
    sampling = replace(sampling, **drawn_changes(draw, sampling.max_tokens))
    if draw.random() < 0.3:
        sampling = replace(sampling, thinking_budget=draw.choice((0, 1, 5, 30)))
        if sampling.allowed_token_ids:
            sampling = replace(sampling, allowed_token_ids=(*sampling.allowed_token_ids, *markers))
    grammar = draw.choice(GRAMMARS) if draw.random() < 0.3 else None
    if grammar:  # of which these may leave nothing
        sampling = replace(sampling, allowed_token_ids=(), bad_words=())
    return Request(id, prompt, sampling, grammar, draw.choice(("none", "none", "may", "open")))


def drawn_changes(draw: Random, most: int) -> dict[str, Any]:
    """A few parameters that change logits or ends, for requests of so many tokens at most; often none."""
    if draw.random() < 0.5:
        return {}
    every: dict[str, Any] = {
        "min_p": draw.choice((0.01, 0.1, 0.5)),
        "repetition_penalty": draw.choice((0.8, 1.1, 1.5)),
        "presence_penalty": draw.choice((-0.5, 0.5, 1.5)),
        "frequency_penalty": draw.choice((-0.2, 0.3, 1.0)),
        "logit_bias": tuple((token, draw.uniform(-5, 5)) for token in draw.sample(range(200), 30)),
        "allowed_token_ids": tuple(draw.sample(range(200), 120)),
        "bad_words": tuple(draw.choice("abcdefgh") + draw.choice(("", "e", "st")) for _ in range(6)),
        "stop_token_ids": tuple(draw.sample(range(200), draw.choice((1, 5)))),
        "ignore_eos": True,
        "min_tokens": draw.randint(0, most // 2),
        "include_stop": True,
        "logprobs": draw.choice((0, 3, 20)),
    }
    return {name: every[name] for name in draw.sample(CHANGES, draw.randint(1, 4))}


def drawn_arrivals(draw: Random, requests: Sequence[Request]) -> list[Arrival]:
    """Some come together, some steps later; some are cancelled, at once or later or when they have ended."""
    step, arrivals = 0, []
    for request in requests:
        step += draw.choice((0, 0, 1, 2, draw.randint(0, 20)))
        cancelled = draw.choice((0, 1, 2, draw.randint(0, 20), draw.randint(0, 60))) if draw.random() < 0.25 else None
        arrivals.append(Arrival(step, request, cancelled, cancelled is not None and draw.random() < 0.3))
    return arrivals


def with_stops(load: Load, request: Request, text: str) -> Request:
    """Perhaps with stop strings, of which most stand somewhere in the text, and some within or across each other."""
    draw = Random(f"{load.seed} {request.id}")
    if draw.random() < 0.7:
        return request
    stops = ["never"] if draw.random() < 0.3 else []
    readable = [i for i, character in enumerate(text) if character != "�"]
    for _ in range(draw.randint(1, 3)) if readable else ():
        begin = draw.choice(readable)
        stops.append(text[begin : begin + draw.randint(1, 6)].split("�")[0])
    return replace(request, sampling=replace(request.sampling, stop=tuple(stops)))
