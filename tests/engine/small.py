"""Small random models, a tokenizer of numbers, and mlx-lm's own greedy generation to compare with."""

from __future__ import annotations

import itertools
from hashlib import sha256
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import pytest
from mlx.utils import tree_flatten, tree_map
from mlx_lm.generate import generate_step
from mlx_lm.models import (
    gemma2,
    gemma3_text,
    gpt_oss,
    lfm2,
    lfm2_moe,
    llama,
    qwen2,
    qwen3,
    qwen3_5,
    qwen3_5_moe,
    qwen3_moe,
    qwen3_next,
    smollm3,
)
from mlx_lm.models.switch_layers import SwitchLinear

from draftmill.engine.drafting.kinds import Draft
from draftmill.engine.drafting.lookup import Lookup
from draftmill.engine.drafting.suffix import MOST
from draftmill.engine.engine import Engine
from draftmill.engine.models.targets import adapt
from draftmill.engine.models.targets.transformer import Transformer
from draftmill.engine.plain.engine import PlainEngine
from draftmill.engine.request import Completion, Request, Sampling
from draftmill.engine.schedule.scheduler import FORCED
from draftmill.engine.shares import LATE, PREFIXES
from draftmill.kernels.pages.sizes import pages_for
from draftmill.kernels.products.experts import laid_apart

VOCABULARY = 96

HOPPER = mx.cuda.is_available()
"""Whether there may be a Hopper GPU: no other NVIDIA GPU has been tried."""

NOT_ON_HOPPER = pytest.mark.skipif(
    HOPPER,
    reason="on a Hopper GPU MLX multiplies quantised weights no wider than a group wrongly: no model has any",
)

# Heads turn in 32 dimensions at least: with fewer, MLX's CUDA rope asks for thread blocks that no device has.


TEXT: dict[str, Any] = dict(
    hidden_size=64,
    num_hidden_layers=3,
    intermediate_size=96,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=32,
    rms_norm_eps=1e-5,
    vocab_size=VOCABULARY,
)
"""What nearly all families ask for."""


def small_model(module: Any, seed: int = 0, **args: Any) -> Any:
    """A model of one of mlx-lm's modules, which is called as its type is."""
    mx.random.seed(seed)
    args = {"model_type": module.__name__.rpartition(".")[2], **TEXT, **args}
    return spread(module.Model(module.ModelArgs.from_dict(args)))


def llama_model(seed: int = 0, **changes: Any) -> Any:
    return small_model(llama, seed, **{"tie_word_embeddings": False, **changes})


def qwen2_model(seed: int = 0, **changes: Any) -> Any:
    """Heads share out the hidden size."""
    return small_model(qwen2, seed, **{"hidden_size": 128, **changes})


def smollm3_model(seed: int = 0, **changes: Any) -> Any:
    """The second layer does not rotate."""
    return small_model(smollm3, seed, **{"no_rope_layers": [1, 0, 1], **changes})


def gemma2_model(seed: int = 0, **changes: Any) -> Any:
    """Caps so low that they are felt."""
    args = dict(attn_logit_softcapping=2.0, final_logit_softcapping=3.0, query_pre_attn_scalar=24)
    return small_model(gemma2, seed, **{**args, **changes})


def gemma3_model(seed: int = 0, **changes: Any) -> Any:
    """Every third layer sees everything. The root of the hidden size is no number of bfloat16."""
    args = dict(
        hidden_size=96,
        query_pre_attn_scalar=48,
        sliding_window=16,
        sliding_window_pattern=3,
        rope_scaling={"rope_type": "linear", "factor": 4.0},
    )
    model = small_model(gemma3_text, seed, **{**args, **changes})
    model.sanitize({})  # whose head is the embedding
    return model


def gpt_oss_model(seed: int = 0, **changes: Any) -> Any:
    args = dict(
        num_local_experts=6,
        num_experts_per_tok=2,
        layer_types=["sliding_attention", "full_attention", "sliding_attention"],
        sliding_window=16,
        rope_theta=1e4,
        rope_scaling={"rope_type": "yarn", "factor": 8.0, "original_max_position_embeddings": 64, "truncate": False},
    )
    model: Any = small_model(gpt_oss, seed, **{**args, **changes})
    for _, module in model.named_modules():
        if isinstance(module, SwitchLinear):
            module.__class__ = LaidApart
    return model


