"""A model's own MTP head (multi-token prediction): its modules, its forward over packed entries, and its batches.

The entry of position p takes the target's hidden state at p and the token of p + 1, and predicts that of p + 2: through
one layer like the target's that attend, over the entries before it. Fed with its own output, it predicts further. The
embedding and the vocabulary head are the target's.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx_lm.models.qwen3_5 import DecoderLayer, TextModel, TextModelArgs

from ....kernels.packing import Packing
from ....kernels.race.contestants import OperationShape
from ...models.linear import apply, products
from ...models.targets.qwen3_5 import Qwen35
from ...models.targets.transformer import Transformer
from ...state.state import State


class MTPHead(nn.Module):
    """The modules of a head, by their names in checkpoints. Its layer attends, dense or of experts as the target's."""

    def __init__(self, args: TextModelArgs):
        super().__init__()
        hidden, eps = args.hidden_size, args.rms_norm_eps
        self.fc = nn.Linear(2 * hidden, hidden, bias=False)
        self.pre_fc_norm_embedding = nn.RMSNorm(hidden, eps=eps)
        self.pre_fc_norm_hidden = nn.RMSNorm(hidden, eps=eps)
        self.layers = [DecoderLayer(one_layer(args), 0)]
        self.norm = nn.RMSNorm(hidden, eps=eps)


DEPTH = 3
"""Most tokens of a row that are drafted in a round: each takes a pass, and is accepted less often than the last one."""


class MTP(Qwen35):
    """A head that runs over packed entries: a model of one layer, of its target's family and with its embedding."""

    block = DEPTH + 1
    """Most tokens of a row in a round, its anchor among them."""

    def __init__(self, head: MTPHead, target: Transformer):
        model = TextModel(one_layer(target.model.args))
        model.model.embed_tokens, model.model.layers, model.model.norm = target.embed, head.layers, head.norm
        super().__init__(model)
        self.own = head

    @property
    def shapes(self) -> list[OperationShape]:
        """What its operations work on that its target's do not; layers of experts are left to mlx-lm, as there."""
        linears = [self.own.fc, *self.joint, *filter(None, self.gates), *self.outputs, *filter(None, self.downs)]
        return list(products(linears, self.dtype))

    def join(self) -> None:
        """Its projections are joined already."""

    def make_state(self, pages: int) -> State:
        return Transformer.make_state(self, pages)

    def predict(self, hidden: mx.array, tokens: mx.array, packing: Packing, state: State) -> mx.array:
        """Run packed entries, with hidden states [N, hidden] and tokens [N], writing their keys and values.

        Entries have hidden states of the target behind its last norm, or what this returned for the entry before. What
        it returns [N, hidden] is for the target's vocabulary head.
        """
        head = self.own
        both = [head.pre_fc_norm_embedding(self.embed(tokens)), head.pre_fc_norm_hidden(hidden)]
        entering = apply(head.fc, mx.concatenate(both, axis=-1), self.operations)
        return self.run(entering, packing, state)[0]


def one_layer(args: Any) -> TextModelArgs:
    """The arguments of a target, for a model whose only layer attends."""
    return replace(args, num_hidden_layers=1, full_attention_interval=1, tie_word_embeddings=True)
