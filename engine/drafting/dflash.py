"""The DFlash draft model: its configuration, its modules and its forward, whatever batches them.

Layout of checkpoints and algorithm after DFlash (block diffusion for speculative decoding): the draft has no
embedding and no head of its own, attends to features made of the target's hidden states, and fills a block of mask
tokens at once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Any, Self

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten
from mlx_lm.models.rope_utils import initialize_rope

from ...kernels.fused.rotary import Layout, Norms
from ...kernels.operations import Operations
from ...kernels.race.contestants import AttentionShape, OperationShape, RotaryShape
from ..choose.change import Slot, choose_changed
from ..models.folder import ModelError
from ..models.layers import swiglu, turns
from ..models.linear import Beside, apply, bound, join, products
from ..models.targets.transformer import Transformer
from ..request import Sampling
from ..state.kv_pool import Heads, KVPool

ARCHITECTURE = "DFlashDraftModel"
STOCK_OPERATIONS = Operations()

Attend = Callable[[int, mx.array, mx.array, Norms], mx.array]
"""attend(layer, projected [N, width], turns [N, 2, D / 2], norms) -> mixed [N, H * D]."""


@dataclass(frozen=True)
class DraftConfig:
    """A draft's `config.json`, both levels merged. `is_causal` None: causal in the block on sliding layers only."""

    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    intermediate_size: int
    vocab_size: int
    num_target_layers: int
    mask_token_id: int
    head_dim: int
    target_layer_ids: tuple[int, ...]
    layer_types: tuple[str, ...]
    rms_norm_eps: float = 1e-6
    max_position_embeddings: int = 32768
    rope_theta: float = 10000.0
    rope_scaling: dict[str, Any] | None = None
    block_size: int = 16
    sliding_window: int | None = None
    is_causal: bool | None = None
    final_logit_softcapping: float | None = None
    input_embedding_scale: float = 1.0
    output_multiplier: float = 1.0

    @classmethod
    def from_dict(cls, config: dict[str, Any]) -> Self:
        """Read a checkpoint's configuration; `dflash_config` wins over the top level.

        Raises:
            ModelError: a field without which nothing can be done is missing, or has a value that is not supported.
        """
        nested = config.get("dflash_config") or {}
        merged = {**config, **nested}
        if merged.get("is_causal") is None:
            merged["is_causal"] = nested.get("causal")
        rope = merged.get("rope_parameters") or {}
        merged.setdefault("rope_theta", rope.get("rope_theta", cls.rope_theta))
        scaling = merged.get("rope_scaling") or rope
        merged["rope_scaling"] = (
            scaling if scaling.get("rope_type", scaling.get("type", "default")) != "default" else None
        )
        if (merged.get("final_logit_softcapping") or 0) <= 0:
            merged["final_logit_softcapping"] = None
        try:
            layers, target_layers = merged["num_hidden_layers"], merged["num_target_layers"]
            merged["head_dim"] = merged.get("head_dim") or merged["hidden_size"] // merged["num_attention_heads"]
            merged["target_layer_ids"] = tuple(merged.get("target_layer_ids") or default_taps(layers, target_layers))
            merged["layer_types"] = tuple(merged.get("layer_types") or ["full_attention"] * layers)
            draft = cls(**{f.name: merged[f.name] for f in fields(cls) if merged.get(f.name) is not None})
        except (KeyError, TypeError) as error:
            raise ModelError(f"draft config.json lacks a field: {error}") from error
        if len(draft.layer_types) != draft.num_hidden_layers:
            raise ModelError(
                f"draft config.json has {len(draft.layer_types)} layer_types, but {draft.num_hidden_layers} layers"
            )
        if unknown := set(draft.layer_types) - {"full_attention", "sliding_attention"}:
            raise ModelError(f"draft config.json has layer types that are not supported: {', '.join(sorted(unknown))}")
        if "sliding_attention" in draft.layer_types and draft.sliding_window is None:
            raise ModelError("draft config.json has sliding layers but no sliding_window")
        return draft


