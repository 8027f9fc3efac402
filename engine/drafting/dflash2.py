"""DFlash 2: a DFlash draft with convolutions around attention and MLP, whose tokens a candidate selector chooses."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import partial
from typing import Any, Self

import mlx.core as mx
import mlx.nn as nn

from ...kernels.operations import Operations
from ..models.config_keys import CHANGING
from ..models.folder import ModelError
from .dflash import STOCK_OPERATIONS, Attend, DFlashDraft, DraftConfig, DraftLayer, Wanted
from .selector import CandidateSelector, Dense

NEEDED = ("conv_kernel_size", "conv_group_size", "selector_rank", "selector_top_k")

ELSEWHERE = {"causal", "rope_theta", "rope_parameters", "rope_scaling"}
"""Keys of `dflash_config` that are read without being fields."""


@dataclass(frozen=True)
class DFlash2Config(DraftConfig):
    """As `DraftConfig`. A convolution has `conv_kernel_size` taps, of which `conv_group_size` channels share what comes
    of the input. The selector has codes of `selector_rank` numbers, and `selector_top_k` candidates.
    """

    conv_kernel_size: int = 0
    conv_group_size: int = 0
    selector_rank: int = 0
    selector_top_k: int = 0

    @classmethod
    def from_dict(cls, config: dict[str, Any]) -> Self:
        """As `DraftConfig.from_dict`. Also raises ModelError for what would change drafts and is not known here."""
        known = {field.name for field in fields(cls)}
        unknown = [name for name in config.get("dflash_config") or {} if name not in known | ELSEWHERE]
        # Which layers have a window is what `layer_types` says.
        for name in CHANGING.keys() - known - {"use_sliding_window"}:
            if config.get(name) is not None and config[name] not in CHANGING[name]:
                unknown.append(name)
        if unknown:
            raise ModelError(f"draft config.json has {min(unknown)}: not supported, and drafts may be wrong without it")
        draft = super().from_dict(config)
        for name in NEEDED:
            if getattr(draft, name) < 1:
                raise ModelError(f"draft config.json has no {name}, which a DFlash 2 draft needs")
        for fits, problem in (
            (draft.hidden_size % draft.conv_group_size == 0, "conv_group_size does not divide hidden_size"),
            (draft.conv_kernel_size <= draft.block_size, "conv_kernel_size is larger than block_size"),
            (draft.selector_top_k <= draft.vocab_size, "selector_top_k is larger than vocab_size"),
        ):
            if not fits:
                raise ModelError(f"draft config.json: {problem}")
        return draft


class BlockConvolution(nn.Module):
    """Convolves what goes into a sublayer and what comes out of it, along each block; the context is left alone.

    Slot i of a block becomes the sum over taps t of (base[t] + delta[i, t]) x[i - t], where x is 0 before the block.
    The deltas of both sides depend on what goes in, before it is convolved.
    """

    def __init__(self, config: DFlash2Config):
        super().__init__()
        self.block, self.taps, self.group = config.block_size, config.conv_kernel_size, config.conv_group_size
        hidden = config.hidden_size
        self.base_kernel = mx.zeros((2, self.taps, hidden))
        self.kernel_projection = Dense(hidden, 2 * self.taps * hidden // self.group)

    def __call__(self, sublayer: Callable[[mx.array], mx.array], x: mx.array) -> mx.array:
        """What the sublayer makes of whole blocks x [N, hidden], both convolved."""
        # [blocks, block, side, tap, groups, 1]: a shift along all of N would mix neighbouring rows.
        deltas = self.kernel_projection(x).reshape(-1, self.block, 2, self.taps, x.shape[-1] // self.group, 1)
        return self._convolve(sublayer(self._convolve(x, 0, deltas)), 1, deltas)

    def _convolve(self, x: mx.array, side: int, deltas: mx.array) -> mx.array:
        """Blocks x [N, hidden], convolved by the kernels of a side."""
        slots = x.reshape(-1, self.block, x.shape[-1] // self.group, self.group)
        base = self.base_kernel[side].reshape(self.taps, *slots.shape[2:])
        total = mx.zeros((), x.dtype)
        for tap in range(self.taps):
            shifted = mx.pad(slots[:, : self.block - tap], [(0, 0), (tap, 0), (0, 0), (0, 0)]) if tap else slots
            total = add_tap(total, base[tap], deltas[:, :, side, tap], shifted)
        return total.reshape(x.shape)


@partial(mx.compile, shapeless=True)
def add_tap(total: mx.array, base: mx.array, delta: mx.array, shifted: mx.array) -> mx.array:
    return total + (base + delta) * shifted


class DFlash2Layer(DraftLayer):
    def __init__(self, config: DFlash2Config):
        super().__init__(config)
        self.attention_conv = BlockConvolution(config)
        self.mlp_conv = BlockConvolution(config)


class DFlash2Draft(DFlashDraft):
    """DFlash's backbone, each sublayer of which reads and gives what is convolved along the block."""

    architecture = "DFlash2DraftModel"
    configuration = DFlash2Config
    layer = DFlash2Layer

    def __init__(self, config: DFlash2Config):
        super().__init__(config)
        self.candidate_selector = CandidateSelector(
            config.vocab_size, config.hidden_size, config.selector_rank, config.selector_top_k
        )

    def attention(self, index: int, y: mx.array, attend: Attend, turned: mx.array, operations: Operations) -> mx.array:
        plain = partial(super().attention, index, attend=attend, turned=turned, operations=operations)
        layer: Any = self.layers[index]
        return layer.attention_conv(plain, y)

    def mlp(self, index: int, y: mx.array, operations: Operations) -> mx.array:
        layer: Any = self.layers[index]
        return layer.mlp_conv(partial(super().mlp, index, operations=operations), y)

    def choose(self, wanted: Wanted, operations: Operations = STOCK_OPERATIONS) -> mx.array:
        """The drafts [F]: a chain of candidates for each row, with the random numbers that the target will have."""
        return self.candidate_selector(wanted)
