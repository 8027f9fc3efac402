"""DFlash 2 by its definition, in NumPy: one block of one row, slot by slot; and random checkpoints of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np

from draftmill.engine.drafting.checkpoint import draft_of
from draftmill.engine.drafting.dflash import DFlashDraft, arrays
from tests.engine.small import VOCABULARY

NESTED: dict[str, Any] = dict(
    block_size=6,
    mask_token_id=5,
    target_layer_ids=[0, 2],
    conv_kernel_size=3,
    conv_group_size=8,
    selector_rank=12,
    selector_top_k=7,
)

CONFIG: dict[str, Any] = dict(
    architectures=["DFlash2DraftModel"],
    hidden_size=64,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=32,
    intermediate_size=128,
    vocab_size=VOCABULARY,
    rms_norm_eps=1e-6,
    max_position_embeddings=512,
    rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
    num_target_layers=3,
    is_causal=False,
    dflash_config=NESTED,
)

Array = np.ndarray[Any, Any]


def random_weights(draft: DFlashDraft, seed: int = 4) -> None:
    """Weights that hide nothing: fresh codebooks and kernels are zeros, fresh norms ones."""
    mx.random.seed(seed)

    def drawn(name: str, array: mx.array) -> mx.array:
        noise = mx.random.normal(array.shape)
        if "norm" in name:
            return 1 + 0.1 * noise
        if "codebook" in name or "base_kernel" in name:
            return 0.5 * noise
        return noise * array.shape[-1] ** -0.5

    draft.load_weights([(name, drawn(name, array)) for name, array in arrays(draft)])
    mx.eval(draft.parameters())


def random_draft(**changes: Any) -> DFlashDraft:
    draft = draft_of({**CONFIG, **changes})
    random_weights(draft)
    return draft


def write(folder: Path, changes: dict[str, Any] | None = None) -> Path:
    """A random checkpoint on disk."""
    config = {key: value for key, value in {**CONFIG, **(changes or {})}.items() if value is not None}
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    draft = draft_of(config)
    random_weights(draft)
    mx.save_safetensors(str(folder / "model.safetensors"), dict(arrays(draft)))
    return folder


class Definition:
    """A float32 draft's weights, and what they make of a block.

    `config` is as in a checkpoint, with `is_causal` written out.
    """

    def __init__(self, draft: DFlashDraft, config: dict[str, Any]):
        self.w = {name: np.array(array, np.float64) for name, array in arrays(draft)}
        self.config = config
        self.nested = config["dflash_config"]

    def hidden(self, embedded: Array, taps: Array) -> Array:
        """Final states [B, hidden] of an embedded block [B, hidden] behind context with taps [S, taps * hidden]."""
        context = len(taps)
        x, c = embedded, self.norm(taps @ self.w["fc.weight"].T, "hidden_norm")
        for i in range(self.config["num_hidden_layers"]):
            layer = f"layers.{i}"
            n = self.norm(x, f"{layer}.input_layernorm")
            before, after = self.kernels(n, f"{layer}.attention_conv")
            y = self.attend(self.convolve(n, *before), c, layer, context)
            x = x + self.convolve(y, *after)
            n = self.norm(x, f"{layer}.post_attention_layernorm")
            before, after = self.kernels(n, f"{layer}.mlp_conv")
            u = self.convolve(n, *before)
            gate, up = (u @ self.w[f"{layer}.mlp.{name}_proj.weight"].T for name in ("gate", "up"))
            y = (gate / (1 + np.exp(-gate)) * up) @ self.w[f"{layer}.mlp.down_proj.weight"].T
            x = x + self.convolve(y, *after)
        return self.norm(x, "norm")

    def kernels(self, n: Array, name: str) -> list[tuple[Array, Array]]:
        """Of the side that goes in and the one that comes out: base [K, H] and deltas [B, K, H / G]."""
        groups = n.shape[-1] // self.nested["conv_group_size"]
        deltas = (n @ self.w[f"{name}.kernel_projection.weight"].T).reshape(
            len(n), 2, self.nested["conv_kernel_size"], groups
        )
        return [(self.w[f"{name}.base_kernel"][side], deltas[:, side]) for side in (0, 1)]

    def convolve(self, x: Array, base: Array, deltas: Array) -> Array:
        out = np.zeros_like(x)
        for i in range(len(x)):
            for h in range(x.shape[1]):
                for t in range(len(base)):
                    if i - t >= 0:
                        out[i, h] += (base[t, h] + deltas[i, t, h // self.nested["conv_group_size"]]) * x[i - t, h]
        return out

    def attend(self, u: Array, c: Array, layer: str, context: int) -> Array:
        config, block = self.config, len(u)
        heads, kv_heads, dim = (config[k] for k in ("num_attention_heads", "num_key_value_heads", "head_dim"))
        q, k, v = (self.w[f"{layer}.self_attn.{name}_proj.weight"].T for name in "qkv")
        both = np.concatenate([c, u])
        positions = np.arange(context + block)
        queries = self.turn(
            self.norm((u @ q).reshape(block, heads, dim), f"{layer}.self_attn.q_norm"), positions[-block:]
        )
        keys = self.turn(self.norm((both @ k).reshape(-1, kv_heads, dim), f"{layer}.self_attn.k_norm"), positions)
        values = (both @ v).reshape(-1, kv_heads, dim)
        kinds = config.get("layer_types") or ["full_attention"] * config["num_hidden_layers"]
        window = config["sliding_window"] if kinds[int(layer[7:])] == "sliding_attention" else None
        out = np.zeros((block, heads, dim))
        for i in range(block):
            at = context + i
            seen = [
                j
                for j in positions
                if (j >= context or window is None or at - j < window)
                and (j < context or not config["is_causal"] or j <= at)
            ]
            for h in range(heads):
                scores = keys[seen, h * kv_heads // heads] @ queries[i, h] * dim**-0.5
                weights = np.exp(scores - scores.max())
                out[i, h] = weights @ values[seen, h * kv_heads // heads] / weights.sum()
        return out.reshape(block, -1) @ self.w[f"{layer}.self_attn.o_proj.weight"].T

    def turn(self, x: Array, positions: Array) -> Array:
        half = x.shape[-1] // 2
        angles = positions[:, None] * self.config["rope_parameters"]["rope_theta"] ** (-np.arange(half) / half)
        cos, sin = np.cos(angles)[:, None], np.sin(angles)[:, None]
        a, b = x[..., :half], x[..., half:]
        return np.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1)

    def norm(self, x: Array, name: str) -> Array:
        mean = (x * x).mean(axis=-1, keepdims=True)
        return x / np.sqrt(mean + self.config["rms_norm_eps"]) * self.w[f"{name}.weight"]

    def chain(self, hidden: Array, logits: Array, anchor: int) -> list[int]:
        """The greedy chain after the anchor, of mask slots' states [D, hidden] and logits [D, vocabulary]."""
        tokens: list[int] = []
        for h, own in zip(hidden, logits, strict=True):
            scores = self.scores(h, own, tokens[-1] if tokens else anchor)
            tokens.append(max(scores, key=lambda token: scores[token]))
        return tokens

    def scores(self, h: Array, logits: Array, before: int) -> dict[int, float]:
        """The score of each candidate of a slot after a token."""
        a, b, w = (
            self.w[f"candidate_selector.{name}"]
            for name in ("predecessor_codebook", "successor_codebook", "hidden_projection.weight")
        )
        candidates = np.argsort(-logits)[: self.nested["selector_top_k"]]
        return {int(token): float(logits[token] + (a[before] * (w @ h) * b[token]).sum()) for token in candidates}
