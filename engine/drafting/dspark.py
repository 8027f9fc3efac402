"""DSpark: a DFlash draft whose slots depend on the tokens drafted before them, by a Markov head."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Self

import mlx.core as mx
import mlx.nn as nn

from ...kernels.operations import Operations
from ..choose.change import choose_changed
from ..models.folder import ModelError
from ..models.linear import apply
from ..models.targets.transformer import Transformer
from .dflash import STOCK_OPERATIONS, DFlashDraft, DraftConfig, Wanted
from .dspark_layouts import translated
from .markov import HEADS
from .selector import ragged, rectangle

NEEDED = ("block_size", "mask_token_id", "target_layer_ids", "markov_rank")

UNUSED = ("confidence_head.proj.", "mask_embedding", "t2d")
"""How the names of weights begin that drafts do not depend on: of the confidence head, and of training."""

OUTSIDE = -1e30
"""The logit of a token that a draft's vocabulary lacks. It is finite because a row may allow none of those it has."""


@dataclass(frozen=True)
class DSparkConfig(DraftConfig):
    """As `DraftConfig`; `num_target_layers` is 0 where the file does not say.

    The Markov head has codes of `markov_rank` numbers. The draft's own head has logits of `draft_vocab_size` tokens, 0
    for all. The block's slot `first_slot` gives the first draft. `rope_is_neox_style` false: neighbours turn together.
    """

    markov_rank: int = 0
    markov_head_type: str = "vanilla"
    draft_vocab_size: int = 0
    first_slot: int = 0
    rope_is_neox_style: bool = True

    @classmethod
    def from_dict(cls, config: dict[str, Any]) -> Self:
        """Read a configuration of any of the three layouts.

        Raises:
            ModelError: it lacks something, or has something that changes drafts and is not known here.
        """
        flat = {name: value for name, value in translated(config).items() if value is not None}
        for name in NEEDED:
            if name not in flat:
                raise ModelError(f"draft config.json has no {name}, which a DSpark draft needs")
        if flat.get("draft_vocab_size") == flat.get("vocab_size"):
            flat.pop("draft_vocab_size", None)
        draft = super().from_dict({"num_target_layers": 0, **flat})
        if draft.markov_head_type not in HEADS:
            raise ModelError(f"draft config.json has markov_head_type {draft.markov_head_type!r}: not supported")
        for fits, problem in (
            (draft.markov_rank > 0, "markov_rank is not positive"),
            (draft.first_slot < draft.block_size, "block_size leaves no slot to draft"),
            (draft.draft_vocab_size <= draft.vocab_size, "draft_vocab_size is larger than vocab_size"),
        ):
            if not fits:
                raise ModelError(f"draft config.json: {problem}")
        return draft


class DSparkDraft(DFlashDraft):
    """DFlash's backbone and a Markov head. Embedding and head are the draft's own if its checkpoint has them."""

    architecture = "DSparkDraftModel"
    configuration = DSparkConfig
    config: DSparkConfig

    def __init__(self, config: DSparkConfig):
        super().__init__(config)
        self.outputs = config.draft_vocab_size or config.vocab_size
        make = HEADS[config.markov_head_type]
        self.markov_head = make(config.vocab_size, self.outputs, config.hidden_size, config.markov_rank)
        self._places: mx.array | None = None  # in the draft's vocabulary, of the target's tokens; behind it, of others

    @property
    def first(self) -> int:
        return self.config.first_slot

    def adopt(self, weights: dict[str, mx.array]) -> dict[str, mx.array]:
        config = self.config
        if "embed_tokens.weight" in weights:
            self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        if "lm_head.weight" in weights:
            self.lm_head = nn.Linear(config.hidden_size, self.outputs, bias=False)
        self._take_vocabulary(weights)
        kept = {name: array for name, array in weights.items() if not name.startswith((*UNUSED, "d2t"))}
        if config.rope_is_neox_style:
            return kept
        return {name: self._halved(array) if _turning(name) else array for name, array in kept.items()}

    def _take_vocabulary(self, weights: dict[str, mx.array]) -> None:
        """Which tokens of the target the draft's vocabulary has: its token k is k + d2t[k]."""
        offsets, size = weights.get("d2t"), self.config.vocab_size
        if not self.config.draft_vocab_size:
            if offsets is not None:
                raise ModelError("draft weight d2t is there, but config.json has no smaller draft_vocab_size")
            return
        if missing := next((name for name in ("d2t", "lm_head.weight") if name not in weights), None):
            raise ModelError(f"draft weight {missing} is missing, which a draft_vocab_size needs; download it again")
        places = mx.full((size,), self.outputs, mx.int32)
        own = mx.arange(self.outputs, dtype=mx.int32)
        if offsets is not None and offsets.shape == own.shape:
            tokens = own + offsets.astype(mx.int32)
            if ((tokens >= 0) & (tokens < size)).all().item():
                places[tokens] = own
        if (places < self.outputs).sum().item() != self.outputs:
            raise ModelError("draft weight d2t does not name another token of the target for each one of the draft's")
        self._places = places

    def _halved(self, array: mx.array) -> mx.array:
        """Rows [heads * D, ...] whose neighbours turn together, such that the first half of a head turns with the last.

        Queries and keys have the same order then, and so the same products.
        """
        if array.shape[0] % self.config.head_dim:
            return array  # which is refused for its shape
        heads = array.reshape(-1, self.config.head_dim // 2, 2, *array.shape[1:])
        return heads.swapaxes(1, 2).reshape(array.shape)

    def embed(self, tokens: mx.array, target: Transformer) -> mx.array:
        own: Any = self.get("embed_tokens")
        return (target.enter(tokens) if own is None else own(tokens)).astype(self.dtype)

    def score(self, hidden: mx.array, target: Transformer) -> mx.array:
        own: Any = self.get("lm_head")
        return super().score(hidden, target) if own is None else self.finish(apply(own, hidden, target.operations))

    def choose(self, wanted: Wanted, operations: Operations = STOCK_OPERATIONS) -> mx.array:
        """The drafts [F], slot after slot of all rows together, with the random numbers that the target will have.

        A row that wants fewer rides along. Logits are float32 from here on, whatever the draft's type.
        """
        places = rectangle(wanted.depths)
        before, state, chain = wanted.anchors, None, []
        for slots in zip(*places, strict=True):
            grid = mx.array(slots)
            added, state = self.markov_head(before, wanted.hidden[grid], state, operations)
            logits = self._spread(wanted.logits[grid].astype(mx.float32) + added.astype(mx.float32))
            samplings = [wanted.samplings[slot] for slot in slots]
            changes = [wanted.slots[slot] for slot in slots] if wanted.slots else ()
            before = choose_changed(logits, samplings, wanted.positions[grid], changes, None, operations)
            chain.append(before)
        return ragged(mx.stack(chain, axis=1), wanted.depths)

    def _spread(self, logits: mx.array) -> mx.array:
        """Logits [M, outputs] of the draft's vocabulary as those of the target's."""
        if self._places is None:
            return logits
        outside = mx.full((len(logits), 1), OUTSIDE, logits.dtype)
        return mx.concatenate([logits, outside], axis=-1)[:, self._places]

    @property
    def linears(self) -> list[nn.Module]:
        own: Any = self.get("lm_head")
        return [*super().linears, *self.markov_head.linears, *([] if own is None else [own])]


def _turning(name: str) -> bool:
    """Whether what a weight makes turns with its position."""
    return any(f"self_attn.{part}." in name for part in ("q_proj", "k_proj", "q_norm", "k_norm"))
