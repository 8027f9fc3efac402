"""bfloat16 models on chips that emulate it: in float16 where that holds them, remembered and said in one line."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import pytest

from draftmill.engine.models.folder import LoadedModel
from draftmill.engine.models.load_check import MOST, distances, settle
from draftmill.engine.models.precision import emulates_bfloat16, known_precisions, suited, to_float16, types
from draftmill.engine.models.targets import adapt
from draftmill.engine.plain.ways import find_ways

from ..small import NumberTokenizer, llama_model, qwen3_model, requests, run, small_engine

M1 = "Apple M1 Max"
SAID = "float16, because Apple M1 Max emulates bfloat16"


@pytest.mark.parametrize("chip", ["Apple M1", "Apple M1 Max", "Apple M2", "Apple M2 Pro", "Apple M2 Ultra"])
def test_chips_that_emulate_bfloat16(chip: str) -> None:
    assert emulates_bfloat16(chip)


@pytest.mark.parametrize("chip", ["Apple M3", "Apple M4 Pro", "Apple M10", "Apple M21 Max", "NVIDIA H100", ""])
def test_chips_that_do_not(chip: str) -> None:
    assert not emulates_bfloat16(chip)


class Shelf:
    """Loads a new bfloat16 model each time, and counts."""

    def __init__(self, make: Callable[[], Any]):
        self.make, self.loads = make, 0

    def __call__(self) -> LoadedModel:
        self.loads += 1
        model = self.make()
        model.set_dtype(mx.bfloat16)
        tokenizer: Any = NumberTokenizer()
        return LoadedModel("tiny", model, tokenizer, 512)

    def suited(self, cache: Path, chip: str = M1) -> LoadedModel:
        return suited(self, "tiny, weights 1", cache, chip)


def test_a_model_that_float16_holds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shelf = Shelf(qwen3_model)
    loaded = shelf.suited(tmp_path)
    assert (types(loaded.model), loaded.precision, shelf.loads) == ({mx.float16}, SAID, 1)
    monkeypatch.setattr("draftmill.engine.models.precision.flaw_in_float16", lambda model: pytest.fail("tried again"))
    again = shelf.suited(tmp_path)
    assert (types(again.model), again.precision) == ({mx.float16}, SAID)


def test_the_engines_are_then_float16_throughout() -> None:
    model = llama_model()
    model.set_dtype(mx.bfloat16)
    to_float16(model)
    engine = small_engine(model)
    assert engine.target.dtype == mx.float16
    done = run(engine, requests(2, max_tokens=3, longest=5))
    assert {len(it.tokens) for it in done.values()} == {3}
    assert {layer.keys.dtype for layer in engine.pool.layers} == {mx.float16}
    assert find_ways(model).dtype == mx.float16


@pytest.mark.parametrize("chip", ["Apple M3 Max", "NVIDIA H100 80GB HBM3", ""])
def test_on_other_chips_nothing_is_tried(chip: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("draftmill.engine.models.precision.types", lambda model: pytest.fail("looked at"))
    shelf = Shelf(qwen3_model)
    loaded = shelf.suited(tmp_path, chip)
    monkeypatch.undo()
    assert (types(loaded.model), loaded.precision, shelf.loads) == ({mx.bfloat16}, None, 1)
    assert known_precisions(tmp_path) == {}


@pytest.mark.parametrize("dtype", [mx.float16, mx.float32])
def test_other_checkpoints_stay(dtype: mx.Dtype, tmp_path: Path) -> None:
    model = qwen3_model(num_hidden_layers=2)
    model.set_dtype(dtype)
    tokenizer: Any = NumberTokenizer()
    loaded = suited(lambda: LoadedModel("tiny", model, tokenizer, 512), "tiny", tmp_path, M1)
    assert (types(loaded.model), loaded.precision) == ({dtype}, None)


def overflowing() -> Any:
    """Its second layer adds numbers beyond 65,504 to the residual stream; no weight is so large."""
    model = qwen3_model(num_hidden_layers=2)
    down = model.layers[1].mlp.down_proj
    down.weight = 3e4 * mx.sign(down.weight)
    return model


def vanishing() -> Any:
    """The weights of its last norm are too small for float16."""
    model = qwen3_model(num_hidden_layers=2)
    model.model.norm.weight = 1e-9 * model.model.norm.weight
    return model


@pytest.mark.parametrize(
    ("make", "flaw"),
    [(overflowing, "its logits are not finite"), (vanishing, "its logits are off by 1.0e+00, ")],
)
def test_a_model_that_it_does_not_hold(
    make: Callable[[], Any], flaw: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    shelf = Shelf(make)
    loaded = shelf.suited(tmp_path)
    assert types(loaded.model) == {mx.bfloat16}
    assert shelf.loads == 2
    said = f"bfloat16, although Apple M1 Max emulates it: in float16 {flaw}"
    assert loaded.precision
    assert loaded.precision.startswith(said)
    assert [record.message for record in caplog.records] == [f"tiny runs in {loaded.precision}"]
    assert caplog.records[0].levelno == logging.WARNING
    assert shelf.suited(tmp_path).precision == loaded.precision
    assert shelf.loads == 3  # what is known is not tried again


def test_a_model_that_mlx_lm_fails_to_run_stays(tmp_path: Path) -> None:
    def broken() -> Any:
        model = qwen3_model(num_hidden_layers=2)
        model.layers[0].mlp = nn.Linear(3, 3)
        return model

    assert "in float16 mlx-lm fails: " in str(Shelf(broken).suited(tmp_path).precision)


def test_what_is_float32_in_a_bfloat16_checkpoint_stays_float32() -> None:
    model = qwen3_model(num_hidden_layers=2)
    model.set_dtype(mx.bfloat16)
    model.layers[0].self_attn.q_norm.weight = model.layers[0].self_attn.q_norm.weight.astype(mx.float32)
    to_float16(model)
    assert types(model) == {mx.float16, mx.float32}


@pytest.mark.compiles
@pytest.mark.parametrize(
    ("mode", "bits", "group"), [("affine", 4, 32), ("mxfp4", 4, 32), ("mxfp8", 8, 32), ("nvfp4", 4, 16)]
)
@pytest.mark.parametrize("tied", [True, False])
def test_quantised_models_give_float16(mode: str, bits: int, group: int, tied: bool, tmp_path: Path) -> None:
    """Also where MLX would give bfloat16 for an embedding, because its scales are 8 bits wide."""

    def make() -> Any:
        model = qwen3_model(tie_word_embeddings=tied, num_hidden_layers=2)
        model.set_dtype(mx.bfloat16)
        nn.quantize(model, group, bits, mode=mode)
        return model

    model = make()
    before = model(mx.array([[1, 2, 3]]))[0]
    to_float16(model)
    target = adapt(model)
    assert target.embed(mx.array([1])).dtype == mx.float16
    assert target.head(mx.zeros((1, 64), mx.float16)).dtype == mx.float16
    after = model(mx.array([[1, 2, 3]]))[0]
    assert after.dtype == mx.float16
    assert max(distances(after, before)) < MOST
    if mx.default_device() != mx.cpu:  # where half precision crawls
        assert Shelf(make).suited(tmp_path).precision == SAID
        assert settle(target).good
