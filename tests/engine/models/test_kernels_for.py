"""What is raced for a pair, and what the environment may ask for."""

from __future__ import annotations

from pathlib import Path

import mlx.core as mx
import pytest

from draftmill.engine.models.folder import ModelError
from draftmill.engine.models.kernels_for import choose_kernels, results_file, shapes
from draftmill.engine.models.targets import adapt
from draftmill.kernels.race.contestants import AttentionShape, ProductShape, RecurrentShape, contests
from tests.engine.drafting.test_speculation import random_draft
from tests.engine.small import quantised, qwen3_5_model, qwen3_model


def test_each_shape_of_a_pair_is_raced_once() -> None:
    model = quantised(qwen3_model(head_dim=64, hidden_size=64))
    draft = random_draft(head_dim=64, num_target_layers=len(model.layers))
    found = shapes(adapt(model), draft)
    assert len(found) == len(set(found))
    raced = {"attention", "rotary", "add norm", "quantised product", "choose"}
    assert {contest.key[0] for contest in contests(found)} == raced
    heads = {(shape.heads, shape.dim) for shape in found if isinstance(shape, AttentionShape)}
    assert heads == {(4, 64)} | {(draft.layout.heads, 64)}
    lines = {shape.lines for shape in found if isinstance(shape, ProductShape)}
    target = adapt(model)
    assert {target.layout.width, target.hidden_size, target.vocabulary} <= lines  # joint projection, output, head


def test_a_hybrid_races_its_recurrent_layers() -> None:
    found = shapes(adapt(qwen3_5_model()), None)
    assert [type(shape).__mro__[1] for shape in found].count(RecurrentShape) == 1


@pytest.mark.skipif(mx.default_device() != mx.cpu, reason="there is a GPU")
@pytest.mark.parametrize("wish", ["race", "kernel", "stock"])
def test_without_a_gpu_nothing_is_raced(wish: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DRAFTMILL_KERNELS", wish)
    target = adapt(qwen3_model())
    choose_kernels(target, None, tmp_path)
    assert target.operations.winners == {}
    assert not results_file(tmp_path).exists()


def test_an_unknown_wish_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DRAFTMILL_KERNELS", "fast")
    with pytest.raises(ModelError, match="DRAFTMILL_KERNELS=fast is unknown: set it to race, kernel or stock"):
        choose_kernels(adapt(qwen3_model()), None, tmp_path)
