"""Tiny models of mlx-lm's architectures, with random weights: the table of those that the plain engine is tried on."""

from __future__ import annotations

from copy import deepcopy
from importlib import import_module
from typing import Any

import mlx.core as mx

from draftmill.engine.plain.engine import PlainEngine
from tests.engine.small import VOCABULARY, NumberTokenizer, spread

COMMON: dict[str, Any] = dict(
    hidden_size=128,
    num_hidden_layers=2,
    intermediate_size=64,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=32,
    rms_norm_eps=1e-5,
    layer_norm_eps=1e-5,
    layer_norm_epsilon=1e-5,
    norm_eps=1e-5,
    vocab_size=VOCABULARY,
    max_position_embeddings=512,
    rope_theta=10000.0,
    tie_word_embeddings=False,
    attention_bias=False,
    mlp_bias=False,
    num_experts=4,
    num_experts_per_tok=2,
    moe_intermediate_size=32,
    norm_topk_prob=True,
)
"""What most configurations have in common; mlx-lm leaves out of it what an architecture does not know."""

LATENT = dict(kv_lora_rank=16, q_lora_rank=16, qk_rope_head_dim=32, qk_nope_head_dim=16, v_head_dim=16)
MAMBA = dict(conv_kernel=4, use_bias=False, use_conv_bias=True, state_size=8, time_step_rank=8)
EXPERTS = dict(n_routed_experts=4, n_shared_experts=1, n_group=1, topk_group=1, routed_scaling_factor=1.0)
GRANITE = dict(logits_scaling=1.0, attention_multiplier=0.2, embedding_multiplier=2.0, residual_multiplier=0.5)
GPT = dict(n_ctx=512, n_embd=128, n_head=4, n_layer=2, n_positions=512, n_inner=64)

