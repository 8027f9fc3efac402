"""The three layouts of DSpark configurations, in DFlash's words: nothing else needs to know which one a file has.

DeepSpec's are flat, copies of the target's configuration: what does not describe the draft is left unread. Liquid AI's
and SpecForge's have a `dflash_config`. Those of vLLM's speculators have the backbone in `transformer_layer_config`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from ..models.config_keys import CHANGING
from ..models.folder import ModelError

ALGORITHM = "dspark"

SIZES = (
    "model_type",
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "intermediate_size",
    "vocab_size",
    "rms_norm_eps",
    "max_position_embeddings",
    "hidden_act",
    "attention_bias",
    "final_logit_softcapping",
    "rope_is_neox_style",
)
"""What describes the backbone also where a configuration is a copy of the target's."""

HEADS = (
    "block_size",
    "mask_token_id",
    "target_layer_ids",
    "num_target_layers",
    "draft_vocab_size",
    "markov_rank",
    "markov_head_type",
)
"""What describes the rest of a draft, in all layouts alike."""

SLOTS = ("sample_from_anchor", "dspark_bonus_anchor", "is_causal", "causal", "dflash_query_causal")
"""Which slots draft, and what they see."""

SPECULATORS = {
    *HEADS,
    "aux_hidden_state_layer_ids",
    "final_logit_softcapping",
    "is_causal",
    "quantization",
    "sample_from_anchor",
    "sliding_window_non_causal",
    "speculators_config",
    "speculators_model_type",
    "target_hidden_size",
    "transformer_layer_config",
}
"""Keys that are read at the top of a configuration of speculators."""

ELSEWHERE = {
    "_name_or_path",
    "architectures",
    "auto_map",
    "bos_token_id",
    "dtype",
    "eos_token_id",
    "has_no_defaults_at_init",
    "model_type",
    "pad_token_id",
    "speculators_version",
    "tie_word_embeddings",
    "torch_dtype",
    "transformers_version",
    "use_aux_hidden_state",
    "use_cache",
}
"""Keys of configurations of speculators that do not say what the draft computes."""

UNREAD = {
    "attention_mode",
    "block_size_policy",
    "ce_loss_alpha",
    "confidence_head_alpha",
    "confidence_head_bias",
    "confidence_head_with_markov",
    "confidence_temperatures",
    "dflash_initial_block_size",
    "enable_confidence_head",
    "l1_loss_alpha",
    "loss_decay_gamma",
    "max_anchors",
    "num_anchors",
    "prefer_requested_block_size",
    "projector_type",
    "runtime_block_size",
    "use_confidence_head",
}
"""Keys of training, of other engines' depths, and of the confidence head, which is not used."""

REFUSED: dict[str, tuple[Any, ...]] = {
    "attention_sink_bias": (False,),
    "dspark_backbone_conv_enabled": (False,),
    "enable_correction_head": (False,),
    "enable_qwen35_gated_q_proj": (False,),
    "input_embedding_scale": (1,),
    "log_snr_conditioning": (False,),
    "output_multiplier": (1,),
    "selector_vocab_size": (),
    "topk_context": (0,),
    "use_swa": (False,),
}
"""Keys that mean another draft in any layout, each with the values that do not."""

ROPES = ("default", "linear", "llama3", "yarn")


def is_dspark(config: Mapping[str, Any]) -> bool:
    """Whether a draft's configuration is a DSpark draft's, whatever it calls itself."""
    nested: Mapping[str, Any] = config.get("dflash_config") or {}
    if algorithm := _algorithm(config):
        return algorithm == ALGORITHM
    named = nested.get("projector_type") == ALGORITHM or any("DSpark" in a for a in config.get("architectures") or [])
    return named or bool({**config, **nested}.get("markov_rank"))


def translated(config: Mapping[str, Any]) -> dict[str, Any]:
    """A DSpark configuration as `DSparkConfig` has its fields, on one level, with `is_causal` as DFlash means it.

    Raises:
        ModelError: something that changes what the draft computes and is not known here, or something missing.
    """
    return _speculators(config) if _algorithm(config) else _nested(config)


def _algorithm(config: Mapping[str, Any]) -> str | None:
    """What kind of draft a configuration of speculators is for; None if it is none."""
    inner: Mapping[str, Any] = config.get("speculators_config") or {}
    return config.get("speculators_model_type") or inner.get("algorithm")


