"""MTP heads: entries and drafts of packed rows against formulas of one row; every form in which heads are stored."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import pytest
from mlx_lm.utils import dequantize_model

from draftmill.engine.choose.sampling import choose
from draftmill.engine.drafting.drafter import DraftRow
from draftmill.engine.drafting.mtp.drafter import MTPDrafter
from draftmill.engine.drafting.mtp.head import MTP
from draftmill.engine.drafting.mtp.load import arrays, has_own_head, is_head, own_head, separate_head
from draftmill.engine.models.folder import ModelError
from draftmill.engine.models.targets import adapt
from draftmill.engine.request import Request, Sampling
from draftmill.kernels.packing import Packing, Span
from tests.engine.drafting.mtp.heads import Formulas, random_head, stored
from tests.engine.small import VOCABULARY, llama_model, qwen3_5_model, qwen3_5_moe_model

BUILDERS: dict[str, Callable[[], Any]] = {
    "dense": qwen3_5_model,
    "untied": lambda: qwen3_5_model(tie_word_embeddings=False),
    "moe": qwen3_5_moe_model,
}
PAGES = 8


class Case:
    """A target with a random head, rows of random tokens, and each row's hidden states by mlx-lm."""

    def __init__(self, builder: str, lengths: tuple[int, ...]):
        self.model = BUILDERS[builder]()
        self.target = adapt(self.model)
        self.head = random_head(self.target.model.args)
        self.weights = stored(self.head)
        self.drafter = MTPDrafter(MTP(self.head, self.target), self.target, PAGES * len(lengths), len(lengths))
        mx.random.seed(7)
        self.texts: Any = [mx.random.randint(0, VOCABULARY, (length,)).tolist() for length in lengths]
        self.hidden = [self.model.language_model.model(mx.array([text]))[0] for text in self.texts]

    def formulas(self) -> Formulas:
        return Formulas(self.weights, self.target.model.args, self.target.embed.weight)

    def pages(self, row: int) -> range:
        return range(row * PAGES, (row + 1) * PAGES)

    def extend(self, shares: list[tuple[int, int, int]], counts: list[int] | None = None, exact: bool = True) -> None:
        """Write entries of some rows: which row, its first one, how many; garbage past counts."""
        spans: list[Span] = []
        hidden: list[mx.array] = []
        tokens: list[int] = []
        positions: list[int] = []
        counts = counts or [count for *_, count in shares]
        for (row, first, count), valid in zip(shares, counts, strict=True):
            spans.append(Span(len(tokens), count, self.pages(row), first + count, exact, row))
            hidden += [self.hidden[row][first : first + valid], mx.full((count - valid, 64), 3.0)]
            tokens += self.texts[row][first + 1 : first + valid + 1] + [11] * (count - valid)
            positions += range(first, first + count)
        packing = Packing.of(spans, mx.array(positions, mx.int32))
        self.drafter.extend(mx.concatenate(hidden), mx.array(tokens), packing, mx.array(counts))

    def expected(self, row: int, depth: int, sampling: Sampling, length: int) -> tuple[mx.array, list[int]]:
        """Of a row of so many tokens what its last entry returns, and the drafts after it, by the formulas."""
        formulas, ahead = self.formulas(), mx.zeros(0)
        for position in range(length - 1):
            ahead = formulas.entry(self.hidden[row][position], self.texts[row][position + 1])
        first, drafts = ahead, []
        for step in range(depth):
            logits = self.target.head(ahead[None])
            token: Any = choose(logits, [sampling], mx.array([length + step])).item()
            drafts.append(token)
            ahead = formulas.entry(ahead, token)
        return first, drafts


@pytest.mark.parametrize("builder", BUILDERS)
def test_entries_of_packed_rows_equal_the_formulas(builder: str) -> None:
    case = Case(builder, (30, 12, 41))
    case.extend([(0, 0, 29), (1, 0, 5)])
    case.extend([(2, 0, 40), (1, 5, 6)])
    for row, length in enumerate((30, 12, 41)):
        expected, _ = case.expected(row, 0, Sampling(), length)
        found = case.drafter.begins[row]
        assert mx.abs(found - expected).max() < 1e-5 * mx.abs(expected).max()


@pytest.mark.parametrize("builder", BUILDERS)
@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_drafts_after_rounds_of_which_a_part_was_accepted_equal_the_formulas(builder: str, temperature: float) -> None:
    case = Case(builder, (30, 12, 41))
    case.extend([(0, 0, 20), (1, 0, 8), (2, 0, 36)])
    # Rows drafted before: what they wrote past the cursor is overwritten.
    lengths, depths = [22, 10, 39], [3, 0, 2]
    samplings = [Sampling(max_tokens=9, seed=40 + row, temperature=temperature) for row in range(3)]
    rows = [DraftRow(Request("", (0,), own), i, case.pages(i), 50, False, 3) for i, own in enumerate(samplings)]
    case.drafter.draft_blocks(rows, mx.zeros(3, mx.int32), mx.array([20, 8, 36], mx.int32))
    case.extend([(0, 20, 4), (1, 8, 1), (2, 36, 4)], [1, 1, 2], exact=False)
    cursors = mx.array([length - 1 for length in lengths], mx.int32)
    asked = [
        DraftRow(Request("", (0,), samplings[i]), i, case.pages(i), 50, False, depths[i])
        for i in (1, 2, 0)
        if depths[i]
    ]
    found = case.drafter.draft_blocks(asked, mx.zeros(3, mx.int32), cursors).tolist()
    expected = [case.expected(row, depths[row], samplings[row], lengths[row])[1] for row in (2, 0)]
    assert found == [*expected[0], *expected[1]]
    again = case.drafter.draft_blocks(asked, mx.zeros(3, mx.int32), cursors).tolist()
    assert again == found