class LaidApart(SwitchLinear):
    """Takes rows as it should on CUDA, where MLX's product of sorted ones goes wrong after a bias was added (see
    `kernels.products.experts.laid_apart`), so that mlx-lm's own model is right there, too.
    """

    def __call__(self, x: mx.array, indices: mx.array, sorted_indices: bool = False) -> mx.array:
        return super().__call__(laid_apart(x), indices, sorted_indices)


def qwen3_model(seed: int = 0, **changes: Any) -> Any:
    args = dict(max_position_embeddings=512, rope_theta=1e4, tie_word_embeddings=True)
    return small_model(qwen3, seed, **{**args, **changes})


def qwen3_moe_model(seed: int = 0, **changes: Any) -> Any:
    """The second layer is dense."""
    args = dict(
        num_experts=6,
        num_experts_per_tok=2,
        moe_intermediate_size=64,
        decoder_sparse_step=1,
        mlp_only_layers=[1],
        norm_topk_prob=True,
        max_position_embeddings=512,
        rope_theta=1e4,
        tie_word_embeddings=False,
    )
    return small_model(qwen3_moe, seed, **{**args, **changes})


def qwen3_5_model(seed: int = 0, **changes: Any) -> Any:
    """A layer that attends between two recurrent ones; with `num_experts`, MoE."""
    mx.random.seed(seed)
    args = dict(
        model_type="qwen3_5_text",
        full_attention_interval=2,
        head_dim=64,
        max_position_embeddings=512,
        linear_num_value_heads=4,
        linear_num_key_heads=2,
        linear_key_head_dim=16,
        linear_value_head_dim=8,
        linear_conv_kernel_dim=4,
        tie_word_embeddings=True,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.5},
    )
    module: Any = qwen3_5_moe if changes.get("num_experts") else qwen3_5
    name = module.__name__.rsplit(".", 1)[-1]
    model = module.Model(module.ModelArgs(model_type=name, text_config={**TEXT, **args, **changes}))
    return spread(model)


def qwen3_5_moe_model(seed: int = 0, **changes: Any) -> Any:
    experts = dict(
        num_experts=6,
        num_experts_per_tok=2,
        moe_intermediate_size=64,
        shared_expert_intermediate_size=64,
        tie_word_embeddings=False,
    )
    return qwen3_5_model(seed, **{**experts, **changes})


def lfm2_model(seed: int = 0, **changes: Any) -> Any:
    """Heads share out the hidden size."""
    args = dict(
        hidden_size=128,
        num_hidden_layers=5,
        full_attn_idxs=[1, 3],
        max_position_embeddings=512,
        norm_eps=1e-5,
        conv_bias=True,
        conv_L_cache=3,
        block_dim=128,
        block_ff_dim=144,
        block_multiple_of=32,
        block_ffn_dim_multiplier=1.0,
        block_auto_adjust_ff_dim=True,
    )
    return small_model(lfm2, seed, **{**args, **changes})


def lfm2_moe_model(seed: int = 0, **changes: Any) -> Any:
    """Experts in all layers but the first."""
    args = dict(
        hidden_size=128,
        num_hidden_layers=4,
        layer_types=["conv", "conv", "full_attention", "conv"],
        max_position_embeddings=512,
        norm_eps=1e-5,
        conv_bias=False,
        conv_L_cache=3,
        num_experts=6,
        num_experts_per_tok=2,
        moe_intermediate_size=64,
        norm_topk_prob=True,
        use_expert_bias=True,
        num_dense_layers=1,
        routed_scaling_factor=1.5,
    )
    return small_model(lfm2_moe, seed, **{**args, **changes})


def qwen3_next_model(seed: int = 0, **changes: Any) -> Any:
    """As `qwen3_5_moe_model`, with a dense MLP in the second layer."""
    args = dict(
        full_attention_interval=2,
        head_dim=64,
        partial_rotary_factor=0.5,
        rope_theta=1e4,
        max_position_embeddings=512,
        linear_num_value_heads=4,
        linear_num_key_heads=2,
        linear_key_head_dim=16,
        linear_value_head_dim=8,
        linear_conv_kernel_dim=4,
        num_experts=6,
        num_experts_per_tok=2,
        decoder_sparse_step=1,
        mlp_only_layers=[1],
        moe_intermediate_size=64,
        shared_expert_intermediate_size=64,
    )
    return small_model(qwen3_next, seed, **{**args, **changes})


