"""Random MTP heads, and what they return by formulas of their own: one row, all entries at once, plain attention."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
from mlx.utils import tree_flatten

from draftmill.engine.drafting.mtp.head import MTPHead


def random_head(args: Any, seed: int = 5) -> MTPHead:
    """A head for a target with these arguments; no weight is what an untrained module has by default."""
    mx.random.seed(seed)
    head = MTPHead(args)
    flat: Any = tree_flatten(head.parameters())
    drawn = [(name, 1 + 0.1 * draw(x) if x.ndim == 1 else draw(x) * x.shape[-1] ** -0.5) for name, x in flat]
    head.load_weights(drawn)
    mx.eval(head.parameters())
    return head


def draw(like: mx.array) -> mx.array:
    return mx.random.normal(like.shape)


def stored(head: MTPHead) -> dict[str, mx.array]:
    """A head's weights by their names."""
    flat: Any = tree_flatten(head.parameters())
    return dict(flat)


class Formulas:
    """A head's entries of one row, from position 0 on. Keys and values are kept in lists."""

    def __init__(self, weights: dict[str, mx.array], args: Any, embedding: mx.array):
        self.weights, self.args, self.embedding = weights, args, embedding
        self.keys: list[mx.array] = []
        self.values: list[mx.array] = []

    def cut(self, length: int) -> None:
        """Keep the first entries alone."""
        del self.keys[length:], self.values[length:]

    def entry(self, hidden: mx.array, token: int) -> mx.array:
        """What the head returns [hidden] for the row's next entry."""
        w, args, position = self.weights, self.args, len(self.keys)
        embedded = self.norm(self.embedding[token], "pre_fc_norm_embedding")
        x = w["fc.weight"] @ mx.concatenate([embedded, self.norm(hidden, "pre_fc_norm_hidden")])
        x = x + self.attention(self.norm(x, "layers.0.input_layernorm"), position)
        y = self.norm(x, "layers.0.post_attention_layernorm")
        x = x + (self.experts(y) if args.num_experts else self.mlp(y, "layers.0.mlp"))
        return self.norm(x, "norm")

    def norm(self, x: mx.array, name: str) -> mx.array:
        return x * mx.rsqrt((x * x).mean(-1, keepdims=True) + self.args.rms_norm_eps) * self.weights[f"{name}.weight"]

    def attention(self, x: mx.array, position: int) -> mx.array:
        w, args, dim, at = self.weights, self.args, self.args.head_dim, "layers.0.self_attn"
        both = (w[f"{at}.q_proj.weight"] @ x).reshape(args.num_attention_heads, 2, dim)
        queries, gate = both[:, 0], both[:, 1]
        keys = (w[f"{at}.k_proj.weight"] @ x).reshape(args.num_key_value_heads, dim)
        self.keys.append(self.turned(self.norm(keys, f"{at}.k_norm"), position))
        self.values.append((w[f"{at}.v_proj.weight"] @ x).reshape(args.num_key_value_heads, dim))
        queries = self.turned(self.norm(queries, f"{at}.q_norm"), position)
        share = args.num_attention_heads // args.num_key_value_heads
        seen, held = (mx.repeat(mx.stack(every), share, axis=1) for every in (self.keys, self.values))  # [S, H, D]
        scores = mx.softmax((seen * queries).sum(-1, keepdims=True) * dim**-0.5, axis=0)
        mixed = (scores * held).sum(0)
        mx.eval(mixed, self.keys[-1], self.values[-1])
        return w[f"{at}.o_proj.weight"] @ (mixed * mx.sigmoid(gate)).flatten()

    def turned(self, x: mx.array, position: int) -> mx.array:
        """Heads [H, D] whose first dimensions are turned in pairs that lie half of them apart."""
        half = int(self.args.head_dim * self.args.partial_rotary_factor) // 2
        angles = position * self.args.rope_theta ** (-mx.arange(half) / half)
        one, other, rest = x[:, :half], x[:, half : 2 * half], x[:, 2 * half :]
        cos, sin = mx.cos(angles), mx.sin(angles)
        return mx.concatenate([one * cos - other * sin, one * sin + other * cos, rest], axis=1)

    def mlp(self, x: mx.array, at: str, expert: int | None = None) -> mx.array:
        gate, up, down = (
            self.weights[f"{at}.{name}_proj.weight"]
            if expert is None
            else self.weights[f"{at}.{name}_proj.weight"][expert]
            for name in ("gate", "up", "down")
        )
        inside = gate @ x
        return down @ (inside * mx.sigmoid(inside) * (up @ x))

    def experts(self, x: mx.array) -> mx.array:
        w, at = self.weights, "layers.0.mlp"
        chances = mx.softmax(w[f"{at}.gate.weight"] @ x)
        ranked: Any = mx.argsort(-chances).tolist()
        best = ranked[: self.args.num_experts_per_tok]
        total = sum(chances[i] for i in best) if self.args.norm_topk_prob else 1
        shared = mx.sigmoid(w[f"{at}.shared_expert_gate.weight"] @ x) * self.mlp(x, f"{at}.shared_expert")
        return sum((chances[i] / total * self.mlp(x, f"{at}.switch_mlp", i) for i in best), shared)
