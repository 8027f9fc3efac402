"""Targets and drafts with random weights in published shapes, whose continuation is known in advance.

The last token's embedding is what decides at the head: a model with a tied head repeats its last token for ever; an
untied head is the embedding rolled by one, which counts upwards and so sends a mixture of experts through different
ones. The layers add about as much to the hidden state as the embedding does, so keys, values and recurrent memory
depend on all that a row has attended to; but they add it at random, and in so many dimensions that hardly moves the
token. So tokens are known in advance, and `proof` finds out from the state whether the arithmetic was right.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten, tree_map_with_path
from mlx_lm.models import qwen3, qwen3_5, qwen3_5_moe

from ..drafting.dflash import DFlashDraft, DraftConfig, default_taps

LOUD = 1 / 12
"""Weights after attention, which averages over random values, are multiplied by so many times the root of the hidden
size: in more dimensions more can be added at random before it decides over tokens.
"""

MODULES: Any = {"qwen3": qwen3, "qwen3_5": qwen3_5, "qwen3_5_moe": qwen3_5_moe}


@dataclass(frozen=True)
class Shape:
    """A target's `config.json` and its draft's, as far as they set what things cost."""

    name: str
    model_type: str
    tied: bool
    config: dict[str, Any] = field(repr=False)
    draft: dict[str, Any] = field(repr=False)

    @property
    def vocabulary(self) -> int:
        return self.config["vocab_size"]

    @property
    def recurrent(self) -> bool:
        return self.model_type != "qwen3"

    @property
    def step(self) -> int:
        """How far a token is from the one before it."""
        return 0 if self.tied else 1

    def build(self, bits: int = 16, dtype: mx.Dtype = mx.bfloat16, seed: int = 0) -> Any:
        """The target, through mlx-lm's own classes, evaluated; below 16 bits quantised in groups of 64."""
        return evaluated(self.planned(bits, dtype, seed))

    def planned(self, bits: int = 16, dtype: mx.Dtype = mx.bfloat16, seed: int = 0) -> Any:
        """The target as `build` makes it, before any weight takes memory."""
        mx.random.seed(seed)
        module = MODULES[self.model_type]
        args = {**self.config, "tie_word_embeddings": self.tied}
        if self.model_type == "qwen3":
            model = module.Model(module.ModelArgs(model_type=self.model_type, **args))
            body, top = model.model, model
        else:
            model = module.Model(module.ModelArgs(model_type=self.model_type, text_config=args))
            body, top = model.language_model.model, model.language_model
        keep = getattr(model, "cast_predicate", lambda name: True)

        def prepare(name: str, weight: mx.array) -> mx.array:
            if name.split(".")[-2] == "o_proj":
                weight = weight * LOUD * weight.shape[0] ** 0.5
            return weight.astype(dtype) if keep(name) else weight

        body.embed_tokens.weight = mx.random.normal(body.embed_tokens.weight.shape)
        if not self.tied:
            top.lm_head.weight = mx.roll(body.embed_tokens.weight, 1, 0)
        model.update(tree_map_with_path(prepare, model.parameters()))
        if bits < 16:
            chosen = getattr(model, "quant_predicate", None) or (lambda path, layer: True)
            nn.quantize(model, 64, bits, class_predicate=lambda path, layer: quantisable(layer) and chosen(path, layer))
        return model

    def draft_config(self) -> dict[str, Any]:
        """The draft's `config.json`."""
        layers, target_layers = self.draft["num_hidden_layers"], self.config["num_hidden_layers"]
        shared = {name: self.config[name] for name in ("hidden_size", "vocab_size", "rms_norm_eps")}
        return {
            **shared,
            "num_target_layers": target_layers,
            "target_layer_ids": default_taps(layers, target_layers),
            "mask_token_id": self.vocabulary - 1,
            "rope_theta": 1e6,
            **self.draft,
        }

    def build_draft(self, dtype: mx.Dtype = mx.bfloat16, seed: int = 1) -> DFlashDraft:
        """The draft; what it says is noise, what it costs is what a trained one costs."""
        return evaluated(self.planned_draft(dtype, seed))

    def planned_draft(self, dtype: mx.Dtype = mx.bfloat16, seed: int = 1) -> DFlashDraft:
        """The draft as `build_draft` makes it, before any weight takes memory."""
        mx.random.seed(seed)
        draft = DFlashDraft(DraftConfig.from_dict(self.draft_config()))
        draft.set_dtype(dtype)
        return draft


def quantisable(layer: Any) -> bool:
    return hasattr(layer, "to_quantized") and layer.weight.shape[-1] % 64 == 0


