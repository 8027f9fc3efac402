"""Which keys of a model's config.json are honoured, family by family; others that would change its tokens are refused.

A forward that does not know a key runs all the same, and generates other tokens than the model's. The load check finds
that where its texts are long enough to show it, and only where mlx-lm itself honours the key. Where mlx-lm honours it,
the model needs no refusal: it runs plainly.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import MISSING, Field, fields
from importlib import import_module
from typing import Any

from .architecture import architecture, text_part
from .boxed import ModelError

EVERYWHERE = {
    "model_type",
    "hidden_size",
    "num_hidden_layers",
    "intermediate_size",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "rms_norm_eps",
    "vocab_size",
    "max_position_embeddings",
    "tie_word_embeddings",
    "rope_theta",
}
EXPERTS = {"num_experts", "num_experts_per_tok", "moe_intermediate_size", "norm_topk_prob"}
RECURRENT = {
    "linear_num_value_heads",
    "linear_num_key_heads",
    "linear_key_head_dim",
    "linear_value_head_dim",
    "linear_conv_kernel_dim",
    "full_attention_interval",
    "shared_expert_intermediate_size",
    "attention_bias",
    "partial_rotary_factor",
    "rope_scaling",
}

CONVOLUTIONS = {"conv_L_cache", "conv_bias", "full_attn_idxs", "layer_types", "norm_eps", "rope_parameters"}
GEMMA4 = {
    "attention_k_eq_v",
    "enable_moe_block",
    "final_logit_softcapping",
    "global_head_dim",
    "hidden_size_per_layer_input",
    "layer_types",
    "moe_intermediate_size",
    "num_experts",
    "num_global_key_value_heads",
    "num_kv_shared_layers",
    "pad_token_id",  # which nothing reads
    "rope_parameters",
    "rope_traditional",
    "sliding_window",
    "sliding_window_pattern",
    "top_k_experts",
    "use_double_wide_mlp",
    "vocab_size_per_layer_input",
}

HONOURED: dict[str, set[str]] = {
    "gemma2": EVERYWHERE
    | {"attn_logit_softcapping", "final_logit_softcapping", "query_pre_attn_scalar", "rope_traditional"},
    "gemma3_text": EVERYWHERE
    | {"query_pre_attn_scalar", "rope_local_base_freq", "rope_scaling", "sliding_window", "sliding_window_pattern"},
    "gemma4_text": EVERYWHERE | GEMMA4,
    "gpt_oss": EVERYWHERE
    | {"layer_types", "num_experts_per_tok", "num_local_experts", "rope_scaling", "sliding_window"},
    "lfm2": EVERYWHERE
    | CONVOLUTIONS
    | {"block_auto_adjust_ff_dim", "block_dim", "block_ff_dim", "block_ffn_dim_multiplier", "block_multiple_of"},
    "lfm2_moe": EVERYWHERE | CONVOLUTIONS | EXPERTS | {"num_dense_layers", "routed_scaling_factor", "use_expert_bias"},
    "llama": EVERYWHERE
    | {"attention_bias", "mlp_bias", "rope_traditional", "rope_scaling", "layer_types"}
    | {"sliding_window"},
    "qwen2": EVERYWHERE | {"rope_traditional", "rope_scaling"},
    "qwen3": EVERYWHERE | {"rope_scaling", "rope_parameters"},
    "qwen3_moe": EVERYWHERE | EXPERTS | {"decoder_sparse_step", "mlp_only_layers"},
    "qwen3_5": EVERYWHERE | EXPERTS | RECURRENT | {"rope_parameters"},
    "qwen3_next": EVERYWHERE | EXPERTS | RECURRENT | {"decoder_sparse_step", "mlp_only_layers"},
}
HONOURED["smollm3"] = HONOURED["llama"] | {"no_rope_layer_interval", "no_rope_layers"}
"""By module of mlx-lm's, the keys that it and the forward here both honour."""

IGNORED = {
    "gemma4_text": {"global_partial_rotary_factor", "partial_rotary_factor"},
    "qwen3_moe": {"rope_scaling"},
    "qwen3_5": {"decoder_sparse_step"},
}
"""By module, arguments that mlx-lm reads and does nothing with."""

