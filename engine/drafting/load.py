"""Loading a pair: its target behind an adapter, its draft in the target's type, the operations that win here."""

from __future__ import annotations

import logging
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx
from mlx_lm.utils import dequantize_model

from ...kernels.packing import Packing, Span
from ...kernels.pages.places import Places, tabled
from ...kernels.pages.sizes import pages_for
from ..models.folder import LoadedModel, ModelError, load, locate, unpacks
from ..models.kernels_for import choose_kernels
from ..models.load_check import assure, fingerprint, fixed_texts
from ..models.lora import lay, read
from ..models.pairs import Pair
from ..models.precision import Precision, chip, emulates_bfloat16, finite, known_precisions, remember, suited
from ..models.targets import adapt
from ..models.targets.transformer import Transformer
from ..request import NO_ADAPTERS, Adapters, Request
from ..state.memory import stay_resident
from ..verdict import Verdict
from .checkpoint import load_draft
from .dflash import DFlashDraft
from .drafter import Drafter, DraftRow
from .kinds import Draft
from .mtp.head import MTP
from .mtp.load import is_head, own_head, separate_head

log = logging.getLogger(__name__)

TYPES = {"float16": mx.float16, "bfloat16": mx.bfloat16}


@dataclass(frozen=True)
class LoadedPair:
    """A pair ready to generate: the adapter over the `loaded` target, and the draft, if there is one.

    `verdict` says how near the target's logits are to mlx-lm's on this machine; `draft_name` which draft it is.
    """

    loaded: LoadedModel
    target: Transformer
    draft: Draft | None
    verdict: Verdict
    draft_name: str | None = None

    @property
    def precision(self) -> str | None:
        """What there is to know of the types in which the two run, in one line."""
        said = [self.loaded.precision] if self.loaded.precision else []
        if self.draft and self.draft.dtype != self.target.dtype:
            said.append(f"draft in {type_name(self.draft.dtype)}")
        return "; ".join(said) or None


def load_pair(
    pair: Pair,
    cache: Path,
    draft_bits: int | None = None,
    sources: Collection[str] = ("dflash",),
    adapters: Adapters = NO_ADAPTERS,
) -> LoadedPair:
    """Load a target and the draft of its pair, as far as it is among the `sources`; without one, the target's own MTP
    head if that is among them and in its checkpoint. LoRA adapters are laid over the target.

    `cache` is where the boxed target is kept; `draft_bits` quantises the draft's linear layers.

    Raises:
        ModelError: one of them cannot be found, read or served, or the target's logits are not mlx-lm's on this
            machine; the message is one line.
    """
    loras = read(adapters)  # what is wrong with them comes to light at once
    stay_resident()
    here = chip()
    subject = f"{pair.target}, weights {fingerprint(locate(pair.target, cache))}"
    loaded = suited(lambda: load(pair.target, cache), subject, cache, here)
    target = adapt(loaded.model)
    draft: Any = None
    name = named(pair.draft, sources)
    folder = locate(name, cache) if name else None
    if folder and is_head(folder):
        draft = separate_head(target, folder, draft_bits)
    elif folder:
        whose = f"{pair.draft}, weights {fingerprint(folder)}, {draft_bits or 16} bits, for {subject}"
        draft = draft_for(target, folder, draft_bits, whose, cache, here, unpacks(pair.target))
    elif "mtp" in sources and (draft := own_or_none(target, locate(pair.target, cache), draft_bits)):
        name = "its own MTP head"
    lay(loras, target, loaded.model)
    choose_kernels(target, draft, cache)
    verdict = assure(target, subject, cache)
    return LoadedPair(loaded, target, draft, verdict, name)


def named(draft: str | None, sources: Collection[str]) -> str | None:
    """The draft that a pair names, unless it is of a kind that is not wanted: MTP heads go by their names."""
    wanted = "mtp" if draft and "mtp" in Path(draft).name.lower() else "dflash"
    return draft if wanted in sources else None


def own_or_none(target: Transformer, folder: Path, bits: int | None) -> MTP | None:
    """The target's own MTP head. Nobody asked for it, so one that cannot be used is no reason not to serve."""
    try:
        return own_head(target, folder, bits)
    except ModelError as error:
        log.warning("decoding without drafts: %s", error)
        return None


def draft_for(
    target: Transformer, folder: Path, bits: int | None, subject: str, cache: Path, chip: str, plain: bool = False
) -> DFlashDraft:
    """A draft in its target's type; or in float16 where the chip emulates bfloat16. Its weights are not quantised if
    they shall be `plain`.

    Where float16 does not hold it, it runs in bfloat16, or in float32 where that is emulated. What was found is
    remembered for the `subject`.
    """
    emulated = emulates_bfloat16(chip)

    def made(dtype: mx.Dtype) -> DFlashDraft:
        draft = load_draft(folder, bits)
        draft.set_dtype(dtype)
        if plain:
            dequantize_model(draft)
        return draft

    if target.dtype == mx.float32 or (target.dtype == mx.bfloat16 and not emulated):
        return made(target.dtype)
    precision = known_precisions(cache).get(subject)
    if precision is None:
        if holds(made(mx.float16), target):
            precision = Precision("float16", f"because {chip} emulates bfloat16" if emulated else "as its target is")
        else:
            wider = "float32" if emulated else "bfloat16"
            precision = Precision(wider, "because in float16 its logits are not finite")
        mx.clear_cache()
        remember(subject, precision, cache)
    return made(TYPES.get(precision.dtype, mx.float32))


def holds(draft: DFlashDraft, target: Transformer) -> bool:
    """Whether a block that a draft writes behind one of the load check's texts is finite. Joins its layers."""
    text, depth = fixed_texts(target.vocabulary)[0], draft.block - 1
    count, pages = len(text), range(pages_for(len(text) + draft.block))
    drafter, state = Drafter(draft, target, len(pages)), target.make_state(len(pages))
    positions = mx.arange(count, dtype=mx.int32)
    span = Span(0, count, pages, count, True, 0, fresh=True, final=True)
    packing = Packing.of([span], positions, mx.zeros(1, mx.int32))
    _, taps = target.forward(mx.array(text), packing, state, drafter.tapped)
    table, _ = tabled([pages])
    drafter.extend(mx.concatenate(taps, axis=-1), Places(table, mx.zeros(count, mx.int32), positions))
    row = DraftRow(Request("", (0,)), 0, pages, count, True, depth)
    return finite(drafter.score([row], mx.array(text[:1]), mx.array([count], mx.int32)).logits)


def type_name(dtype: mx.Dtype) -> str:
    return str(dtype).removeprefix("mlx.core.")
