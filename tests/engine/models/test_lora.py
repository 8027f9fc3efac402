"""Rows of different LoRA adapters share rounds, and each is what its own fused model would say."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest

from draftmill.engine.engine import Engine
from draftmill.engine.models.boxed import ModelError
from draftmill.engine.models.linear import Adapted
from draftmill.engine.models.lora import lay, read
from draftmill.engine.models.targets import adapt
from draftmill.engine.request import Adapters, Request, RequestError
from draftmill.kernels.gpu.source import Kernel
from draftmill.kernels.operations import Operations
from draftmill.kernels.race.contestants import contests
from draftmill.kernels.race.keys import KERNEL
from draftmill.kernels.race.low_rank import LowRankShape
from tests.engine.drafting.test_speculation import Replay, random_draft
from tests.engine.small import (
    NumberTokenizer,
    lfm2_model,
    llama_model,
    memory_for,
    quantised,
    qwen3_next_model,
    reference,
    requests,
    run,
)
from tests.kernels.emulator import on_cpu
from tests.kernels.forms import EMULATED

from . import adapters
from .gemma4 import gemma4_model

UNKNOWN = r"^adapter 'squeal' is unknown to this worker: "

RECURRENT = ("linear_attn.in_proj_qkvz", "linear_attn.in_proj_ba", "linear_attn.out_proj")

FAMILIES: dict[str, tuple[Callable[[], Any], tuple[str, ...]]] = {
    "llama": (llama_model, ()),
    "quantised": (lambda: quantised(llama_model()), ()),
    "mixed-bits": (lambda: quantised(llama_model(attention_bias=True), v_proj=8, up_proj=8), adapters.EVERYTHING),
    "gemma4": (gemma4_model, (*adapters.EVERYTHING, "per_layer_input_gate", "per_layer_projection")),
    "lfm2": (lfm2_model, ("conv.in_proj", "conv.out_proj", "self_attn.out_proj", "feed_forward.w1", "feed_forward.w2")),
    "qwen3-next": (qwen3_next_model, (*adapters.ATTENTION, "self_attn.o_proj", *RECURRENT)),
}


def engine_of(model: Any, served: Adapters, max_rows: int = 16, draft: bool = False) -> Engine:
    target = adapt(model)
    lay(read(served), target, model)
    drafts = random_draft(num_target_layers=len(target.layers), hidden_size=target.hidden_size) if draft else None
    memory = memory_for(target, drafts, 4096, max_rows)
    return Engine(target, NumberTokenizer(), 512, max_rows, memory, draft=drafts, adapters=served)


def replayed(engine: Engine, texts: dict[str, list[int]], wrong: Callable[[int], bool]) -> Engine:
    assert engine.drafter
    engine.drafter = Replay(engine.drafter.draft, engine.target, engine.pool.pages).replay(texts, wrong)
    return engine


def mixed(count: int, names: Sequence[str | None]) -> list[Request]:
    """Requests that name these adapters in turn."""
    return [replace(each, adapter=names[n % len(names)]) for n, each in enumerate(requests(count, max_tokens=12))]


@pytest.mark.parametrize("name", FAMILIES)
def test_each_row_is_what_its_own_fused_model_says(name: str, tmp_path: Path) -> None:
    build, keys = FAMILIES[name]
    folders, models = adapters.family(tmp_path, build, keys)
    base = build()
    of = {None: build(), **dict(zip(folders, models, strict=True))}
    asked = mixed(16, list(of))
    expected = {each.id: reference(of[each.adapter], each) for each in asked}
    assert sum(expected[each.id] != reference(of[None], each) for each in asked[:9]) > 6
    texts = {each.id: [*each.tokens, *expected[each.id]] for each in asked}
    for wrong in (None, lambda i: i % 3 == 0):
        engine = engine_of(base, Adapters(folders), draft=wrong is not None)
        done = run(replayed(engine, texts, wrong) if wrong else engine, asked)
        assert {id: list(completion.tokens) for id, completion in done.items()} == expected
        assert not wrong or engine.stats.accepted > 70


@EMULATED
@pytest.mark.parametrize("name", ["llama", "mixed-bits"])
def test_rows_are_the_same_with_the_kernel(name: str, tmp_path: Path) -> None:
    launched: list[str] = []

    def launch(kernel: Kernel, *given: Any) -> list[mx.array]:
        launched.append(kernel.name)
        return on_cpu(kernel, *given)

    build, keys = FAMILIES[name]
    folders, models = adapters.family(tmp_path, build, keys)
    of, asked = {None: build(), **dict(zip(folders, models, strict=True))}, mixed(9, [None, *folders])
    engine = engine_of(build(), Adapters(folders))
    shapes = [shape for shape in engine.target.shapes if isinstance(shape, LowRankShape)]
    winners = {contest.key: KERNEL for contest in contests(shapes)}
    engine.target.operations = Operations(winners, launch, in_place=False)
    done = run(engine, asked)
    assert all(list(done[each.id].tokens) == reference(of[each.adapter], each) for each in asked)
    assert set(launched) == {"add_low_rank"}
    assert len(launched) > 100


def test_without_adapters_nothing_is_added(tmp_path: Path) -> None:
    model = llama_model()
    target = adapt(model)
    lay([], target, model)
    assert not any(isinstance(each, Adapted) for layers, *_ in target.linears() for each in layers)
    folders = {"upper": adapters.write(tmp_path, llama_model(), layers=1, keys=adapters.ATTENTION)}
    lay(read(Adapters(folders)), target, model)
    adapted = [isinstance(layers[index], Adapted) for layers, index, _ in target.linears()]
    assert adapted == [False] * 8 + [True] + [False] * 3


def test_one_adapter_for_all(tmp_path: Path) -> None:
    folders = {"mine": adapters.write(tmp_path, llama_model())}
    engine = engine_of(llama_model(), Adapters(folders, "mine"))
    model, asked = adapters.fused(llama_model(), tmp_path), mixed(4, [None, "mine"])
    done = run(engine, asked)
    assert all(list(done[each.id].tokens) == reference(model, each) for each in asked)


@pytest.mark.parametrize("draft", [False, True])
def test_adapters_share_no_prefixes(draft: bool, tmp_path: Path) -> None:
    folders = {name: adapters.write(tmp_path / name, llama_model(), n) for n, name in enumerate("ab")}
    of = {None: llama_model(), **{name: adapters.fused(llama_model(), folder) for name, folder in folders.items()}}
    template = tuple(range(90)) + tuple(range(60))
    asked = [replace(each, tokens=template + each.tokens) for each in mixed(12, [None, "a", "b"])]
    engine = engine_of(llama_model(), Adapters(folders), max_rows=3, draft=draft)
    done = run(engine, asked)
    assert all(list(done[each.id].tokens) == reference(of[each.adapter], each) for each in asked)
    cached = [sum(done[each.id].cached_tokens > 0 for each in asked if each.adapter == name) for name in of]
    assert cached == [3, 3, 3]


def test_an_unknown_name_is_told_those_that_there_are(tmp_path: Path) -> None:
    folders = {name: adapters.write(tmp_path / name, llama_model()) for name in ("sql", "summaries")}
    engine = engine_of(llama_model(), Adapters(folders))
    (asked,) = mixed(1, ["squeal"])
    with pytest.raises(RequestError, match=UNKNOWN + r"it has sql, summaries; name one of them$"):
        engine.add(asked)
    with pytest.raises(RequestError, match=UNKNOWN + r"it has none; start workers with --adapters$"):
        engine_of(llama_model(), Adapters()).add(asked)


def weight(folder: Path, name: str, array: mx.array | None) -> None:
    file = folder / "adapters.safetensors"
    weights: Any = mx.load(str(file))
    weights.pop(name, None)
    mx.eval(weights)
    mx.save_safetensors(str(file), weights if array is None else {**weights, name: array})


HEAD, FIRST = "lm_head", "model.layers.0.self_attn.q_proj"

BROKEN: dict[str, tuple[Callable[[Path], Any], str]] = {
    "dora": (lambda f: adapters.change(f, fine_tune_type="dora"), "holds a DoRA adapter, and only LoRA runs beside"),
    "full": (lambda f: adapters.change(f, fine_tune_type="full"), "holds a full fine-tune, and only LoRA runs beside"),
    "peft": (lambda f: adapters.change(f, peft_type="LORA"), "holds an adapter of PEFT's, not of mlx-lm's"),
    "scale": (lambda f: adapters.change(f, lora_parameters={"rank": 4}), "does not say lora_parameters.scale"),
    "json": (lambda f: (f / "adapter_config.json").write_text("{"), "cannot read"),
    "list": (lambda f: (f / "adapter_config.json").write_text(json.dumps([])), "is not a JSON object"),
    "no config": (lambda f: (f / "adapter_config.json").unlink(), "has no adapter_config.json: name a folder"),
    "no weights": (lambda f: (f / "adapters.safetensors").unlink(), "cannot read"),
    "magnitudes": (lambda f: weight(f, f"{FIRST}.m", mx.ones(4)), f"has {FIRST}.m, which is no part of a LoRA"),
    "half": (lambda f: weight(f, f"{FIRST}.lora_b", None), f"lacks {FIRST}.lora_b"),
    "head": (
        lambda f: [weight(f, f"{HEAD}.{leaf}", mx.ones((64, 96))) for leaf in ("lora_a", "lora_b")],
        f"changes {HEAD}, and only linear layers of attention, recurrence and plain MLPs may differ",
    ),
    "layer": (
        lambda f: [weight(f, f"model.layers.9.q.{leaf}", mx.ones((4, 4))) for leaf in ("lora_a", "lora_b")],
        "was made for another model: this one has no model.layers.9.q",
    ),
    "shape": (
        lambda f: weight(f, f"{FIRST}.lora_a", mx.ones((32, 4))),
        f"was made for another model: in this one {FIRST} has 64 inputs and 128 outputs",
    ),
    "infinite": (
        lambda f: weight(f, f"{FIRST}.lora_a", mx.full((64, 4), float("inf"))),
        f"has numbers in {FIRST} that are not finite",
    ),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_what_is_no_lora_of_this_model_is_refused_by_name(kind: str, tmp_path: Path) -> None:
    adapters.write(tmp_path, llama_model())
    spoil, reason = BROKEN[kind]
    spoil(tmp_path)
    with pytest.raises(ModelError) as refused:
        engine_of(llama_model(), Adapters({"it": tmp_path}))
    assert reason in str(refused.value)
    assert "\n" not in str(refused.value)


def test_experts_are_refused_by_name(tmp_path: Path) -> None:
    keys = (*adapters.ATTENTION, "mlp.switch_mlp.gate_proj")
    adapters.write(tmp_path, qwen3_next_model(), keys=keys)
    with pytest.raises(ModelError, match=r"changes model\.layers\.\d\.mlp\.switch_mlp\.gate_proj, and only linear"):
        engine_of(qwen3_next_model(), Adapters({"it": tmp_path}))
