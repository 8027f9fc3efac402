"""DSpark by its definition, in NumPy: one block of one row, slot by slot; and random checkpoints in three layouts."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np

from draftmill.engine.drafting.checkpoint import load_draft
from draftmill.engine.drafting.dspark import DSparkDraft
from tests.engine.small import VOCABULARY

from . import dflash2
from .dflash2 import Array

RANK, BLOCK, HIDDEN, FEWER = 16, 6, 64, 40

BACKBONE: dict[str, Any] = dict(
    model_type="qwen3",
    hidden_size=HIDDEN,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=32,
    intermediate_size=128,
    vocab_size=VOCABULARY,
    rms_norm_eps=1e-6,
    max_position_embeddings=512,
)

SPARK: dict[str, Any] = dict(
    markov_rank=RANK, markov_head_type="vanilla", enable_confidence_head=True, confidence_head_with_markov=True
)

FLAT: dict[str, Any] = dict(
    **BACKBONE,
    **SPARK,
    architectures=["Qwen3DSparkModel"],
    block_size=BLOCK,
    mask_token_id=5,
    target_layer_ids=[0, 2],
    num_target_layers=3,
    draft_vocab_size=VOCABULARY,
    num_anchors=64,
    rope_theta=10000.0,
)
"""DeepSpec's layout."""

NESTED: dict[str, Any] = dict(
    **BACKBONE,
    architectures=["DSparkDraftModel"],
    block_size=BLOCK,
    rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
    layer_types=["full_attention"] * 2,
    use_sliding_window=False,
    sliding_window=None,
    dflash_config=dict(**SPARK, projector_type="dspark", mask_token_id=5, target_layer_ids=[0, 2], num_target_layers=3),
)
"""SpecForge's layout."""

SPECULATORS: dict[str, Any] = dict(
    **SPARK,
    architectures=["DSparkSpeculator"],
    speculators_model_type="dspark",
    speculators_version="0.6.0",
    speculators_config={
        "algorithm": "dspark",
        "proposal_methods": [{"proposal_type": "greedy", "speculative_tokens": BLOCK}],
        "verifier": {"name_or_path": None, "architectures": []},
    },
    block_size=BLOCK,
    mask_token_id=5,
    aux_hidden_state_layer_ids=[1, 3],
    draft_vocab_size=FEWER,
    sample_from_anchor=True,
    sliding_window_non_causal=False,
    target_hidden_size=None,
    transformer_layer_config=dict(
        **BACKBONE,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
        layer_types=["sliding_attention"] * 2,
        sliding_window=9,
        use_sliding_window=True,
    ),
)
"""vLLM's speculators' layout."""

PLAIN: dict[str, Any] = dict(**BACKBONE, rope_parameters={"rope_theta": 10000.0}, is_causal=False, block_size=BLOCK)
"""What all three come to, as `Definition` reads it."""


def tokens_of_fewer() -> Array:
    """Which tokens a draft of fewer knows, in no order of use."""
    return np.sort(np.random.default_rng(3).choice(VOCABULARY, FEWER, replace=False))


def random_weights(
    kind: str = "vanilla", own: str = "", outputs: int = VOCABULARY, hidden: int = HIDDEN
) -> dict[str, mx.array]:
    """A checkpoint's weights by their names, all of them felt; `own` names "embedding", "head" or both."""
    q, kv, mlp = 128, 64, 128
    shapes: dict[str, tuple[int, ...]] = {
        "fc.weight": (hidden, 2 * hidden),
        "hidden_norm.weight": (hidden,),
        "norm.weight": (hidden,),
        "markov_head.markov_w1.weight": (VOCABULARY, RANK),
        "markov_head.markov_w2.weight": (outputs, RANK),
        "confidence_head.proj.weight": (1, hidden + RANK),
        "confidence_head.proj.bias": (1,),
    }
    for i in range(2):
        shapes |= {
            f"layers.{i}.self_attn.q_proj.weight": (q, hidden),
            f"layers.{i}.self_attn.k_proj.weight": (kv, hidden),
            f"layers.{i}.self_attn.v_proj.weight": (kv, hidden),
            f"layers.{i}.self_attn.o_proj.weight": (hidden, q),
            f"layers.{i}.self_attn.q_norm.weight": (32,),
            f"layers.{i}.self_attn.k_norm.weight": (32,),
            f"layers.{i}.mlp.gate_proj.weight": (mlp, hidden),
            f"layers.{i}.mlp.up_proj.weight": (mlp, hidden),
            f"layers.{i}.mlp.down_proj.weight": (hidden, mlp),
            f"layers.{i}.input_layernorm.weight": (hidden,),
            f"layers.{i}.post_attention_layernorm.weight": (hidden,),
        }
    if kind == "gated":
        shapes |= {"markov_head.gate_proj.weight": (RANK, hidden + RANK), "markov_head.gate_proj.bias": (RANK,)}
    if kind == "rnn":
        shapes |= {
            "markov_head.joint_proj.weight": (3 * RANK, 2 * RANK + hidden),
            "markov_head.joint_proj.bias": (3 * RANK,),
        }
    if "embedding" in own:
        shapes["embed_tokens.weight"] = (VOCABULARY, hidden)
    if "head" in own:
        shapes["lm_head.weight"] = (outputs, hidden)
    mx.random.seed(4)

    def drawn(name: str, shape: tuple[int, ...]) -> mx.array:
        noise = mx.random.normal(shape)
        if "norm" in name:
            return 1 + 0.1 * noise
        return noise if "markov_w1" in name else 0.5 * noise if "bias" in name else noise * shape[-1] ** -0.5

    weights = {name: drawn(name, shape) for name, shape in shapes.items()}
    weights["markov_head.markov_w2.weight"] = 4 * weights["markov_head.markov_w2.weight"]
    if outputs < VOCABULARY:
        tokens = tokens_of_fewer()
        weights["d2t"] = mx.array(tokens - np.arange(outputs), mx.int64)
        weights["t2d"] = mx.array(np.isin(np.arange(VOCABULARY), tokens).tolist())
    mx.eval(weights)
    return weights


