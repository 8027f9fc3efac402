"""Loading the engine that a pair takes: the one with adapters, or the plain one for whatever has none."""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from ..kernels.race import measurements
from .engine import MAX_ROWS, Engine
from .models.architecture import architecture
from .models.config_keys import beyond
from .models.folder import ModelError, load, locate, read_json
from .models.kernels_for import choose_kernels
from .models.load_check import fingerprint
from .models.pairs import Pair
from .models.precision import chip, suited
from .models.targets import FAMILIES
from .plain.engine import PlainEngine
from .request import NO_ADAPTERS, Adapters
from .state.memory import stay_resident

log = logging.getLogger(__name__)


def load_engine(
    pair: Pair,
    cache: Path,
    max_rows: int | None = MAX_ROWS,
    memory: int | None = None,
    depth: int | None = None,
    draft_bits: int | None = None,
    adapters: Adapters = NO_ADAPTERS,
    drafts: Collection[str] | None = None,
) -> Engine | PlainEngine:
    """The engine of a pair, as `Engine.load` has it. A target without an adapter takes the plain one, which says so.

    Raises:
        ModelError: as `Engine.load`, or a draft, a depth, its bits or several LoRA adapters are asked for without an
            adapter; the message is one line.
    """
    kind = without_adapter(read_json(locate(pair.target, cache) / "config.json"))
    if kind is None:
        return Engine.load(pair, cache, max_rows, memory, depth, draft_bits, adapters, drafts)
    one = adapters.default
    if adapters.folders and one is None:
        raise ModelError(
            f"{pair.target} is a model of type {kind}, which mlx-lm runs with one LoRA adapter at most: "
            "give --adapter instead of --adapters"
        )
    asked = {f"draft {pair.draft}": pair.draft, f"--depth {depth}": depth, f"--draft-bits {draft_bits}": draft_bits}
    asked |= {f"--drafts {','.join(drafts)}": drafts} if drafts else {}
    if vain := [name for name, value in asked.items() if value]:
        raise ModelError(
            f"{pair.target} is a model of type {kind}, for which there is no adapter and so no drafts: "
            f"leave out {' and '.join(vain)}"
        )
    stay_resident()
    folder = adapters.folders[one] if one else None
    subject = f"{pair.target}, weights {fingerprint(locate(pair.target, cache))}" + (f", {folder}" if folder else "")
    loaded = suited(lambda: load(pair.target, cache, folder), subject, cache, chip())
    rows = max_rows or MAX_ROWS
    engine = PlainEngine(loaded.model, loaded.tokenizer, loaded.context_length, rows, memory, adapters, kind)
    engine.precision = loaded.precision
    choose_kernels(engine, None, cache)
    log.warning(engine.remark)
    remarks = known_remarks(cache) | {pair.target: engine.remark}
    measurements.write(_file(cache), measurements.machine(), remarks)
    return engine


def without_adapter(config: Mapping[str, Any]) -> str | None:
    """Which kind of model a config.json describes, if no adapter knows that: its type, and the key that makes it so."""
    if architecture(config) not in FAMILIES:
        return str(config.get("model_type"))
    key = beyond(config)
    return key and f"{config.get('model_type')} with {key}"


def known_remarks(cache: Path) -> dict[str, str]:
    """What there is to know of the models that ran plainly on this machine, by their names."""
    remarks = measurements.known(_file(cache), measurements.machine())
    return {name: remark for name, remark in remarks.items() if isinstance(remark, str)}


def _file(cache: Path) -> Path:
    return cache / "plain.json"