def quantised(model: Any, bits: int = 4, group_size: int = 32, **others: int) -> Any:
    """Quantised to so many bits, and layers with the names of `others` to theirs."""

    def settings(path: str, layer: nn.Module) -> bool | dict[str, int]:
        own = dict(group_size=group_size, bits=others.get(path.rpartition(".")[2], bits))
        return hasattr(layer, "to_quantized") and own

    nn.quantize(model, group_size=group_size, bits=bits, class_predicate=settings)
    mx.eval(model.parameters())
    return model


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

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        return [int(word) for word in text.split()]

    def decode(self, tokens: list[int], **_: Any) -> str:
        return "".join(f"{token} " for token in tokens)

    def convert_ids_to_tokens(self, token: int) -> str:
        return f"{token} "


def small_engine(
    model: Any, end: tuple[int, ...] = (), max_rows: int = 8, slots: int = 2048, context: int = 512
) -> Engine:
    target = adapt(model)
    return Engine(target, NumberTokenizer(end), context, max_rows, memory_for(target, None, slots, max_rows))


def memory_for(target: Transformer, draft: Draft | None, slots: int, max_rows: int, copying: bool = False) -> int:
    """Bytes for an engine whose pools should have so many slots."""
    block = max(draft.block if draft else 1 + FORCED, 1 + MOST if copying else 0)
    pages = target.bytes_per_page + (draft.bytes_per_page if draft else 0)
    pages += Lookup.bytes_per_page() if copying else 0
    memory = pages_for(slots) * pages + max_rows * target.bytes_per_row(block)
    parts = (1 / PREFIXES if target.bytes_per_row(0) else 0) + (1 / LATE if draft else 0)
    return int(memory / (1 - parts)) + 1


def requests(count: int, max_tokens: int = 24, longest: int = 40, **sampling: Any) -> list[Request]:
    """`count` requests with ragged random prompts."""
    mx.random.seed(1234)
    lengths: Any = mx.random.randint(1, longest, (count,)).tolist()
    prompts: list[Any] = [mx.random.randint(0, VOCABULARY, (length,)).tolist() for length in lengths]
    return [
        Request(f"r{i}", tuple(prompt), Sampling(max_tokens=max_tokens, seed=100 + i, **sampling))
        for i, prompt in enumerate(prompts)
    ]


def run(engine: Engine | PlainEngine, requests: list[Request], every: int = 0) -> dict[str, Completion]:
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


KNOWN: dict[tuple[str, tuple[int, ...]], list[int]] = {}
"""The longest greedy continuation so far by what the model is and by prompt."""


def reference(model: Any, request: Request) -> list[int]:
    """mlx-lm's own greedy continuation, computed once for all models that are the same, and a prompt."""
    key, count = (identity(model), request.tokens), request.sampling.max_tokens
    if key not in KNOWN or len(KNOWN[key]) < count:
        steps = generate_step(mx.array(request.tokens), model, max_tokens=count)
        KNOWN[key] = [int(token) for token, _ in steps]
    return KNOWN[key][:count]


IDENTITIES: dict[int, tuple[Any, str]] = {}
"""What models are, by id; holds the model, so that no other gets its id."""


def identity(model: Any) -> str:
    """Digest of all that a model's output depends on: its settings, its layers and their weights."""
    if id(model) not in IDENTITIES:
        settings = getattr(model, "args", None) or model.config
        digest = sha256(f"{settings} {model}".encode())
        weights: Any = tree_flatten(model.parameters())
        for name, weight in weights:
            content: Any = mx.contiguous(weight.flatten()).view(mx.uint8)
            digest.update(f"{name} {weight.dtype} {weight.shape}".encode())
            digest.update(memoryview(content))
        IDENTITIES[id(model)] = model, digest.hexdigest()
    return IDENTITIES[id(model)][1]