def write(folder: Path, config: Mapping[str, Any], weights: dict[str, mx.array]) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    mx.save_safetensors(str(folder / "model.safetensors"), weights)
    return folder


def loaded(folder: Path, config: Mapping[str, Any], weights: dict[str, mx.array]) -> DSparkDraft:
    draft: Any = load_draft(write(folder, config, weights))
    return draft


class Definition(dflash2.Definition):
    """What the weights of a checkpoint make of a block, whose configuration says in `config` what `PLAIN` does."""

    def __init__(self, weights: Mapping[str, mx.array], config: dict[str, Any]):
        self.w = {name: np.array(array, np.float64) for name, array in weights.items()}
        self.config = config

    def hidden(self, embedded: Array, taps: Array) -> Array:
        """Final states [B, hidden] of an embedded block [B, hidden] behind context with taps [S, taps * hidden]."""
        x, c = embedded, self.norm(taps @ self.w["fc.weight"].T, "hidden_norm")
        for i in range(self.config["num_hidden_layers"]):
            layer = f"layers.{i}"
            x = x + self.attend(self.norm(x, f"{layer}.input_layernorm"), c, layer, len(taps))
            n = self.norm(x, f"{layer}.post_attention_layernorm")
            gate, up = (n @ self.w[f"{layer}.mlp.{name}_proj.weight"].T for name in ("gate", "up"))
            x = x + (gate / (1 + np.exp(-gate)) * up) @ self.w[f"{layer}.mlp.down_proj.weight"].T
        return self.norm(x, "norm")

    def turn(self, x: Array, positions: Array) -> Array:
        if not self.config.get("interleaved"):
            return super().turn(x, positions)
        half = x.shape[-1] // 2
        angles = positions[:, None] * self.config["rope_parameters"]["rope_theta"] ** (-np.arange(half) / half)
        turned = (x[..., 0::2] + 1j * x[..., 1::2]) * np.exp(1j * angles)[:, None]
        return np.stack([turned.real, turned.imag], axis=-1).reshape(x.shape)

    def chain(self, hidden: Array, logits: Array, anchor: int) -> list[int]:
        """The greedy chain after the anchor, of slots' states [D, hidden] and logits [D, the draft's vocabulary]."""
        kind = self.config.get("markov_head_type", "vanilla")
        w1, w2 = (self.w[f"markov_head.markov_w{i}.weight"] for i in (1, 2))
        state, before, tokens = np.zeros(RANK), anchor, []
        for x, own in zip(hidden, logits, strict=True):
            feature = w1[before]
            if kind == "gated":
                feature = sigmoid(self.linear("gate_proj", x, feature)) * feature
            elif kind == "rnn":
                g, m, o = np.split(self.linear("joint_proj", state, feature, x), 3)
                state = sigmoid(g) * state + (1 - sigmoid(g)) * np.tanh(m)
                feature = np.tanh(o)
            best = int(np.argmax(own + w2 @ feature))
            before = best + int(self.w["d2t"][best]) if "d2t" in self.w else best
            tokens.append(before)
        return tokens

    def linear(self, name: str, *parts: Array) -> Array:
        weight, bias = (self.w[f"markov_head.{name}.{part}"] for part in ("weight", "bias"))
        return weight @ np.concatenate(parts) + bias


def sigmoid(x: Array) -> Array:
    return 1 / (1 + np.exp(-x))
