"""Every number that a request may have is one that the engine can use, alone and beside others."""

from __future__ import annotations

import math
from functools import cache
from typing import Any

import mlx.core as mx
import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from draftmill.engine.engine import Engine
from draftmill.engine.models.targets import adapt
from draftmill.engine.request import Completion
from draftmill.producer.queue import wire
from draftmill.producer.queue.leases import Claimed
from draftmill.worker import jobs
from tests.engine.drafting.test_speculation import random_draft
from tests.engine.small import VOCABULARY, NumberTokenizer, llama_model, memory_for, run

NUMBERS = {
    "max_tokens": int,
    "temperature": float,
    "top_p": float,
    "top_k": int,
    "min_p": float,
    "repetition_penalty": float,
    "presence_penalty": float,
    "frequency_penalty": float,
    "min_tokens": int,
    "logprobs": int,
    "thinking_budget": int,
    "seed": int,
    "max_seconds": float,
}
BY_TOKEN = {"logit_bias", "allowed_token_ids", "stop_token_ids"}
PENALTIES = ("repetition_penalty", "presence_penalty", "frequency_penalty")
"""What changes greedy texts as well."""
TINY = (5e-324, 1e-310, 1e-46, 1e-45, 1.1754944e-38, 1e-37, 1e-7, wire.COLDEST, wire.LEAST_TOP_P)
TOKENS = 5
CONTEXT = 32


def bounds(name: str) -> tuple[Any, Any]:
    """The least and the largest value that the wire admits; the largest that JSON holds where it names none."""
    kind, least, most = NUMBERS[name], 0, 1.7976931348623157e308
    for constraint in _metadata(wire.Sampling.model_fields[name]):
        said: dict[str, Any] = {
            end: getattr(constraint, end) for end in ("ge", "gt", "le", "lt") if hasattr(constraint, end)
        }
        least = said.get("ge", beside(kind, said["gt"], 1) if "gt" in said else least)
        most = said.get("le", beside(kind, said["lt"], -1) if "lt" in said else most)
    return kind(least), kind(most)


def served(name: str) -> tuple[Any, Any]:
    """The least and the largest value that these requests may have: a minimum above a maximum is refused."""
    least, most = bounds(name)
    return least, TOKENS if name == "min_tokens" else most


def beside(kind: type, value: Any, direction: int) -> Any:
    """The next larger number for direction 1, the next smaller one for -1."""
    return math.nextafter(value, direction * math.inf) if kind is float else value + direction


def _metadata(field: Any) -> list[Any]:
    """What the annotation says of a field, also if it may be None."""
    nested = [part for option in getattr(field.annotation, "__args__", ()) for part in _constraints(option)]
    return [part for item in (*field.metadata, *nested) for part in (getattr(item, "metadata", None) or [item])]


def _constraints(option: Any) -> list[Any]:
    return list(getattr(option, "__metadata__", ()))


def edges(name: str) -> list[Any]:
    """Values at and beside the ends of what is served, and where 32 bits end."""
    least, most = served(name)
    if NUMBERS[name] is int:
        found = {
            least + 1, most - 1, *(2**n + d for n in (7, 8, 15, 16, 24, 31, 32, 53, 62, 63) for d in (-1, 0, 1)),
            VOCABULARY - 1, VOCABULARY, VOCABULARY + 1,
        }  # fmt: skip
    else:
        ends = {beside(float, least, 1), beside(float, most, -1), 1.0, beside(float, 1.0, -1)}
        found = ends | set(TINY) | {3.4028234663852886e38, 1e39}
    return sorted({least, most, *(value for value in found if least <= value <= most)})


def numbers(name: str) -> st.SearchStrategy[Any]:
    least, most = served(name)
    inside = st.integers(least, most) if NUMBERS[name] is int else st.floats(least, most)
    return st.sampled_from(edges(name)) | inside


ANY = st.fixed_dictionaries({}, optional={name: numbers(name) for name in NUMBERS if name != "max_tokens"})


@cache
def engine(drafts: bool) -> Engine:
    target = adapt(llama_model())
    draft = random_draft(num_target_layers=len(target.layers)) if drafts else None
    return Engine(target, NumberTokenizer(), CONTEXT, 8, memory_for(target, draft, 2048, 8), draft=draft)


def generate(drafts: bool, *asked: dict[str, Any]) -> list[Completion]:
    """What the requests with these numbers come to, in one company, on their way through JSON as in the queue."""
    requests = []
    for n, given_ in enumerate(asked):
        sampling = wire.Sampling.model_validate(orjson.loads(orjson.dumps({"max_tokens": TOKENS} | given_)))
        body = wire.JobBody(batch="b", custom_id=f"r-{n}", pair="p", prompts=("1 2 3",), sampling=sampling)
        body = wire.JobBody.model_validate(orjson.loads(orjson.dumps(body.model_dump())))
        requests += jobs.asked(Claimed(f"r-{n}", b"", "", "b", f"r-{n}", 0), body, engine(drafts).text).requests
    done = run(engine(drafts), requests)
    return [done[request.id] for request in requests]


def test_the_numbers_are_all_there_are() -> None:
    named = {name for name, field in wire.Sampling.model_fields.items() if "int" in str(field) or "float" in str(field)}
    assert named - BY_TOKEN == NUMBERS.keys()
    for name in NUMBERS:
        least, most = bounds(name)
        outside = [beside(NUMBERS[name], least, -1), beside(NUMBERS[name], most, 1)]
        for value in outside:
            with pytest.raises(ValidationError):
                wire.Sampling.model_validate({name: value})


@pytest.mark.parametrize("drafts", [False, True], ids=["plain", "drafts"])
@pytest.mark.parametrize("name", NUMBERS)
def test_extremes_are_served(name: str, drafts: bool) -> None:
    (greedy,) = generate(drafts, {})
    for value in edges(name):
        company = [{"temperature": 1.0} | {name: value}, {name: value}, {"temperature": 2.0, "seed": 1}]
        hot, cold, _ = generate(drafts, *company)
        for completion in (hot, cold):
            expected = min(value, CONTEXT - 3) if name == "max_tokens" else len(completion.tokens)
            assert len(completion.tokens) == expected >= 1, (name, value)
            assert completion.finish_reason == "length"
            assert all(0 <= token < VOCABULARY for token in completion.tokens)
            assert completion.text == "".join(f"{token} " for token in completion.tokens)
        if name not in (*PENALTIES, "temperature") or (name == "temperature" and value <= wire.COLDEST):
            assert cold.tokens[:TOKENS] == greedy.tokens[: len(cold.tokens)]
        if (name, value) in (("top_k", 1), ("temperature", 0)) or (name == "top_p" and value <= 1e-3):
            assert hot.tokens == greedy.tokens


@pytest.mark.parametrize("drafts", [False, True], ids=["plain", "drafts"])
@settings(max_examples=30, deadline=None)
@given(asked=st.lists(ANY, min_size=1, max_size=4))
def test_any_numbers_together_are_served(drafts: bool, asked: list[dict[str, Any]]) -> None:
    (alone,) = generate(drafts, asked[0])
    together = generate(drafts, *asked)
    for completion in together:
        assert (len(completion.tokens), completion.finish_reason) == (TOKENS, "length")
        assert all(0 <= token < VOCABULARY for token in completion.tokens)
    assert together[0].tokens == alone.tokens
    mx.clear_cache()