def default_taps(layers: int, target_layers: int) -> tuple[int, ...]:
    """The tapped target layers of a draft whose configuration names none."""
    if layers == 1:
        return (target_layers // 2,)
    return tuple(round(1 + i * (target_layers - 4) / (layers - 1)) for i in range(layers))


@dataclass(frozen=True)
class Wanted:
    """The F slots of a round's blocks that become drafts: `depths` of each of M rows, row after row.

    `hidden` [F, hidden] is the draft's, normed; `logits` [F, vocabulary] are its head's, finished; `positions` [F] and
    `samplings` are the drafts'. Slots change their logits, or there are none at all. `anchors` [M] are the
    tokens before each row's first draft.
    """

    hidden: mx.array
    logits: mx.array
    positions: mx.array
    samplings: Sequence[Sampling]
    slots: Sequence[Slot]
    depths: Sequence[int]
    anchors: mx.array


class DraftAttention(nn.Module):
    """Projections of one layer, used for context features and for the block alike."""

    def __init__(self, config: DraftConfig):
        super().__init__()
        hidden, dim = config.hidden_size, config.head_dim
        self.n_heads, self.n_kv_heads = config.num_attention_heads, config.num_key_value_heads
        self.scale = dim**-0.5
        self.q_proj = nn.Linear(hidden, self.n_heads * dim, bias=False)
        self.k_proj = nn.Linear(hidden, self.n_kv_heads * dim, bias=False)
        self.v_proj = nn.Linear(hidden, self.n_kv_heads * dim, bias=False)
        self.o_proj = nn.Linear(self.n_heads * dim, hidden, bias=False)
        self.q_norm = nn.RMSNorm(dim, eps=config.rms_norm_eps)
        self.k_norm = nn.RMSNorm(dim, eps=config.rms_norm_eps)


class DraftMLP(nn.Module):
    def __init__(self, config: DraftConfig):
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)

    def __call__(self, x: mx.array) -> mx.array:
        return self.down_proj(nn.silu(self.gate_proj(x)) * self.up_proj(x))


class DraftLayer(nn.Module):
    def __init__(self, config: DraftConfig):
        super().__init__()
        self.self_attn = DraftAttention(config)
        self.mlp = DraftMLP(config)
        self.input_layernorm = nn.RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.post_attention_layernorm = nn.RMSNorm(config.hidden_size, eps=config.rms_norm_eps)


