"""Loading folders: those without an adapter run plainly and say so, and what cannot be had is refused by name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
from mlx.utils import tree_flatten
from mlx_lm import load, stream_generate

from draftmill.engine.engine import Engine
from draftmill.engine.load import known_remarks, load_engine
from draftmill.engine.models.config_keys import HONOURED
from draftmill.engine.models.folder import ModelError
from draftmill.engine.models.pairs import Pair
from draftmill.engine.plain.engine import PlainEngine
from draftmill.engine.request import Adapters, Request, RequestError, Sampling
from tests.engine.models import adapters
from tests.engine.small import run
from tests.producer.small_model import plain_model, small_model

if mx.default_device() != mx.cpu:
    pytest.skip("its expectations are float32's", allow_module_level=True)


@pytest.fixture(scope="module")
def folder(boxed_model: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    return plain_model(boxed_model, tmp_path_factory.mktemp("phi3"))


def test_a_folder_without_an_adapter_runs_plainly_and_says_so(
    folder: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    engine = load_engine(Pair(folder, folder), tmp_path, memory=1 << 28, depth=0)
    assert isinstance(engine, PlainEngine)
    assert [record.message for record in caplog.records] == ["plain: no adapter for phi3"]
    assert known_remarks(tmp_path) == {folder: "plain: no adapter for phi3"}
    model, tokenizer = load(folder)[:2]
    texts = ["Hello", "The tower on the hill", "One, two, three, four, five, six"]
    asked = [Request(text, tuple(tokenizer.encode(text)), Sampling(max_tokens=20)) for text in texts]
    done = run(engine, asked)
    for text in texts:
        responses = list(stream_generate(model, tokenizer, text, max_tokens=20))
        assert list(done[text].tokens) == [it.token for it in responses if it.token not in tokenizer.eos_token_ids]


@pytest.mark.parametrize("family", ["llama", "mistral"])
def test_one_with_an_adapter_takes_it(boxed_model: Path, tmp_path: Path, family: str) -> None:
    folder = small_model(boxed_model, tmp_path / "llama")
    config = tmp_path / "llama" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"model_type": family}))
    assert isinstance(load_engine(Pair(folder, folder), tmp_path, memory=1 << 28), Engine)


def test_a_configuration_beyond_its_adapter_runs_plainly_and_says_so(
    boxed_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """As if the adapter for Llama knew of no windows, which mlx-lm honours."""
    folder = small_model(boxed_model, tmp_path / "llama")
    file = tmp_path / "llama" / "config.json"
    windows = {"layer_types": ["sliding_attention", "full_attention"], "sliding_window": 4}
    file.write_text(json.dumps(json.loads(file.read_text()) | windows))
    pair, text = Pair(folder, folder), "The tower on the hill stands by the sea"
    with monkeypatch.context() as patch:
        patch.setitem(HONOURED, "llama", HONOURED["llama"] - windows.keys())
        engine = load_engine(pair, tmp_path, memory=1 << 28)
        with pytest.raises(
            ModelError, match=f"of type llama with layer_types, for which .*: leave out draft {folder}$"
        ):
            load_engine(Pair(folder, folder, folder), tmp_path)
    remark = "plain: no adapter for llama with layer_types"
    assert isinstance(engine, PlainEngine)
    assert engine.drafting == remark
    assert [record.message for record in caplog.records] == [remark]
    assert known_remarks(tmp_path) == {folder: remark}
    model, tokenizer = load(folder)[:2]
    request = Request("r", tuple(tokenizer.encode(text)), Sampling(max_tokens=20, ignore_eos=True))
    expected = [it.token for it in stream_generate(model, tokenizer, text, max_tokens=20)]
    own = load_engine(pair, tmp_path, memory=1 << 28)
    assert isinstance(own, Engine)
    for each in (engine, own):
        assert list(run(each, [request])["r"].tokens) == expected


def test_mlx_lm_takes_one_lora_adapter_for_all_and_no_others(folder: str, tmp_path: Path) -> None:
    path = tmp_path / "own"
    plain: Any = load(folder)[0]
    adapters.write(path, plain, layers=2, keys=("self_attn.qkv_proj", "mlp.down_proj"))
    pair, text = Pair(folder, folder), "The tower on the hill"
    engine = load_engine(pair, tmp_path, memory=1 << 28, adapters=Adapters({"own": path}, "own"))
    assert isinstance(engine, PlainEngine)
    model, tokenizer = load(folder, adapter_path=str(path))[:2]
    said, alone = ([each.token for each in stream_generate(m, tokenizer, text, max_tokens=9)] for m in (model, plain))
    tokens, sampling = tuple(tokenizer.encode(text)), Sampling(max_tokens=9, ignore_eos=True)
    done = run(engine, [Request("r", tokens, sampling), Request("named", tokens, sampling, adapter="own")])
    assert list(done["r"].tokens) == list(done["named"].tokens) == said != alone
    with pytest.raises(RequestError, match="adapter 'other' is unknown to this worker: it has own"):
        engine.add(Request("other", tokens, sampling, adapter="other"))
    with pytest.raises(
        ModelError, match=r"of type phi3, which mlx-lm runs with one LoRA adapter at most: give --adapter"
    ):
        load_engine(pair, tmp_path, adapters=Adapters({"own": path}))
    with pytest.raises(
        ModelError, match=r"cannot load the model in .* with .*nowhere: The adapter path does not exist"
    ):
        load_engine(pair, tmp_path, adapters=Adapters({"own": tmp_path / "nowhere"}, "own"))


@pytest.mark.parametrize(
    ("draft", "depth", "bits", "vain"),
    [("z-lab/some", None, None, "draft z-lab/some"), (None, 3, None, "--depth 3"), (None, None, 4, "--draft-bits 4")],
)
def test_what_needs_an_adapter_is_refused_by_name(
    folder: str, tmp_path: Path, draft: str | None, depth: int | None, bits: int | None, vain: str
) -> None:
    with pytest.raises(ModelError, match=f"for which there is no adapter and so no drafts: leave out {vain}$"):
        load_engine(Pair(folder, folder, draft), tmp_path, depth=depth, draft_bits=bits)


def test_a_model_that_does_not_run_is_one_line(folder: str, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"no memory for a single row: 1 bytes allowed, .* needed; raise --memory"):
        load_engine(Pair(folder, folder), tmp_path, memory=1)
    broken = tmp_path / "broken"
    broken.mkdir()
    for file in Path(folder).iterdir():
        (broken / file.name).symlink_to(file)
    weights = dict(tree_flatten(load(folder)[0].parameters()))
    (broken / "model.safetensors").unlink()
    mx.save_safetensors(str(broken / "model.safetensors"), {k: v for k, v in weights.items() if "norm" not in k})
    with pytest.raises(ModelError, match=r"cannot load the model in .*; fetch or convert the model again") as caught:
        load_engine(Pair(str(broken), str(broken)), tmp_path)
    assert "\n" not in str(caught.value)