CHANGING: dict[str, tuple[Any, ...]] = {
    "alibi": (False,),
    "attention_bias": (False,),
    "attention_multiplier": (),
    "attn_logit_softcapping": (0,),
    "attn_temperature_tuning": (False,),
    "clip_qkv": (),
    "decoder_sparse_step": (1,),
    "embedding_multiplier": (1,),
    "final_logit_softcapping": (0,),
    "global_partial_rotary_factor": (0.25,),
    "hidden_act": ("silu", "swish"),
    "hidden_activation": ("silu", "swish"),
    "logit_scale": (1,),
    "logits_scaling": (1,),
    "mlp_bias": (False,),
    "mlp_only_layers": ([],),
    "no_rope_layer_interval": (0,),
    "no_rope_layers": ([],),
    "output_multiplier": (1,),
    "partial_rotary_factor": (1,),
    "query_pre_attn_scalar": (),
    "residual_multiplier": (1,),
    "rope_interleave": (False,),
    "rope_traditional": (False,),
    "rotary_pct": (1,),
    "routed_scaling_factor": (1,),
    "scale_emb": (1,),
    "swiglu_limit": (),
    "use_alibi": (False,),
    "use_bidirectional_attention": (False,),
    "use_parallel_residual": (False,),
    "use_sliding_window": (False,),
}
"""Keys of configurations that change what a model computes, each with the values that do not; null never does."""

GELU = ("gelu_pytorch_tanh",)

FIXED: dict[str, dict[str, tuple[Any, ...]]] = {
    "gemma2": {"hidden_act": GELU, "hidden_activation": GELU},
    "gemma3_text": {"hidden_act": GELU, "hidden_activation": GELU},
    "gemma4_text": {
        "hidden_act": GELU,
        "hidden_activation": GELU,
        "use_bidirectional_attention": (False, "vision"),
    },
    "gpt_oss": {"attention_bias": (True,), "swiglu_limit": (7,)},
}
"""Of families for which other values of these keys change nothing, those values."""

THETA = {"gemma3_text": 1e6, "gpt_oss": 150000, "qwen2": 1e6}
"""mlx-lm's `rope_theta` where a configuration has none, unless that is 10000."""

LAYERS = {
    "gemma2": ("full_attention", "sliding_attention"),
    "gemma4_text": ("full_attention", "sliding_attention"),
    "gpt_oss": ("full_attention", "sliding_attention"),
    "lfm2": ("full_attention", "conv"),
    "lfm2_moe": ("full_attention", "conv"),
    "llama": ("full_attention", "sliding_attention"),
    "qwen2": ("full_attention",),
    "qwen3": ("full_attention",),
    "qwen3_moe": ("full_attention",),
    "smollm3": ("full_attention", "sliding_attention"),
}
"""The kinds of layers of families that have them in any order; in others, each so many layers one sees everything."""


def beyond(config: Mapping[str, Any]) -> str | None:
    """The first key of a config.json that this mlx-lm honours and the forward here does not; None if there is none.

    Its architecture must be known. Newer versions of mlx-lm may honour keys of which the forward here knows nothing.
    """
    family = architecture(config)
    try:
        args = _arguments(family).from_dict(text_part(config))
    except Exception:  # mlx-lm cannot read the configuration, and says why when the model is loaded
        return None
    return _beyond(family, args)


def refuse_unheeded(config: Mapping[str, Any], where: object) -> None:
    """Raise `ModelError` if the config.json `where` has a key that changes tokens, and not even mlx-lm honours it.

    Its architecture must be known.
    """
    if problem := _unheeded(architecture(config), text_part(config)):
        raise ModelError(f"{where} says {problem}: its tokens would be wrong, so this model is not supported")


def refuse_unknown(family: str, args: Any) -> None:
    """Raise `ModelError` if mlx-lm's arguments of a model (a data class) have one `beyond` what is honoured here."""
    if name := _beyond(family, args):
        raise ModelError(
            f"this mlx-lm honours {name} = {getattr(args, name)!r} in models of type {family}, the adapter for them "
            "does not: this model runs plainly only, by `draftmill run` and `draftmill worker`"
        )


def harmless(family: str, key: str) -> tuple[Any, ...]:
    """The values of a key that change nothing in models of a family."""
    return FIXED.get(family, {}).get(key, CHANGING.get(key, ()))


