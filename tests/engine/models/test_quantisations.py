"""Every quantisation that mlx-lm writes loads, and gives mlx-lm's own greedy tokens."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx_lm
import pytest
from mlx.utils import tree_flatten
from mlx_lm.convert import QUANT_RECIPES, mixed_quant_predicate_builder
from mlx_lm.utils import quantize_model, save_config, save_model
from tokenizers import Tokenizer, models, pre_tokenizers

from draftmill.engine.models.folder import load

from ..small import VOCABULARY, llama_model, qwen3_moe_model, requests, run, small_engine

if mx.default_device() != mx.cpu:
    pytest.skip("its expectations are float32's", allow_module_level=True)


def llama(**changes: Any) -> Any:
    return llama_model(hidden_size=128, intermediate_size=128, num_hidden_layers=2, **changes)


def experts() -> Any:
    return qwen3_moe_model(hidden_size=128, intermediate_size=128, moe_intermediate_size=128, num_hidden_layers=2)


@dataclass(frozen=True)
class Quantisation:
    """As `mlx_lm.convert` takes it; `recipe` is the name of one that mixes bits by layer."""

    bits: int = 4
    group: int = 64
    mode: str = "affine"
    recipe: str | None = None
    global_scale: bool = False

    def __str__(self) -> str:
        return self.recipe or f"{self.mode}-{self.bits}-{self.group}"

    def folder(self, model: Any, folder: Path) -> str:
        """The model quantised, in a folder as mlx-lm writes it."""
        config = {**vars(model.args), "max_position_embeddings": 512}
        predicate: Any = mixed_quant_predicate_builder(self.recipe, model, self.group) if self.recipe else None
        model, config = quantize_model(
            model, config, self.group, self.bits, self.mode, self.global_scale, quant_predicate=predicate
        )
        save_model(folder, model)
        save_config(config, folder / "config.json")
        tokenizer: Any = Tokenizer(models.WordLevel({f"{n}": n for n in range(VOCABULARY)}, unk_token="0"))
        tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
        tokenizer.save(str(folder / "tokenizer.json"))
        kind = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "1"}
        (folder / "tokenizer_config.json").write_text(json.dumps(kind))
        return str(folder)


AFFINE = [Quantisation(bits, group) for bits in (2, 3, 4, 5, 6, 8) for group in (32, 64, 128)]
FLOATS = [Quantisation(4, 32, "mxfp4"), Quantisation(8, 32, "mxfp8"), Quantisation(4, 16, "nvfp4")]
MIXED = [Quantisation(recipe=recipe) for recipe in QUANT_RECIPES]


def check(build: Callable[[], Any], quantisation: Quantisation, tmp_path: Path) -> None:
    folder, asked = quantisation.folder(build(), tmp_path), requests(2, max_tokens=8, longest=9)
    theirs: Any = mlx_lm.load(folder)[0]
    ours = load(folder, tmp_path).model
    weights: Any = tree_flatten(ours.parameters())
    assert {array.dtype for _, array in weights} == {mx.float32}
    done = run(small_engine(ours), asked)
    for request in asked:
        tokens = list(done[request.id].tokens)
        text = mx.array([[*request.tokens, *tokens]])
        # One pass over a text tells all tokens that mlx-lm would have chosen in it, one after the other.
        assert mx.argmax(theirs(text)[0, len(request.tokens) - 1 : -1], axis=-1).tolist() == tokens


@pytest.mark.parametrize("quantisation", [*AFFINE, *FLOATS, *MIXED], ids=str)
def test_a_dense_model(quantisation: Quantisation, tmp_path: Path) -> None:
    check(llama, quantisation, tmp_path)


@pytest.mark.parametrize("quantisation", [*AFFINE[::4], *FLOATS, *MIXED[:2]], ids=str)
def test_quantised_experts(quantisation: Quantisation, tmp_path: Path) -> None:
    check(experts, quantisation, tmp_path)


def test_experts_with_scales_of_their_own(tmp_path: Path) -> None:
    """mlx-lm runs them on GPUs only, so the weights are compared, with what MLX makes of each expert."""
    folder = Quantisation(4, 16, "nvfp4", global_scale=True).folder(experts(), tmp_path)
    theirs: Any = mlx_lm.load(folder)[0]
    ours: Any = load(folder, tmp_path).model
    for name in ("gate_proj", "up_proj", "down_proj"):
        packed, plain = (model.layers[0].mlp.switch_mlp[name] for model in (theirs, ours))
        each = zip(packed.weight, packed.scales, packed.global_scale, strict=True)
        expected = [
            mx.dequantize(weight, scales, mode="nvfp4", global_scale=scale, dtype=mx.float32)
            for weight, scales, scale in each
        ]
        assert mx.allclose(plain.weight, mx.stack(expected), rtol=1e-5, atol=1e-7)
    tokens = run(small_engine(ours), requests(1, max_tokens=4))["r0"].tokens
    assert len(tokens) == 4