ARCHITECTURES: dict[str, dict[str, Any]] = {
    "apertus": dict(post_norm=False, qk_norm=True),
    "baichuan_m1": dict(sliding_window=16, sliding_window_layers=[0], conv_window=2),
    "cohere": {},
    "cohere2": dict(sliding_window=16, sliding_window_pattern=2),
    "dbrx": dict(
        d_model=128,
        n_heads=4,
        n_layers=2,
        ffn_config=dict(ffn_hidden_size=64, moe_num_experts=4, moe_top_k=2),
        attn_config=dict(kv_n_heads=2, clip_qkv=8, rope_theta=10000.0),
    ),
    "deepseek_v2": dict(
        rope_scaling=dict(type="yarn", factor=1.0), **LATENT, **EXPERTS, topk_method="greedy", first_k_dense_replace=1
    ),
    "deepseek_v3": dict(**LATENT, **EXPERTS, first_k_dense_replace=1),
    "dots1": dict(**EXPERTS, first_k_dense_replace=1),
    "ernie4_5_moe": dict(use_bias=False, moe_num_experts=4, moe_k=2),
    "exaone4": dict(
        rope_scaling=None,
        sliding_window=16,
        sliding_window_pattern="LG",
        layer_types=["sliding_attention", "full_attention"],
    ),
    "falcon_h1": dict(
        mamba_d_conv=4, mamba_d_head=16, mamba_d_ssm=64, mamba_d_state=8, mamba_n_heads=4, mamba_chunk_size=16
    ),
    "gemma2": {},
    "gemma3_text": dict(sliding_window=16, sliding_window_pattern=2, query_pre_attn_scalar=32),
    "glm4": dict(partial_rotary_factor=0.5),
    "gpt2": GPT,
    "gpt_bigcode": GPT,
    "gpt_neox": dict(rotary_emb_base=10000, rotary_pct=1.0),
    "gpt_oss": dict(num_local_experts=4, sliding_window=16, layer_types=["sliding_attention", "full_attention"]),
    "granite": GRANITE,
    "granitemoehybrid": dict(
        **GRANITE,
        layer_types=["mamba", "attention"],
        mamba_n_heads=4,
        mamba_d_head=64,
        mamba_proj_bias=False,
        mamba_d_state=8,
        mamba_d_conv=4,
        mamba_n_groups=1,
        mamba_conv_bias=True,
        shared_intermediate_size=32,
        num_local_experts=4,
    ),
    "internlm2": {},
    "jamba": dict(
        attn_layer_offset=1,
        attn_layer_period=2,
        expert_layer_offset=1,
        expert_layer_period=2,
        mamba_d_conv=4,
        mamba_d_state=8,
        mamba_expand=2,
    ),
    "lfm2": dict(
        conv_bias=False,
        conv_L_cache=3,
        block_dim=128,
        block_multiple_of=32,
        block_ffn_dim_multiplier=1.0,
        block_auto_adjust_ff_dim=False,
        block_ff_dim=64,
        full_attn_idxs=[1],
    ),
    "llama4": dict(
        text_config=dict(
            COMMON,
            num_hidden_layers=4,
            attention_chunk_size=16,
            interleave_moe_layer_step=1,
            intermediate_size_mlp=64,
            no_rope_layers=[1, 0, 1, 1],
            use_qk_norm=True,
            num_local_experts=4,
            num_experts_per_tok=1,
            rope_scaling=None,
            model_type="llama4_text",
        )
    ),
    "mamba": MAMBA,
    "mamba2": dict(**MAMBA, expand=1, num_heads=8, head_dim=16, n_groups=1, time_step_limit=(0.0, 100.0)),
    "minicpm3": dict(
        rope_scaling=dict(
            type="longrope", original_max_position_embeddings=512, short_factor=[1.0] * 16, long_factor=[1.0] * 16
        ),
        **LATENT,
        dim_model_base=32,
        scale_depth=1.4,
        scale_emb=2,
    ),
    "mixtral": dict(num_local_experts=4),
    "nemotron": dict(hidden_act="relu2"),
    "nemotron_h": dict(
        hybrid_override_pattern=["M", "*", "-"],
        num_hidden_layers=3,
        mamba_num_heads=4,
        mamba_head_dim=16,
        mamba_proj_bias=False,
        ssm_state_size=8,
        conv_kernel=4,
        n_groups=1,
        use_bias=False,
        use_conv_bias=True,
    ),
    "olmo2": {},
    "olmo3": dict(layer_types=["sliding_attention", "full_attention"], sliding_window=16),
    "openelm": dict(
        num_transformer_layers=2,
        model_dim=128,
        ffn_dim_divisor=16,
        num_query_heads=[4, 4],
        num_kv_heads=[2, 2],
        ffn_multipliers=[1.0, 1.0],
    ),
    "phi": dict(partial_rotary_factor=0.5, num_key_value_heads=4),
    "phi3": {},
    "phimoe": dict(
        num_local_experts=4,
        rope_scaling=dict(
            type="longrope", short_factor=[1.0] * 16, long_factor=[1.0] * 16, short_mscale=1.0, long_mscale=1.0
        ),
    ),
    "phixtral": dict(num_vocab=96, model_dim=128, num_heads=4, num_layers=2, rotary_dim=16),
    "plamo2": dict(hidden_size_per_head=16, mamba_d_state=8, mamba_num_heads=4, mamba_step=2, full_attention_idx=[]),
    "qwen2": {},
    "qwen2_moe": dict(shared_expert_intermediate_size=32),
    "qwen3_next": dict(
        linear_num_value_heads=4,
        linear_num_key_heads=2,
        linear_key_head_dim=16,
        linear_value_head_dim=8,
        linear_conv_kernel_dim=4,
        decoder_sparse_step=1,
        shared_expert_intermediate_size=32,
        mlp_only_layers=[],
        partial_rotary_factor=0.5,
        full_attention_interval=2,
    ),
    "recurrent_gemma": dict(
        conv1d_width=4, logits_soft_cap=30.0, attention_window_size=16, block_types=["recurrent", "attention"]
    ),
    "smollm3": dict(no_rope_layer_interval=2),
    "stablelm": dict(use_qkv_bias=True, partial_rotary_factor=0.5),
    "starcoder2": {},
}
"""Architectures by name, each with what it has beside the common arguments."""


def configuration(architecture: str, context: int = 512) -> dict[str, Any]:
    """The configuration of an architecture of the table, for texts of so many tokens."""
    config = deepcopy({**COMMON, **ARCHITECTURES[architecture], "model_type": architecture})
    parts = [config, *([config["text_config"]] if "text_config" in config else [])]
    longest = ("max_position_embeddings", "n_ctx", "n_positions")
    for part in parts:
        part.update({key: context for key in longest if key in part})
    return config


def tiny(architecture: str, seed: int = 0, context: int = 512) -> Any:
    """A model of an architecture of the table."""
    mx.random.seed(seed)
    module: Any = import_module(f"mlx_lm.models.{architecture}")
    model = module.Model(module.ModelArgs.from_dict(configuration(architecture, context)))
    model.set_dtype(mx.float32)
    return spread(model)


def plain_engine(
    model: Any, tokenizer: Any = None, max_rows: int = 8, memory: int = 1 << 30, context: int = 1024
) -> PlainEngine:
    """A plain engine over any model; by default its tokens read as numbers."""
    return PlainEngine(model, tokenizer or NumberTokenizer(), context, max_rows, memory)
