"""DSpark's Markov heads: what the token before a slot adds to the slot's logits, by a product of two narrow matrices.

A token a has a code of `rank` numbers, e = W1[a], and adds W2 f to the logits of the slot after it. The vanilla head
takes f = e; a gated one weighs e by the slot's hidden state x; a recurrent one makes f of e, x and a state that it
carries from slot to slot of a block.
"""

from __future__ import annotations

import mlx.core as mx
import mlx.nn as nn

from ...kernels.operations import Operations
from ..models.linear import apply


class MarkovHead(nn.Module):
    """The vanilla head. Its codes are those of the target's vocabulary, what it adds is for the draft's."""

    def __init__(self, vocabulary: int, outputs: int, hidden: int, rank: int):
        super().__init__()
        self.markov_w1 = nn.Embedding(vocabulary, rank)
        self.markov_w2 = nn.Linear(rank, outputs, bias=False)

    def __call__(
        self, before: mx.array, x: mx.array, state: mx.array | None, operations: Operations
    ) -> tuple[mx.array, mx.array | None]:
        """What the tokens before [M] add to the logits [M, outputs] of slots with hidden states x [M, hidden].

        Takes and gives the heads' state, which is None at the beginning of a block.
        """
        feature, state = self.feature(self.markov_w1(before).astype(x.dtype), x, state, operations)
        return apply(self.markov_w2, feature, operations), state

    def feature(
        self, code: mx.array, x: mx.array, state: mx.array | None, operations: Operations
    ) -> tuple[mx.array, mx.array | None]:
        """What is multiplied by W2 [M, rank], of codes [M, rank]; and the state after it."""
        return code, state

    @property
    def linears(self) -> list[nn.Module]:
        """Its linear layers."""
        return [self.markov_w2]


class GatedMarkovHead(MarkovHead):
    """A hidden state opens or closes each number of the code."""

    def __init__(self, vocabulary: int, outputs: int, hidden: int, rank: int):
        super().__init__(vocabulary, outputs, hidden, rank)
        self.gate_proj = nn.Linear(hidden + rank, rank)

    def feature(
        self, code: mx.array, x: mx.array, state: mx.array | None, operations: Operations
    ) -> tuple[mx.array, mx.array | None]:
        gate = apply(self.gate_proj, mx.concatenate([x, code], axis=-1), operations)
        return mx.sigmoid(gate) * code, state

    @property
    def linears(self) -> list[nn.Module]:
        return [*super().linears, self.gate_proj]


class RecurrentMarkovHead(MarkovHead):
    """Remembers the tokens of the block before: a gate says how much of its state stays."""

    def __init__(self, vocabulary: int, outputs: int, hidden: int, rank: int):
        super().__init__(vocabulary, outputs, hidden, rank)
        self.joint_proj = nn.Linear(2 * rank + hidden, 3 * rank)

    def feature(
        self, code: mx.array, x: mx.array, state: mx.array | None, operations: Operations
    ) -> tuple[mx.array, mx.array | None]:
        state = mx.zeros_like(code) if state is None else state
        joint = apply(self.joint_proj, mx.concatenate([state, code, x], axis=-1), operations)
        gate, new, out = mx.split(joint, 3, axis=-1)
        gate = mx.sigmoid(gate)
        return mx.tanh(out), gate * state + (1 - gate) * mx.tanh(new)

    @property
    def linears(self) -> list[nn.Module]:
        return [*super().linears, self.joint_proj]


HEADS: dict[str, type[MarkovHead]] = {"vanilla": MarkovHead, "gated": GatedMarkovHead, "rnn": RecurrentMarkovHead}
"""By `markov_head_type`."""
