"""Which draft belongs to which target: the published pairs, the one in the box, and how names resolve to them."""

from __future__ import annotations

import difflib
import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from . import boxed
from .folder import ModelError

BOXED_DRAFTS = Path(__file__).parents[1] / "drafts"

QUANTISATION = re.compile(
    r"[-_.]((\d+(\.\d+)?-?bits?)|bf16|fp16|f16|fp8|mxfp[48]|nvfp4|q\d(_\w+)?|int[48]|mlx|dwq|awq|gptq|gs\d+)$", re.I
)
"""A suffix that says how a model is quantised or converted, not what it is."""


FOR_ANSWERS_ONLY = ("z-lab/Qwen3-4B-DFlash-b16", "z-lab/Qwen3-8B-DFlash-b16")
"""Drafts that were published for thinking switched off, of targets that think unless told otherwise."""


@dataclass(frozen=True)
class Pair:
    """A target and its draft, each a boxed name, a folder or a hub id; without a draft decoding is plain."""

    name: str
    target: str
    draft: str | None = None

    @property
    def advice(self) -> str | None:
        """What to know before its requests are written, in one line."""
        if self.draft not in FOR_ANSWERS_ONLY:
            return None
        return f"{self.draft} was published for thinking switched off; with thoughts far fewer drafts are accepted"


PAIRS = {
    pair.name: pair
    for pair in (
        Pair(boxed.NAME, boxed.NAME, str(BOXED_DRAFTS / boxed.NAME)),
        Pair("qwen3-4b", "Qwen/Qwen3-4B", "z-lab/Qwen3-4B-DFlash-b16"),
        Pair("qwen3-8b", "Qwen/Qwen3-8B", "z-lab/Qwen3-8B-DFlash-b16"),
        Pair("qwen3.5-4b", "Qwen/Qwen3.5-4B", "z-lab/Qwen3.5-4B-DFlash"),
        Pair("qwen3.5-9b", "Qwen/Qwen3.5-9B", "z-lab/Qwen3.5-9B-DFlash"),
        Pair("qwen3.5-27b", "Qwen/Qwen3.5-27B", "z-lab/Qwen3.5-27B-DFlash"),
        Pair("qwen3.5-35b-a3b", "Qwen/Qwen3.5-35B-A3B", "z-lab/Qwen3.5-35B-A3B-DFlash"),
        Pair("qwen3.5-122b-a10b", "Qwen/Qwen3.5-122B-A10B", "z-lab/Qwen3.5-122B-A10B-DFlash"),
        Pair("qwen3.5-397b-a17b", "Qwen/Qwen3.5-397B-A17B", "z-lab/Qwen3.5-397B-A17B-DFlash"),
        Pair("qwen3.6-27b", "Qwen/Qwen3.6-27B", "z-lab/Qwen3.6-27B-DFlash"),
        Pair("qwen3.6-35b-a3b", "Qwen/Qwen3.6-35B-A3B", "z-lab/Qwen3.6-35B-A3B-DFlash"),
        Pair("qwen3.8-27b", "Qwen/Qwen3.8-27B", "z-lab/Qwen3.8-27B-DFlash2"),
        Pair("qwen3-coder-30b-a3b", "Qwen/Qwen3-Coder-30B-A3B-Instruct", "z-lab/Qwen3-Coder-30B-A3B-DFlash"),
        Pair("qwen3-coder-next", "Qwen/Qwen3-Coder-Next", "z-lab/Qwen3-Coder-Next-DFlash"),
        Pair("gemma-4-12b", "google/gemma-4-12B-it", "z-lab/gemma4-12B-it-DFlash"),
        Pair("gemma-4-26b-a4b", "google/gemma-4-26B-A4B-it", "z-lab/gemma-4-26B-A4B-it-DFlash"),
        Pair("gemma-4-31b", "google/gemma-4-31B-it", "z-lab/gemma-4-31B-it-DFlash"),
        Pair("gpt-oss-20b", "openai/gpt-oss-20b", "z-lab/gpt-oss-20b-DFlash"),
        Pair("gpt-oss-120b", "openai/gpt-oss-120b", "z-lab/gpt-oss-120b-DFlash"),
        Pair("lfm2.5-1.2b", "LiquidAI/LFM2.5-1.2B-Instruct", "LiquidAI/LFM2.5-1.2B-Instruct-DSpark"),
        Pair("lfm2.5-2.6b", "LiquidAI/LFM2.5-2.6B", "LiquidAI/LFM2.5-2.6B-DSpark"),
        Pair("lfm2.5-8b-a1b", "LiquidAI/LFM2.5-8B-A1B", "LiquidAI/LFM2.5-8B-A1B-DSpark"),
        Pair("llama-3.1-8b", "meta-llama/Llama-3.1-8B-Instruct", "z-lab/LLaMA3.1-8B-Instruct-DFlash-UltraChat"),
    )
}
"""Known pairs by name."""


def resolve(name: str) -> Pair:
    """The pair that `name` stands for: a pair's name, or a target (folder or hub id) of which any quantisation takes
    the draft of its pair.

    A target that belongs to no known pair is a pair without a draft.

    Raises:
        ModelError: no such pair, and no folder or hub id either; names the nearest pairs.
    """
    if pair := PAIRS.get(name.lower()):
        return pair
    if "/" in name or Path(name).is_dir():
        known = _family(name)
        return Pair(name, name, known.draft if known else None)
    near = difflib.get_close_matches(name.lower(), PAIRS, n=len(PAIRS), cutoff=0.5)
    jumbled = [known for known in near if not Counter(name.lower()) - Counter(known)]  # has every character of `name`
    meant = " or ".join(f"'{known}'" for known in jumbled or near[:3])
    hint = f"did you mean {meant}?" if meant else "see `draftmill pairs`"
    raise ModelError(f"unknown pair '{name}', {hint} (a folder or a hub id such as owner/name works too)")


def _family(target: str) -> Pair | None:
    """The known pair whose target this is, whoever converted it and however it is quantised."""
    base = Path(target).name
    while QUANTISATION.search(base):
        base = QUANTISATION.sub("", base)
    targets = {Path(pair.target).name.lower(): pair for pair in PAIRS.values()}
    plain = base.lower().removeprefix("meta-")  # as Llamas were called first
    return targets.get(plain) or PAIRS.get(plain)
