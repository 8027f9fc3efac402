"""z-lab's MLX engine as an arm, where `dflash` is installed."""

from __future__ import annotations

import copy
import importlib
import importlib.util
from collections.abc import Collection, Iterator
from dataclasses import asdict
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx_lm.utils import dequantize_model

from ...drafting.dflash import DFlashDraft, arrays
from ...request import Request
from ..arms import MissingPeer, OneByOne
from ..replay import Continuation


class ZLab(OneByOne):
    """z-lab's MLX engine, with its own draft module over our draft's weights.

    Args:
        model: the target, of which it gets a copy of the modules, since it changes them.
        recurrent: whether the target has recurrent layers, for which it changes mlx-lm's class while it generates.
        continuation: what the draft says instead of what it thinks.

    Raises:
        MissingPeer: not installed.
    """

    def __init__(
        self,
        model: nn.Module,
        draft: DFlashDraft,
        tokenizer: Any,
        recurrent: bool,
        continuation: Continuation | None = None,
    ):
        self.package = peer("dflash.model_mlx", "dflash")
        self.model, self.tokenizer, self.alone = twin(model), tokenizer, recurrent
        self.draft = zlab_draft(self.package, draft, continuation)

    @property
    def ends(self) -> Collection[int]:
        return self.tokenizer.eos_token_ids

    def stream(self, request: Request) -> Iterator[list[int]]:
        self.draft.stream = request.sampling.seed
        tokens, count = mx.array(request.tokens), request.sampling.max_tokens
        for response in self.package.stream_generate(self.model, self.draft, self.tokenizer, tokens, max_tokens=count):
            yield response.tokens


def zlab_draft(package: Any, draft: DFlashDraft, continuation: Continuation | None = None) -> Any:
    """z-lab's draft module with the weights of `draft`; with a continuation it drafts from that, at its full price."""

    class Replay(package.DFlashDraftModel):
        stream = 0

        def __call__(self, inputs: mx.array, hidden: mx.array, cache: list[Any], logits_start: int = 0) -> mx.array:
            anchor = cache[0].offset + hidden.shape[1]  # its position
            logits = super().__call__(inputs, hidden, cache, logits_start)
            if continuation is None:
                return logits
            ahead = mx.arange(1, logits.shape[1] + 1)
            anchors = mx.broadcast_to(inputs[0, 0], ahead.shape)
            streams = mx.full(ahead.shape, self.stream, mx.int32)
            tokens = continuation.draft(anchors, ahead, streams, anchor + ahead)
            return mx.where(mx.arange(logits.shape[-1]) == tokens[:, None], mx.inf, logits)

    made = Replay(package.DFlashConfig(**asdict(draft.config)))
    plain: Any = dequantize_model(twin(draft))  # it knows no quantised weights
    made.load_weights(arrays(plain))
    made.eval()
    return made


def peer(module: str, package: str) -> Any:
    if not importlib.util.find_spec(package):
        raise MissingPeer(f"{package} is not installed")
    return importlib.import_module(module)


def twin(module: Any) -> Any:
    """A module tree of the same classes and the very same weights."""
    if isinstance(module, list):
        return [twin(part) for part in module]
    if not isinstance(module, nn.Module):
        return module
    made = copy.copy(module)
    for name, part in module.items():
        made[name] = twin(part)
    return made
