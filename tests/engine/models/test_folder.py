"""Loading models: each way in which a name or a folder can be wrong is one line that says what to do."""

from __future__ import annotations

import json
import os
import shutil
from importlib.metadata import version
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
from mlx.utils import tree_flatten

from draftmill.engine.models import boxed
from draftmill.engine.models.folder import RECURRENT_CONTEXT, ModelError, context_length, load, unpacks
from draftmill.engine.models.load_check import fingerprint
from tests.engine.plain.architectures import tiny


@pytest.fixture
def folder(boxed_model: Path, tmp_path: Path) -> Path:
    """A model folder that a test may break."""
    return Path(shutil.copytree(boxed_model, tmp_path / "model"))


def failure(name: str | Path, cache: Path) -> str:
    with pytest.raises(ModelError) as caught:
        load(str(name), cache)
    message = str(caught.value)
    assert "\n" not in message
    return message


def edit(file: Path, **changes: object) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def test_on_the_cpu_every_weight_is_float32(boxed_model: Path, cache: Path):
    if mx.default_device() != mx.cpu:
        pytest.skip("this machine computes on a GPU")
    loaded = load(str(boxed_model), cache)
    parameters: dict[str, Any] = dict(tree_flatten(loaded.model.parameters()))
    assert {array.dtype for array in parameters.values()} == {mx.float32}


@pytest.mark.parametrize(
    ("name", "cuda", "plain"), [(boxed.NAME, True, True), ("/any/folder", True, False), (boxed.NAME, False, False)]
)
def test_on_a_gpu_weights_stay_quantised_but_for_the_boxed_ones_on_cuda(
    name: str, cuda: bool, plain: bool, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(mx, "default_device", lambda: mx.gpu)
    monkeypatch.setattr(mx.cuda, "is_available", lambda: cuda)
    assert unpacks(name) == plain


def test_a_folder_that_is_no_model(tmp_path: Path):
    assert "has no config.json" in failure(tmp_path, tmp_path)


def test_a_folder_that_does_not_exist(tmp_path: Path):
    assert "no such model folder" in failure(tmp_path / "nowhere", tmp_path)


def test_a_file_instead_of_a_folder(folder: Path, tmp_path: Path):
    assert "is a file" in failure(folder / "config.json", tmp_path)


def test_a_folder_without_weights(folder: Path, tmp_path: Path):
    (folder / "model.safetensors").unlink()
    assert "has no model*.safetensors" in failure(folder, tmp_path)


@pytest.mark.parametrize("content", ["{", "[]", "\udcff"])
def test_a_broken_config(folder: Path, tmp_path: Path, content: str):
    (folder / "config.json").write_bytes(content.encode("utf-8", "surrogateescape"))
    assert "config.json is not" in failure(folder, tmp_path)


def test_an_architecture_that_nobody_knows(folder: Path, tmp_path: Path):
    for unknown in ("lstm", "../llama", "os.path", 7):
        edit(folder / "config.json", model_type=unknown)
        reason = f"holds model type {unknown!r}, which mlx-lm {version('mlx-lm')} does not know: choose another model"
        assert reason in failure(folder, tmp_path)


def test_a_config_without_a_type(folder: Path, tmp_path: Path):
    edit(folder / "config.json", model_type=None)
    assert f"{folder / 'config.json'} has no model_type" in failure(folder, tmp_path)


def test_a_module_of_mlx_lm_that_ends_the_process(folder: Path, tmp_path: Path):
    edit(folder / "config.json", model_type="olmo")  # it needs a package that is not here
    reason = f"cannot load the model in {folder}: mlx-lm needs another package for models of its type"
    assert reason in failure(folder, tmp_path)


def test_context_lengths_by_other_names_and_none_at_all(folder: Path):
    model = load(str(folder), folder).model
    assert context_length({"text_config": {"n_positions": 77}}, folder, model) == 77
    assert context_length({}, folder, tiny("mamba2")) == RECURRENT_CONTEXT


def test_truncated_weights(folder: Path, tmp_path: Path):
    weights = folder / "model.safetensors"
    os.truncate(weights, weights.stat().st_size // 2)
    assert "model.safetensors is cut off: it has " in failure(folder, tmp_path)


def test_missing_weights(folder: Path, tmp_path: Path):
    weights = mx.load(str(folder / "model.safetensors"))
    assert isinstance(weights, dict)
    kept = {name: array for name, array in weights.items() if ".layers.7." not in name}
    mx.save_safetensors(str(folder / "model.safetensors"), kept)
    said = failure(folder, tmp_path)
    assert "parameters: model.layers.7." in said
    assert said.endswith(", …; fetch or convert the model again")


def test_a_missing_shard(folder: Path, tmp_path: Path):
    weights = mx.load(str(folder / "model.safetensors"))
    assert isinstance(weights, dict)
    (folder / "model.safetensors").unlink()
    parts = {f"model-0000{n}-of-00002.safetensors": [*weights][n - 1 :: 2] for n in (1, 2)}
    for part, names in parts.items():
        mx.save_safetensors(str(folder / part), {name: weights[name] for name in names}, {"format": "mlx"})
    places = {name: part for part, names in parts.items() for name in names}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    load(str(folder), tmp_path)
    missing = folder / [*parts][1]
    missing.unlink()
    assert f"{missing.name} is missing; fetch or convert the model again" in failure(folder, tmp_path)
    missing.symlink_to(tmp_path / "blob")  # as an interrupted download leaves them
    assert f"{missing.name} is missing; fetch or convert the model again" in failure(folder, tmp_path)
    assert fingerprint(folder)


def test_a_folder_without_a_tokenizer(folder: Path, tmp_path: Path):
    """Of some types transformers makes a tokenizer that knows no token at all."""
    for file in folder.glob("token*"):
        file.unlink()
    edit(folder / "config.json", model_type="qwen2")
    assert f"{folder} has no tokenizer: fetch the model's tokenizer.json" in failure(folder, tmp_path)


def test_a_config_without_a_context_length(folder: Path, tmp_path: Path):
    edit(folder / "config.json", max_position_embeddings=None)
    assert "max_position_embeddings" in failure(folder, tmp_path)


def test_code_is_never_run(folder: Path, tmp_path: Path):
    """Folders that other libraries would run code of load as data, or not at all."""
    for name, key in (("config.json", "AutoModelForCausalLM"), ("tokenizer_config.json", "AutoTokenizer")):
        edit(folder / name, auto_map={key: "evil.Evil"})
    (folder / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    assert load(str(folder), tmp_path).tokenizer.encode("x")
    edit(folder / "tokenizer_config.json", tokenizer_class="Evil")
    edit(folder / "config.json", model_file="evil.py")
    assert "has its forward in Python code of its own (evil.py), which is never run" in failure(folder, tmp_path)
    edit(folder / "config.json", model_file=None)
    assert "cannot load the model in" in failure(folder, tmp_path)
    assert not (tmp_path / "ran").exists()


def test_a_name_that_means_nothing(tmp_path: Path):
    assert f"use {boxed.NAME}, a model folder, or a hub id" in failure("smollm", tmp_path)
    assert "cannot fetch no such/name from the model hub" in failure("no such/name", tmp_path)


def test_a_hub_that_cannot_be_reached(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert "check the name and the network" in failure("draftmill/no-such-model", tmp_path)
