"""Small random models, a tokenizer of numbers, and mlx-lm's own greedy generation to compare with."""

from __future__ import annotations

import itertools
from typing import Any

import mlx.core as mx
from mlx.utils import tree_map
from mlx_lm.generate import generate_step
from mlx_lm.models import llama, qwen3

from draftmill.engine.engine import Engine
from draftmill.engine.families import adapt
from draftmill.engine.request import Completion, Request, Sampling

VOCABULARY = 96


def llama_model(seed: int = 0, **changes: Any) -> Any:
    mx.random.seed(seed)
    args = dict(
        model_type="llama",
        hidden_size=64,
        num_hidden_layers=3,
        intermediate_size=96,
        num_attention_heads=4,
        num_key_value_heads=2,
        rms_norm_eps=1e-5,
        vocab_size=VOCABULARY,
        tie_word_embeddings=False,
    )
    return spread(llama.Model(llama.ModelArgs(**{**args, **changes})))


def qwen3_model(seed: int = 0, **changes: Any) -> Any:
    mx.random.seed(seed)
    args = dict(
        model_type="qwen3",
        hidden_size=64,
        num_hidden_layers=3,
        intermediate_size=96,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=24,
        rms_norm_eps=1e-5,
        vocab_size=VOCABULARY,
        max_position_embeddings=512,
        rope_theta=10000.0,
        tie_word_embeddings=True,
    )
    return spread(qwen3.Model(qwen3.ModelArgs(**{**args, **changes})))


def spread(model: Any) -> Any:
    """Larger weights, so that greedy continuations wander instead of repeating one token."""
    model.update(tree_map(lambda w: w * 2.5 if w.ndim > 1 else w, model.parameters()))
    mx.eval(model.parameters())
    return model


class NumberTokenizer:
    """Token 7 reads "7 ". Has no end token unless given one."""

    chat_template = None

    def __init__(self, end: tuple[int, ...] = ()):
        self.eos_token_ids = set(end)

    def encode(self, text: str) -> list[int]:
        return [int(word) for word in text.split()]

    def decode(self, tokens: list[int], skip_special_tokens: bool = True) -> str:
        return "".join(f"{token} " for token in tokens)


def small_engine(
    model: Any, end: tuple[int, ...] = (), max_rows: int = 8, slots: int = 2048, context: int = 512
) -> Engine:
    target = adapt(model)
    per_slot = 2 * target.kv_layers * target.kv_heads * target.head_dim * target.dtype.size
    return Engine(target, NumberTokenizer(end), context, max_rows, memory=slots * per_slot)


def requests(count: int, max_tokens: int = 24, longest: int = 40, **sampling: Any) -> list[Request]:
    """`count` requests with ragged random prompts."""
    mx.random.seed(1234)
    lengths = mx.random.randint(1, longest, (count,)).tolist()
    return [
        Request(
            f"r{i}",
            tuple(mx.random.randint(0, VOCABULARY, (length,)).tolist()),
            Sampling(max_tokens=max_tokens, seed=100 + i, **sampling),
        )
        for i, length in enumerate(lengths)
    ]


def run(engine: Engine, requests: list[Request], every: int = 0) -> dict[str, Completion]:
    """All completions by id; with `every`, one request more joins each so many rounds."""
    queue = list(requests)
    if not every:
        for request in queue:
            engine.add(request)
        queue = []
    done: dict[str, Completion] = {}
    for step in itertools.count():
        if queue and step % every == 0:
            engine.add(queue.pop(0))
        if not engine.busy and not queue:
            return done
        done.update({completion.id: completion for completion in engine.step()})
    raise AssertionError


def reference(model: Any, request: Request) -> list[int]:
    """mlx-lm's own greedy continuation."""
    steps = generate_step(mx.array(request.tokens), model, max_tokens=request.sampling.max_tokens)
    return [int(token) for token, _ in steps]