class DFlashDraft(nn.Module):
    """The draft. Tokens are packed: every method takes N tokens with their absolute positions [N]."""

    architecture = ARCHITECTURE
    configuration: type[DraftConfig] = DraftConfig
    layer: type[DraftLayer] = DraftLayer

    def __init__(self, config: DraftConfig):
        super().__init__()
        self.config = config
        self.fc = nn.Linear(len(config.target_layer_ids) * config.hidden_size, config.hidden_size, bias=False)
        self.hidden_norm = nn.RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.layers = [self.layer(config) for _ in range(config.num_hidden_layers)]
        self.norm = nn.RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.rope: Any = initialize_rope(
            config.head_dim,
            base=config.rope_theta,
            traditional=False,
            scaling_config=config.rope_scaling,
            max_position_embeddings=config.max_position_embeddings,
        )
        self._joint: list[tuple[Any, Any]] = []

    def adopt(self, weights: dict[str, mx.array]) -> dict[str, mx.array]:
        """A checkpoint's weights by their names here and as they lie here; makes what not every checkpoint has.

        Raises:
            ModelError: weights that contradict each other or the configuration.
        """
        return weights

    @property
    def first(self) -> int:
        """The slot of a block that gives the first draft: not the anchor's own, which is slot 0."""
        return 1

    @property
    def bytes_per_page(self) -> int:
        """Memory of the context in one page."""
        return KVPool.bytes_per_page(self.heads, self.dtype)

    @property
    def block(self) -> int:
        """Most tokens of a row in a round, its anchor among them."""
        return self.config.block_size - self.first + 1

    @property
    def layout(self) -> Layout:
        """Queries, keys and values in a layer's joint projection."""
        config = self.config
        heads = config.num_attention_heads, config.num_key_value_heads
        return Layout(*heads, config.head_dim, config.head_dim, epsilon=config.rms_norm_eps)

    @property
    def heads(self) -> list[Heads]:
        """The heads of each layer's keys."""
        return [(self.config.num_key_value_heads, self.config.head_dim)] * len(self.layers)

    def join(self) -> None:
        """Join projections that read the same input, so that a layer takes few launches; not to be trained after it."""
        self._joint = self._joint or [
            (bound(join([attn.q_proj, attn.k_proj, attn.v_proj])), bound(join([mlp.gate_proj, mlp.up_proj])))
            for attn, mlp in ((layer.self_attn, layer.mlp) for layer in self.layers)
        ]

    def context(
        self, taps: mx.array, positions: mx.array, operations: Operations = STOCK_OPERATIONS
    ) -> list[tuple[mx.array, mx.array]]:
        """Keys and values [N, KV, D] of each layer for taps [N, taps * hidden] of committed tokens: what is cached."""
        features = self.hidden_norm(apply(self.fc, taps, operations))
        heads = taps.shape[0], self.config.num_key_value_heads, self.config.head_dim
        context: list[tuple[mx.array, mx.array]] = []
        for attn in (layer.self_attn for layer in self.layers):
            keys = attn.k_norm(apply(attn.k_proj, features, operations).reshape(heads))
            turned = self.rope(keys[:, :, None], offset=positions)[:, :, 0]
            context.append((turned, apply(attn.v_proj, features, operations).reshape(heads)))
        return context

    def __call__(
        self, x: mx.array, positions: mx.array, attend: Attend, operations: Operations = STOCK_OPERATIONS
    ) -> mx.array:
        """Hidden states [N, hidden], normed for the target's head, of embedded tokens x [N, hidden] of whole blocks."""
        turned = turns(self.rope, self.layout, positions)
        if self.config.input_embedding_scale != 1:
            x = x * self.config.input_embedding_scale
        y = self.layers[0].input_layernorm(x)
        following = [*(layer.input_layernorm for layer in self.layers[1:]), self.norm]
        for index, (layer, norm) in enumerate(zip(self.layers, following, strict=True)):
            after = layer.post_attention_layernorm
            mixed = self.attention(index, y, attend, turned, operations)
            x, y = operations.add_norm(x, mixed, after.weight, after.eps)
            x, y = operations.add_norm(x, self.mlp(index, y, operations), norm.weight, norm.eps)
        return y

    def attention(self, index: int, y: mx.array, attend: Attend, turned: mx.array, operations: Operations) -> mx.array:
        """What a layer's attention adds to normed states y [N, hidden]."""
        attn, (projected, _) = self.layers[index].self_attn, self._projections(index)
        norms = attn.q_norm.weight, attn.k_norm.weight
        mixed = attend(index, apply(projected, y, operations), turned, norms)
        return apply(attn.o_proj, mixed, operations)

    def mlp(self, index: int, y: mx.array, operations: Operations) -> mx.array:
        """What a layer's MLP adds to normed states y [N, hidden]."""
        _, gates = self._projections(index)
        hidden = swiglu(*mx.split(apply(gates, y, operations), 2, axis=-1))
        return apply(self.layers[index].mlp.down_proj, hidden, operations)

    def _projections(self, index: int) -> tuple[Any, Any]:
        """What makes queries, keys and values of a layer, and the two halves of its MLP."""
        if self._joint:
            return self._joint[index]
        attn, mlp = self.layers[index].self_attn, self.layers[index].mlp
        return Beside([attn.q_proj, attn.k_proj, attn.v_proj]), Beside([mlp.gate_proj, mlp.up_proj])

    def embed(self, tokens: mx.array, target: Transformer) -> mx.array:
        """What the slots of blocks hold [N, hidden], for tokens [N]."""
        return target.embed_drafts(tokens).astype(self.dtype)

    def score(self, hidden: mx.array, target: Transformer) -> mx.array:
        """Logits [F, vocabulary] of the draft's hidden states [F, hidden], finished."""
        return self.finish(target.score_drafts(hidden.astype(target.dtype)))

    def finish(self, logits: mx.array) -> mx.array:
        """The draft's own scaling of the target head's logits."""
        if self.config.output_multiplier != 1:
            logits = logits * self.config.output_multiplier
        cap = self.config.final_logit_softcapping
        return logits if cap is None else cap * mx.tanh(logits / cap)

    def choose(self, wanted: Wanted, operations: Operations = STOCK_OPERATIONS) -> mx.array:
        """The drafts [F]: each row's by its own sampling, with the random numbers that the target will have."""
        # With top-p and top-k, as the target draws. Without, the text would be the same and the draw cheaper, but fewer
        # drafts are accepted: SmolLM2 and itself with 16 tokens of context, temperature 0.7, top-p 0.8, top-k 20, agree
        # in 62 % of draws, and in 59 % if the draft's are not truncated; with 4 tokens of context in 39 and in 35 %.
        return choose_changed(wanted.logits, wanted.samplings, wanted.positions, wanted.slots, None, operations)

    def window(self, layer: int) -> int | None:
        """The layer's sliding window in tokens, None where it sees the whole context."""
        return self.config.sliding_window if self.config.layer_types[layer] == "sliding_attention" else None

    def causal(self, layer: int) -> bool:
        """Whether block tokens see only the block tokens before them."""
        causal = self.config.is_causal
        return self.window(layer) is not None if causal is None else causal

    @property
    def dtype(self) -> mx.Dtype:
        """The type of its activations, mostly the target's; weights may be quantised."""
        return self.norm.weight.dtype

    @property
    def shapes(self) -> list[OperationShape]:
        """What its operations work on, for the race of their forms."""
        layout, dtype = self.layout, self.dtype
        attention = AttentionShape(layout.heads, layout.kv_heads, layout.dim, dtype)
        return [attention, RotaryShape(layout, dtype), *products(self.linears, dtype)]

    @property
    def linears(self) -> list[Any]:
        """Its linear layers, in the form in which they run."""
        attns, mlps = ([getattr(layer, name) for layer in self.layers] for name in ("self_attn", "mlp"))
        pairs = [self._projections(index) for index in range(len(self.layers))]
        context = [part for attn in attns for part in (attn.k_proj, attn.v_proj)]
        outputs = [*(attn.o_proj for attn in attns), *(mlp.down_proj for mlp in mlps)]
        return [self.fc, *context, *outputs, *(part for pair in pairs for part in pair)]


def arrays(draft: DFlashDraft) -> list[tuple[str, mx.array]]:
    """The draft's parameters by their names in a checkpoint."""
    flat: Any = tree_flatten(draft.parameters())
    return flat