def evaluated(model: Any) -> Any:
    evaluate(model)
    model.eval()
    return model


def evaluate(model: Any) -> None:
    """Evaluate weight by weight, so that no more than one of them is ever there in float32."""
    weights: Any = tree_flatten(model.parameters())
    for _, weight in weights:
        mx.eval(weight)


def _qwen3(**sizes: Any) -> dict[str, Any]:
    common = dict(rms_norm_eps=1e-6, max_position_embeddings=40960, rope_theta=1e6)
    return {**common, **sizes}


def _qwen3_5(**sizes: Any) -> dict[str, Any]:
    rope = {"rope_type": "default", "rope_theta": 1e7, "partial_rotary_factor": 0.25}
    common = dict(
        model_type="qwen3_5_text",
        rms_norm_eps=1e-6,
        max_position_embeddings=262144,
        full_attention_interval=4,
        linear_conv_kernel_dim=4,
        rope_parameters=rope,
    )
    return {**common, **sizes}


def _draft(layers: int, heads: int, kv_heads: int, head_dim: int, intermediate: int, block: int = 16) -> dict[str, Any]:
    return dict(
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        head_dim=head_dim,
        intermediate_size=intermediate,
        block_size=block,
    )


LINEAR = dict(linear_num_key_heads=16, linear_num_value_heads=32, linear_key_head_dim=128, linear_value_head_dim=128)
TINY = dict(hidden_size=64, num_attention_heads=4, num_key_value_heads=2, head_dim=32, vocab_size=512)
TINY_LINEAR = dict(
    full_attention_interval=2,
    rope_parameters={"rope_type": "default", "rope_theta": 1e7, "partial_rotary_factor": 1.0},
    linear_num_key_heads=2,
    linear_num_value_heads=4,
    linear_key_head_dim=32,
    linear_value_head_dim=32,
)
TINY_DRAFT = _draft(layers=2, heads=4, kv_heads=2, head_dim=32, intermediate=128, block=8)

SHAPES = {
    shape.name: shape
    for shape in (
        Shape(
            "qwen3-4b",
            "qwen3",
            tied=True,
            config=_qwen3(
                hidden_size=2560,
                num_hidden_layers=36,
                num_attention_heads=32,
                num_key_value_heads=8,
                head_dim=128,
                intermediate_size=9728,
                vocab_size=151936,
            ),
            draft=_draft(layers=5, heads=32, kv_heads=8, head_dim=128, intermediate=9728),
        ),
        Shape(
            "qwen3.5-4b",
            "qwen3_5",
            tied=True,
            config=_qwen3_5(
                hidden_size=2560,
                num_hidden_layers=32,
                num_attention_heads=16,
                num_key_value_heads=4,
                head_dim=256,
                intermediate_size=9216,
                vocab_size=248320,
                **LINEAR,
            ),
            draft=_draft(layers=5, heads=32, kv_heads=8, head_dim=128, intermediate=9728),
        ),
        Shape(
            "qwen3.5-35b-a3b",
            "qwen3_5_moe",
            tied=False,
            config=_qwen3_5(
                hidden_size=2048,
                num_hidden_layers=40,
                num_attention_heads=16,
                num_key_value_heads=2,
                head_dim=256,
                vocab_size=248320,
                num_experts=256,
                num_experts_per_tok=8,
                moe_intermediate_size=512,
                shared_expert_intermediate_size=512,
                **LINEAR,
            ),
            draft=_draft(layers=8, heads=32, kv_heads=8, head_dim=128, intermediate=6144),
        ),
        Shape(
            "tiny-qwen3",
            "qwen3",
            tied=True,
            config=_qwen3(**TINY, num_hidden_layers=4, intermediate_size=128),
            draft=TINY_DRAFT,
        ),
        Shape(
            "tiny-qwen3.5",
            "qwen3_5",
            tied=True,
            config=_qwen3_5(**TINY, num_hidden_layers=4, intermediate_size=128, **TINY_LINEAR),
            draft=TINY_DRAFT,
        ),
        Shape(
            "tiny-qwen3.5-moe",
            "qwen3_5_moe",
            tied=False,
            config=_qwen3_5(
                **TINY,
                num_hidden_layers=4,
                num_experts=8,
                num_experts_per_tok=2,
                moe_intermediate_size=64,
                shared_expert_intermediate_size=64,
                **TINY_LINEAR,
            ),
            draft=TINY_DRAFT,
        ),
    )
}
"""Shapes by name: of published models, and one of each family that a CPU runs in no time.

The drafts of the Qwen3.5 models are the bench's reading of what is published: layers, heads and block are theirs, the
width of their MLPs is a guess.
"""
