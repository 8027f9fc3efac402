"""Loading a pair: its target behind an adapter, its draft in the target's type, the operations that win here."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx
from mlx_lm.utils import dequantize_model

from ..models.folder import LoadedModel, load, locate
from ..models.kernels_for import choose_kernels
from ..models.load_check import assure, fingerprint
from ..models.pairs import Pair
from ..models.targets import adapt
from ..models.targets.transformer import Transformer
from ..state.memory import stay_resident
from ..verdict import Verdict
from .dflash import DFlashDraft, load_draft


@dataclass(frozen=True)
class LoadedPair:
    """A pair ready to generate: the adapter over the `loaded` target, and the draft, if there is one.

    `verdict` says how near the target's logits are to mlx-lm's on this machine.
    """

    loaded: LoadedModel
    target: Transformer
    draft: DFlashDraft | None
    verdict: Verdict


def load_pair(pair: Pair, cache: Path, draft_bits: int | None = None) -> LoadedPair:
    """Load a target and, if the pair has one, its draft.

    `cache` is where the boxed target is kept; `draft_bits` quantises the draft's linear layers.

    Raises:
        ModelError: one of them cannot be found, read or served, or the target's logits are not mlx-lm's on this
            machine; the message is one line.
    """
    stay_resident()
    loaded = load(pair.target, cache)
    target = adapt(loaded.model)
    draft: Any = None
    if pair.draft:
        draft = load_draft(locate(pair.draft, cache), draft_bits)
        draft.set_dtype(target.dtype)
        if mx.default_device() == mx.cpu:  # where quantised weights crawl
            draft = dequantize_model(draft)
    choose_kernels(target, draft, cache)
    verdict = assure(target, f"{pair.target}, weights {fingerprint(locate(pair.target, cache))}", cache)
    return LoadedPair(loaded, target, draft, verdict)