def _arguments(family: str) -> Any:
    """mlx-lm's arguments of a family's text model: a data class."""
    module = import_module(f"mlx_lm.models.{family}")
    return getattr(module, "TextModelArgs", module.ModelArgs)


def _heeded(family: str) -> set[str]:
    """The keys that mlx-lm honours."""
    names = {field.name for field in fields(_arguments(family))}
    return HONOURED[family] | (names - IGNORED.get(family, set()))


def _beyond(family: str, args: Any) -> str | None:
    """The first of mlx-lm's arguments that it honours, the forward here does not, and that changes something."""
    for field in fields(args):
        value = getattr(args, field.name)
        if field.name in HONOURED[family] | IGNORED.get(family, set()) or value is None:
            continue
        if value != _default(field) and value not in harmless(family, field.name):
            return field.name
    return None


def _default(field: Field[Any]) -> Any:
    return field.default if field.default_factory is MISSING else field.default_factory()


def _unheeded(family: str, given: Mapping[str, Any]) -> str | None:
    """The first key that is not honoured, and why."""
    heeded = _heeded(family)
    for key in CHANGING:
        value = given.get(key)
        if key not in heeded and value is not None and value not in harmless(family, key):
            return f"{key} = {value!r}, which is not honoured in models of type {family}"
    return _layers(family, given) or _rope(family, given)


def _layers(family: str, given: Mapping[str, Any]) -> str | None:
    """What is wrong with the kinds of layers."""
    kinds: Sequence[str] = given.get("layer_types") or []
    if known := LAYERS.get(family):
        unknown = [kind for kind in kinds if kind not in known]
        return f"layer_types with {unknown[0]!r}, which models of type {family} do not have here" if unknown else None
    gemma = family == "gemma3_text"
    every = given.get("sliding_window_pattern" if gemma else "full_attention_interval") or (6 if gemma else 4)
    if any((kind == "full_attention") != ((place + 1) % every == 0) for place, kind in enumerate(kinds)):
        return f"layer_types in which not just every layer {every} attends, which is not honoured"
    return None


def _rope(family: str, given: Mapping[str, Any]) -> str | None:
    """What is wrong with the rotation."""
    scaling, parameters = (given.get(key) or {} for key in ("rope_scaling", "rope_parameters"))
    own = [parameters.get(kind) or {} for kind in LAYERS[family]] if family == "gemma4_text" else []
    if kind := next((kind for kind in map(_kind, (scaling, parameters, *own)) if kind == "dynamic"), None):
        return f"rope type {kind!r}, of which a token's rotation depends on how long its text will be"
    if part := next((part for part in map(_ignored_part, own) if part), None):
        return f"partial_rotary_factor = {part} for a rope that is not 'proportional', which mlx-lm does not read there"
    scales = "rope_scaling" in _heeded(family)
    if not scales and _kind(scaling) != "default":
        return f"rope_scaling of type {_kind(scaling)!r}, which is not honoured in models of type {family}"
    if "rope_parameters" in _heeded(family):
        return None if scales else _unread({"rope_type": _kind(parameters)}, 0, {})
    theta = given.get("rope_theta", THETA.get(family, 10000))
    if family != "gemma3_text":
        return _unread(parameters, theta, scaling)
    local = given.get("rope_local_base_freq", 10000)
    full, sliding = (parameters.get(kind) or {} for kind in ("full_attention", "sliding_attention"))
    return _unread(full, theta, scaling) or _unread(sliding, local, {})


def _unread(parameters: Mapping[str, Any], theta: float, scaling: Mapping[str, Any]) -> str | None:
    """What only `rope_parameters` say, beside the theta and the scaling that mlx-lm reads."""
    own = parameters.get("rope_theta")
    if own is not None and own != theta:
        return f"rope_theta = {own} only in rope_parameters, which mlx-lm does not read there"
    if _kind(parameters) not in ("default", _kind(scaling)):
        return f"rope type {_kind(parameters)!r} only in rope_parameters, which mlx-lm does not read there"
    return None


def _ignored_part(parameters: Mapping[str, Any]) -> float | None:
    """The part of a head that is to turn, where a rope turns all of it."""
    part = parameters.get("partial_rotary_factor")
    return None if part in (None, 1) or _kind(parameters) == "proportional" else part


def _kind(scaling: Mapping[str, Any]) -> str:
    return scaling.get("type") or scaling.get("rope_type") or "default"
