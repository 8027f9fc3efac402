"""The numbers of a training run, and the draft that it starts from."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from hashlib import blake2s
from pathlib import Path
from typing import Any

import mlx.core as mx
from mlx.utils import tree_flatten
from mlx_lm.utils import dequantize_model

from ..drafting.dflash import DFlashDraft, DraftConfig, arrays
from ..engine import Engine
from ..models.folder import load
from ..models.targets import adapt
from ..models.targets.transformer import Transformer
from .prompts import TrainingError


@dataclass(frozen=True)
class Recipe:
    """How a draft is shaped and trained. A folder's checkpoint can only be gone on with under the same recipe."""

    layers: int = 4
    taps: int = 5
    block: int = 10
    anchors: int = 24
    """Blocks of each sequence in a step."""
    batch_tokens: int = 12288
    """Tokens of a step's sequences together, padding included."""
    longest: int = 512
    """Longer sequences are cut."""
    gamma: float = 5.0
    """How slowly the loss's weight decays over a block's slots."""
    learning_rate: float = 1e-3
    warmup: int = 100
    weight_decay: float = 0.01
    clip: float = 1.0
    held_back: int = 128
    """Sequences that are never trained on."""
    markov_rank: int = 0
    """Numbers in a code of the Markov head; 0 for a draft without one."""
    markov_head: str = "vanilla"
    """Which kind of Markov head."""
    backbone: str = ""
    """What tells the finished draft apart that the Markov head is for, if it is trained alone."""
    seed: int = 0

    @property
    def key(self) -> str:
        """A short name that no other recipe has."""
        return blake2s(json.dumps(asdict(self)).encode(), digest_size=6).hexdigest()


def load_engine(name: str, cache: Path, max_rows: int, memory: int | None = None) -> Engine:
    """The engine over a target whose weights are dense: float32 on a CPU, bfloat16 elsewhere."""
    loaded = load(name, cache)
    model: Any = loaded.model
    if mx.default_device() != mx.cpu:
        model = dequantize_model(model)
        model.set_dtype(mx.bfloat16)
        mx.eval(model.parameters())
    model.freeze()
    return Engine(adapt(model), loaded.tokenizer, loaded.context_length, max_rows, memory)


def unused_token(tokenizer: Any, template: str) -> int:
    """The last special token that neither ends anything nor occurs in the chat template: it becomes the mask."""
    taken = {tokenizer.bos_token_id, tokenizer.pad_token_id, tokenizer.unk_token_id, *tokenizer.eos_token_ids}
    special = {index: token.content for index, token in tokenizer.added_tokens_decoder.items() if token.special}
    free = [index for index, text in special.items() if index not in taken and text not in template]
    if not free:
        raise TrainingError("the target's vocabulary has no unused special token; name one with --mask-token")
    return max(free)


def draft_config(target: Transformer, recipe: Recipe, mask_token: int) -> DraftConfig:
    """A draft shaped like the target's layers, tapping layers spread from its second to its last but one."""
    args = target.model.args
    depth = len(target.layers)
    first, last = min(1, depth - 1), max(depth - 2, 0)
    step = (last - first) / max(recipe.taps - 1, 1)
    return DraftConfig(
        hidden_size=args.hidden_size,
        num_hidden_layers=recipe.layers,
        num_attention_heads=args.num_attention_heads,
        num_key_value_heads=target.layout.kv_heads,
        intermediate_size=args.intermediate_size,
        vocab_size=args.vocab_size,
        num_target_layers=depth,
        mask_token_id=mask_token,
        head_dim=target.layout.dim,
        target_layer_ids=tuple(sorted({round(first + i * step) for i in range(recipe.taps)})),
        layer_types=("full_attention",) * recipe.layers,
        rms_norm_eps=target.norm.eps,
        max_position_embeddings=args.max_position_embeddings or DraftConfig.max_position_embeddings,
        rope_theta=args.rope_theta,
        rope_scaling=getattr(args, "rope_scaling", None),
        block_size=recipe.block,
        is_causal=False,
    )


def new_draft(target: Transformer, config: DraftConfig, seed: int) -> DFlashDraft:
    """A draft in float32 whose layers start as copies of the target's last ones, where the shapes agree.

    The feature projection starts near the last tap alone, which is what those layers are used to.
    """
    mx.random.seed(seed)
    draft = DFlashDraft(config)
    copies: dict[str, mx.array] = {"norm.weight": target.norm.weight}
    last_layers = slice(-config.num_hidden_layers, None)
    for index, (layer, norms) in enumerate(zip(target.layers[last_layers], target.before[last_layers], strict=True)):
        named: Any = tree_flatten(layer.parameters())
        own = {f"layers.{index}.{name}": weight for name, weight in named}
        # Norms as the forward reads them: a family may store them otherwise, and have more of them.
        for name, norm in zip(("input_layernorm", "post_attention_layernorm"), norms, strict=True):
            own[f"layers.{index}.{name}.weight"] = norm.weight
        heads = target.norms(layer.self_attn) if "self_attn" in layer else None
        for name, weight in zip(("q_norm", "k_norm"), heads or (), strict=False):
            own[f"layers.{index}.self_attn.{name}.weight"] = weight
        copies |= own
    own = dict(arrays(draft))
    fitting = {name: w for name, w in copies.items() if name in own and own[name].shape == w.shape}
    hidden = config.hidden_size
    last = mx.concatenate([mx.zeros((hidden, own["fc.weight"].shape[1] - hidden)), mx.eye(hidden)], axis=1)
    fitting["fc.weight"] = last + 0.2 * own["fc.weight"]
    draft.load_weights([(name, weight.astype(mx.float32)) for name, weight in fitting.items()], strict=False)
    mx.eval(draft.parameters())
    return draft