def _nested(config: Mapping[str, Any]) -> dict[str, Any]:
    """A flat configuration, or one with a `dflash_config`."""
    nested: Mapping[str, Any] = config.get("dflash_config") or {}
    merged = {**config, **nested}
    _refuse(name for name in nested if name not in {*HEADS, *SLOTS, *SIZES, *UNREAD, *REFUSED})
    _refuse_other_drafts(merged)
    if nested.get("projector_type") not in (None, ALGORITHM):
        raise ModelError(f"draft config.json has projector_type {nested['projector_type']!r}, which is no DSpark draft")
    # Only copies of the target's have these at the top; then its rope, its windows and its experts are in there, too.
    copied = "target_layer_ids" in config and nested.get("projector_type") is None
    if copied:
        rope = {"rope_theta": config.get("rope_theta") or (config.get("rope_parameters") or {}).get("rope_theta")}
        backbone = {**{name: merged.get(name) for name in SIZES}, **rope}
    else:
        backbone = {name: value for name, value in merged.items() if name != "dflash_config"}
    _check_backbone(backbone)
    causal = next((merged[name] for name in SLOTS[2:] if merged.get(name) is not None), False)
    return {
        **backbone,
        **{name: merged.get(name) for name in HEADS},
        "first_slot": _first_slot(merged, 0),
        "is_causal": bool(causal),
    }


def _speculators(config: Mapping[str, Any]) -> dict[str, Any]:
    """A configuration of vLLM's speculators."""
    known = SPECULATORS | ELSEWHERE | UNREAD | REFUSED.keys()
    _refuse(name for name, value in config.items() if name not in known and value not in (None, False))
    backbone: dict[str, Any] = dict(config.get("transformer_layer_config") or {})
    _refuse_other_drafts({**backbone, **config})
    taps = config.get("aux_hidden_state_layer_ids")
    if not backbone or not taps:
        missing = "aux_hidden_state_layer_ids" if backbone else "transformer_layer_config"
        raise ModelError(f"draft config.json lacks a field: {missing!r}")
    if config.get("target_hidden_size") not in (None, backbone.get("hidden_size")):
        raise ModelError(
            f"draft config.json has target_hidden_size {config['target_hidden_size']}, which is not its hidden_size: "
            "not supported"
        )
    _check_backbone(backbone)
    block: int = config.get("block_size") or 0
    methods = (config.get("speculators_config") or {}).get("proposal_methods") or [{}]
    without = block - (methods[0].get("speculative_tokens") or 0)
    causal = config.get("is_causal")
    if causal is None and config.get("sliding_window_non_causal"):
        causal = False
    return {
        **backbone,
        **{name: config.get(name) for name in HEADS},
        "final_logit_softcapping": config.get("final_logit_softcapping"),
        # These ids count hidden states, of which the first is the embedding.
        "target_layer_ids": [tap - 1 for tap in taps],
        "first_slot": _first_slot(config, without if 0 <= without < block else 1),
        "is_causal": causal,
    }


def _first_slot(config: Mapping[str, Any], otherwise: int) -> int:
    """The slot of the first draft: 0 if the anchor's own slot gives it."""
    anchor, bonus = config.get("sample_from_anchor"), config.get("dspark_bonus_anchor")
    slot = otherwise if anchor is None else 1 - bool(anchor)
    if bonus is not None and bool(bonus) != bool(slot):
        raise ModelError("draft config.json: sample_from_anchor and dspark_bonus_anchor contradict each other")
    if slot > 1:
        raise ModelError(
            f"draft config.json lacks sample_from_anchor, and {slot} of its block_size are no speculative_tokens: "
            "which slot drafts first is not known"
        )
    return slot


def _check_backbone(backbone: Mapping[str, Any]) -> None:
    """Raise ModelError for what would change a Qwen3-like backbone and is not honoured here."""
    kind = backbone.get("model_type") or "qwen3"
    # Those called exactly so have gated queries and other norms; copies of their targets' say "qwen3_5_text".
    if not kind.startswith("qwen3") or kind == "qwen3_5":
        raise ModelError(f"draft config.json: a DSpark draft of type {kind} is not supported, only those like Qwen3's")
    # Which layers have a window is what `layer_types` says.
    honoured = {"use_sliding_window", "final_logit_softcapping"}
    _refuse(
        name
        for name, harmless in CHANGING.items()
        if name not in honoured and backbone.get(name) is not None and backbone[name] not in harmless
    )
    windows, kinds = backbone.get("use_sliding_window"), backbone.get("layer_types")
    if (windows and not kinds) or (windows is False and "sliding_attention" in (kinds or ())):
        raise ModelError("draft config.json has use_sliding_window and layer_types that contradict each other")
    for name in ("rope_parameters", "rope_scaling"):
        rope: Mapping[str, Any] = backbone.get(name) or {}
        if rope.get("partial_rotary_factor") not in (None, 1):
            raise ModelError(f"draft config.json has partial_rotary_factor in {name}: not supported")
        if (kind := rope.get("rope_type", rope.get("type", "default"))) not in ROPES:
            raise ModelError(f"draft config.json has rope type {kind!r}: not supported")


def _refuse_other_drafts(config: Mapping[str, Any]) -> None:
    _refuse(name for name, same in REFUSED.items() if config.get(name) is not None and config[name] not in same)


def _refuse(names: Iterable[str]) -> None:
    """Raise ModelError if there is any of these."""
    if unknown := sorted(names):
        raise ModelError(f"draft config.json has {unknown[0]}: not supported, and drafts may be wrong without it")