def published(weights: dict[str, mx.array], experts: str | None) -> dict[str, mx.array]:
    """A head's weights as they are published: norms less 1, experts in one array or numbered."""
    names: dict[str, mx.array] = {}
    switch = {name.split(".")[-2]: x for name, x in weights.items() if "switch_mlp" in name}
    for name, x in weights.items():
        if "switch_mlp" not in name:
            names[f"mtp.{name}"] = x - 1 if x.ndim == 1 else x
    at = "mtp.layers.0.mlp.experts"
    if experts == "fused":
        names[f"{at}.gate_up_proj"] = mx.concatenate([switch["gate_proj"], switch["up_proj"]], axis=1)
        names[f"{at}.down_proj"] = switch["down_proj"]
    if experts == "numbered":
        for projection, all_experts in switch.items():
            names |= {f"{at}.{i}.{projection}.weight": x for i, x in enumerate(all_experts)}
    return names


def save(folder: Path, weights: dict[str, mx.array], file: str = "model.safetensors", **config: Any) -> Path:
    (folder / file).parent.mkdir(parents=True, exist_ok=True)
    mx.save_safetensors(str(folder / file), weights)
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def same(mtp: MTP | None, weights: dict[str, mx.array], tolerance: float = 1e-6) -> bool:
    assert mtp
    found = stored(mtp.own)
    assert found.keys() == weights.keys()
    return all(mx.allclose(found[name], weights[name], rtol=0, atol=tolerance).item() for name in weights)


@pytest.mark.parametrize(("builder", "experts"), [("dense", None), ("moe", "fused"), ("moe", "numbered")])
@pytest.mark.parametrize("prefix", ["", "language_model."])
def test_a_head_in_the_targets_own_checkpoint(tmp_path: Path, builder: str, experts: str | None, prefix: str) -> None:
    target = adapt(BUILDERS[builder]())
    weights = stored(random_head(target.model.args))
    own = {prefix + name: x for name, x in published(weights, experts).items()}
    conv = {"model.language_model.layers.0.linear_attn.conv1d.weight": mx.zeros((8, 1, 4))}
    folder = save(tmp_path, {**own, **conv})
    assert has_own_head(folder)
    assert same(own_head(target, folder), weights)


def test_a_head_that_is_only_announced_is_none(tmp_path: Path) -> None:
    folder = save(tmp_path, {"model.norm.weight": mx.ones(64)}, text_config={"mtp_num_hidden_layers": 1})
    assert not has_own_head(folder)
    assert own_head(adapt(qwen3_5_model()), folder) is None


@pytest.mark.parametrize("less_one", [False, True])
@pytest.mark.parametrize("file", ["mtp.safetensors", "mtp/model.safetensors"])
def test_a_head_in_a_file_beside_the_target(tmp_path: Path, file: str, less_one: bool) -> None:
    target = adapt(qwen3_5_model())
    weights = stored(random_head(target.model.args))
    save(tmp_path, {"model.norm.weight": mx.ones(64)})
    kept = {name: x - 1 if less_one and x.ndim == 1 else x for name, x in weights.items()}
    assert same(own_head(target, save(tmp_path, kept, file)), weights)


@pytest.mark.parametrize("builder", ["dense", "moe"])
@pytest.mark.parametrize("bits", [4, 8])
def test_a_quantised_head_in_a_folder_of_its_own(tmp_path: Path, builder: str, bits: int) -> None:
    target = adapt(BUILDERS[builder]())
    head = random_head(target.model.args)
    nn.quantize(head, group_size=32, bits=bits)
    quantised = stored(head)
    folder = save(tmp_path, quantised, model_type="qwen3_5_mtp", quantization={"group_size": 64, "bits": 2})
    assert is_head(folder)
    plain = {
        name: mx.dequantize(x, quantised[f"{name[:-6]}scales"], quantised[f"{name[:-6]}biases"], 32, bits)
        if f"{name[:-6]}scales" in quantised
        else x
        for name, x in quantised.items()
        if name.endswith("weight")
    }
    loaded = separate_head(target, folder)
    dequantize_model(loaded.own)  # a CPU has done so already
    assert same(loaded, plain)


def test_heads_that_cannot_be_used_are_refused_by_name(tmp_path: Path) -> None:
    target = adapt(qwen3_5_model())
    weights = stored(random_head(target.model.args))
    for change, reason in [
        ({"fc.weight": None}, "fc.weight is missing"),
        ({"fc.weight": mx.zeros((64, 64))}, r"fc.weight is \(64, 64\)"),
        ({"layers.1.input_layernorm.weight": mx.ones(64)}, "layers.1.input_layernorm.weight is not known"),
        ({"fc.weight": mx.full((64, 128), mx.nan)}, "fc.weight holds NaN"),
    ]:
        kept = {name: x for name, x in {**weights, **change}.items() if x is not None}
        with pytest.raises(ModelError, match=reason):
            separate_head(target, save(tmp_path, kept, model_type="qwen3_5_mtp"))
    with pytest.raises(ModelError, match="heads of Llama models are not supported"):
        separate_head(adapt(llama_model()), save(tmp_path, weights, model_type="qwen3_5_mtp"))
    assert len(arrays(random_head(target.model.args))) == 15
