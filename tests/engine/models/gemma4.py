"""Small random Gemma 4 models: one with shared keys and inputs of each layer's own, a large one's shape, experts."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
from mlx.utils import tree_map_with_path
from mlx_lm.models import gemma4_text

from tests.engine.small import VOCABULARY, small_model


def gemma4_model(seed: int = 0, **changes: Any) -> Any:
    """The last two layers, with wider MLPs, take keys and values of others; every layer has an input of its own."""
    args = dict(
        num_hidden_layers=6,
        layer_types=["sliding_attention", "full_attention"] * 3,
        num_kv_shared_layers=2,
        global_head_dim=64,
        sliding_window=16,
        final_logit_softcapping=3.0,
        hidden_size_per_layer_input=32,
        vocab_size_per_layer_input=VOCABULARY,
    )
    model = small_model(gemma4_text, seed, **{**args, **changes})

    def felt(path: str, weight: mx.array) -> mx.array:
        """What layers add outweighs the embedding, and leaving out any norm or scalar changes tokens."""
        if weight.ndim == 1:
            return weight * mx.random.uniform(0.6, 1.4, weight.shape) * (4 if "post_" in path else 1)
        return weight * 0.4 if path.endswith("embed_tokens.weight") else weight

    model.update(tree_map_with_path(felt, model.parameters()))
    mx.eval(model.parameters())
    return model


def gemma4_large_model(seed: int = 0, **changes: Any) -> Any:
    """Keys are values, too, in the layer that sees everything; no layer shares them."""
    args = dict(
        num_hidden_layers=3,
        layer_types=["sliding_attention", "sliding_attention", "full_attention"],
        num_kv_shared_layers=0,
        hidden_size_per_layer_input=0,
        attention_k_eq_v=True,
        num_global_key_value_heads=1,
    )
    return gemma4_model(seed, **{**args, **changes})


def gemma4_moe_model(seed: int = 0, **changes: Any) -> Any:
    experts = dict(enable_moe_block=True, num_experts=6, top_k_experts=2, moe_intermediate_size=64)
    return gemma4_large_model(seed, **{**experts, **changes})
