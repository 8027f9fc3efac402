"""Drafts on chips that emulate bfloat16: in float16, or in float32 where that is not finite."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest

from draftmill.engine.drafting.checkpoint import load_draft
from draftmill.engine.drafting.dflash import DFlashDraft
from draftmill.engine.drafting.load import LoadedPair, draft_for, holds
from draftmill.engine.engine import Engine
from draftmill.engine.load import load_engine
from draftmill.engine.models.folder import LoadedModel
from draftmill.engine.models.pairs import Pair
from draftmill.engine.models.precision import known_precisions
from draftmill.engine.models.targets import adapt
from draftmill.engine.models.targets.transformer import Transformer
from draftmill.engine.plain.engine import PlainEngine
from draftmill.engine.verdict import Verdict

from ..plain.architectures import tiny
from ..small import NOT_ON_HOPPER, NumberTokenizer, llama_model, memory_for, requests, run, small_engine
from . import dflash2
from .test_dflash import write

M1 = "Apple M1"


def target_in(dtype: mx.Dtype) -> Transformer:
    model = llama_model()
    model.set_dtype(dtype)
    return adapt(model)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write(tmp_path / "draft", {"intermediate_size": 128})  # of which groups of 64 can be made


@pytest.fixture
def large(folder: Path) -> Path:
    """A draft whose residual stream goes beyond what float16 can hold."""
    weights: Any = mx.load(str(folder / "model.safetensors"))
    weights["layers.0.mlp.down_proj.weight"] = 3e4 * mx.sign(weights["layers.0.mlp.down_proj.weight"])
    mx.save_safetensors(str(folder / "model.safetensors"), weights)
    return folder


@pytest.mark.parametrize("dtype", [mx.float16, mx.bfloat16])
def test_a_draft_that_float16_holds(dtype: mx.Dtype, folder: Path, tmp_path: Path) -> None:
    draft = draft_for(target_in(dtype), folder, None, "draft", tmp_path, M1)
    assert draft.dtype == mx.float16
    assert str(known_precisions(tmp_path)["draft"]) == "float16, because Apple M1 emulates bfloat16"


def test_one_that_it_does_not_hold_runs_in_float32(
    large: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = target_in(mx.float16)
    draft = draft_for(target, large, None, "draft", tmp_path, M1)
    assert draft.dtype == mx.float32
    assert holds(draft, target)
    assert str(known_precisions(tmp_path)["draft"]) == "float32, because in float16 its logits are not finite"
    monkeypatch.setattr("draftmill.engine.drafting.load.holds", lambda *_: pytest.fail("tried again"))
    assert draft_for(target, large, None, "draft", tmp_path, M1).dtype == mx.float32


@pytest.mark.parametrize(
    ("dtype", "chip"),
    [(mx.bfloat16, "Apple M3"), (mx.bfloat16, ""), (mx.float32, "Apple M1")],
)
def test_elsewhere_it_has_its_target_s_type_untried(
    dtype: mx.Dtype, chip: str, large: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("draftmill.engine.drafting.load.holds", lambda *_: pytest.fail("tried"))
    assert draft_for(target_in(dtype), large, None, "draft", tmp_path, chip).dtype == dtype
    assert known_precisions(tmp_path) == {}


@pytest.fixture
def convolved(tmp_path: Path) -> Path:
    """A DFlash 2 draft whose convolutions go beyond what float16 can hold."""
    folder = dflash2.write(tmp_path / "convolved")
    weights: Any = mx.load(str(folder / "model.safetensors"))
    weights["layers.0.attention_conv.base_kernel"] *= 1e4
    weights["layers.1.mlp_conv.base_kernel"] *= 1e4
    mx.save_safetensors(str(folder / "model.safetensors"), weights)
    return folder


@pytest.mark.parametrize(("chip", "dtype"), [("Apple M1", mx.float32), ("Apple M3", mx.bfloat16), ("", mx.bfloat16)])
@pytest.mark.parametrize("bits", [None, pytest.param(8, marks=NOT_ON_HOPPER)])
def test_a_float16_target_s_draft_is_tried_everywhere(
    chip: str, dtype: mx.Dtype, bits: int | None, convolved: Path, tmp_path: Path
) -> None:
    target = target_in(mx.float16)
    draft = draft_for(target, convolved, bits, "draft", tmp_path, chip)
    assert draft.dtype == dtype
    assert str(known_precisions(tmp_path)["draft"]).endswith("because in float16 its logits are not finite")
    assert draft_for(target, convolved, bits, "draft", tmp_path, chip).dtype == dtype
    asked = requests(3, max_tokens=8)
    engine = engine_with(target, draft)
    done, plain = run(engine, asked), run(small_engine(target.model), asked)
    assert engine.stats.drafted > 0
    assert {id: it.tokens for id, it in done.items()} == {id: it.tokens for id, it in plain.items()}


def test_one_that_float16_holds_stays_in_it(folder: Path, tmp_path: Path) -> None:
    assert draft_for(target_in(mx.float16), folder, None, "draft", tmp_path, "Apple M3").dtype == mx.float16


def engine_with(target: Transformer, draft: DFlashDraft) -> Engine:
    return Engine(target, NumberTokenizer(), 512, 4, memory_for(target, draft, 2048, 4), draft, depth=5)


@pytest.mark.parametrize("quantised", [None, 8])
def test_rounds_of_a_float16_target_and_a_float32_draft(large: Path, quantised: int | None) -> None:
    target = target_in(mx.float16)
    draft = load_draft(large, quantised)
    draft.set_dtype(mx.float32)
    engine = engine_with(target, draft)
    asked = requests(3, max_tokens=8)
    done, plain = run(engine, asked), run(small_engine(target.model), asked)
    assert engine.stats.drafted > 0
    assert {layer.keys.dtype for layer in engine.pool.layers} == {mx.float16}
    assert engine.drafter
    assert {layer.keys.dtype for layer in engine.drafter.pool.layers} == {mx.float32}
    assert {id: it.tokens for id, it in done.items()} == {id: it.tokens for id, it in plain.items()}


def test_what_is_said_of_both(folder: Path, large: Path, tmp_path: Path) -> None:
    target = target_in(mx.float16)
    tokenizer: Any = NumberTokenizer()
    loaded = LoadedModel("tiny", target.model, tokenizer, 512, "float16, because Apple M1 emulates bfloat16")
    wide = draft_for(target, large, None, "draft", tmp_path, M1)
    said = "float16, because Apple M1 emulates bfloat16"
    assert LoadedPair(loaded, target, wide, Verdict(0, "", 0)).precision == f"{said}; draft in float32"
    wide.set_dtype(mx.float16)
    assert LoadedPair(loaded, target, wide, Verdict(0, "", 0)).precision == said


def test_a_pair_and_a_plain_model_as_they_are_loaded(
    large: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a CPU weights become float32 as they are read, so what is read here are models made in bfloat16."""

    def read(name: str, cache: Path, adapter: Path | None = None) -> LoadedModel:
        model = llama_model() if "llama" in name else tiny("phi3")
        model.set_dtype(mx.bfloat16)
        tokenizer: Any = NumberTokenizer()
        return LoadedModel(name, model, tokenizer, 512)

    for module in ("draftmill.engine.load", "draftmill.engine.drafting.load"):
        monkeypatch.setattr(f"{module}.load", read)
        monkeypatch.setattr(f"{module}.chip", lambda: M1)
    for name in ("llama", "phi3"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(f'{{"model_type": "{name}"}}')
    llama, phi = (str(tmp_path / name) for name in ("llama", "phi3"))
    engine = load_engine(Pair(llama, llama, str(large)), tmp_path, 2, 1 << 24, depth=2)
    assert engine.precision == "float16, because Apple M1 emulates bfloat16; draft in float32"
    plain = load_engine(Pair(phi, phi), tmp_path, 2, 1 << 24)
    assert plain.precision == "float16, because Apple M1 emulates bfloat16"
    assert isinstance(plain, PlainEngine)
    assert plain.dtype == mx.float16
    assert len(known_precisions(tmp_path)) == 3
