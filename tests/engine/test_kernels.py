"""The whole engine with the kernels in place of their references, emulated: the same tokens as mlx-lm, one by one."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Any

import mlx.core as mx
import pytest

from draftmill.engine.drafting.dflash import DFlashDraft
from draftmill.engine.models.kernels_for import shapes
from draftmill.engine.models.targets import adapt
from draftmill.kernels.gpu.source import Kernel
from draftmill.kernels.operations import Operations
from draftmill.kernels.race.contestants import ChoiceShape, contests
from draftmill.kernels.race.keys import KERNEL
from draftmill.kernels.variants import Recorder, compiled
from tests.kernels.emulator import on_cpu
from tests.kernels.forms import EMULATED

from .drafting.test_speculation import changing, engine_with_draft, random_draft, replaying
from .models.gemma4 import gemma4_model
from .small import (
    gemma2_model,
    gpt_oss_model,
    lfm2_model,
    llama_model,
    quantised,
    qwen3_5_model,
    qwen3_model,
    reference,
    requests,
    run,
)

BUILDERS = {
    "llama-sliding": lambda: llama_model(
        head_dim=64, layer_types=["full_attention", "sliding_attention", "sliding_attention"], sliding_window=16
    ),
    "qwen3": lambda: qwen3_model(head_dim=64),
    "llama": lambda: llama_model(head_dim=64),
    "qwen3-4bit": lambda: quantised(qwen3_model(head_dim=64, hidden_size=64)),
    "gemma2": lambda: gemma2_model(head_dim=64),
    "gemma4": lambda: gemma4_model(head_dim=64, global_head_dim=512),
    "gpt-oss": lambda: gpt_oss_model(head_dim=64),
    "qwen3.5": lambda: qwen3_5_model(head_dim=256, linear_key_head_dim=32),  # of which half turns
    "lfm2": lambda: lfm2_model(
        hidden_size=64, block_dim=64, num_attention_heads=1, num_key_value_heads=1, conv_bias=False
    ),
}


def small_draft(model: Any) -> DFlashDraft:
    return random_draft(head_dim=64, num_target_layers=len(model.layers), sliding_window=12)


@EMULATED
@pytest.mark.parametrize("family", BUILDERS)
def test_greedy_equals_mlx_lm_with_kernels(family: str) -> None:
    launched: Counter[str] = Counter()

    def launch(kernel: Kernel, *given: Any) -> list[mx.array]:
        launched[kernel.name] += 1
        return on_cpu(kernel, *given)

    model, asked = BUILDERS[family](), requests(5, max_tokens=10)
    expected = {request.id: reference(model, request) for request in asked}
    draft = small_draft(model)
    every = list(contests(shapes(adapt(model), draft), Recorder()))
    assert all(KERNEL in contest.make() for contest in every)
    operations = Operations({contest.key: KERNEL for contest in every}, launch, in_place=True)
    engine = replaying(model, asked, lambda i: i % 3 == 0, max_rows=3, draft=draft, operations=operations)
    done = run(engine, asked)
    for request in asked:
        assert list(done[request.id].tokens) == expected[request.id]
    assert min(launched[name] for name in ("attend", "rotate", "add_norm")) > 15
    assert (launched["gated_delta"] > 10) == (family == "qwen3.5")
    assert (launched["convolve"] > 10) == (family in ("qwen3.5", "lfm2"))
    assert (launched["quantized_matmul"] > 30) == (family == "qwen3-4bit")


@pytest.mark.parametrize("family", ["gemma4", "lfm2", "llama-sliding", "qwen3-4bit", "qwen3.5"])
def test_no_kernel_is_compiled_while_requests_are_served(family: str) -> None:
    """Kernels run nothing here, so what is generated means nothing; but rounds are as varied as they can be."""
    model, loaded, serving = BUILDERS[family](), Recorder(), Recorder()
    draft = small_draft(model)
    every = shapes(adapt(model), draft)
    winners = {contest.key: KERNEL for contest in contests(every)}
    operations = compiled(Operations(winners, loaded, in_place=True), every)
    asked = [
        *requests(10, max_tokens=9, longest=3),
        *requests(4, max_tokens=30, longest=90),
        *requests(1, max_tokens=300, longest=150, temperature=0.8),
    ]
    asked = [replace(request, id=f"{place}") for place, request in enumerate(asked)]
    for every_rounds, step, rows in ((1, 1, 20), (9, 5, 3)):
        engine = engine_with_draft(
            model, draft, max_rows=rows, slots=8192, operations=replace(operations, launch=serving)
        )
        engine.scheduler.depths = changing(step)
        assert len(run(engine, list(asked), every_rounds)) == len(asked)
    assert {"attend", "combine", "rotate", "add_norm", "store"} <= {kernel.name for kernel, _, _ in serving.variants}
    assert serving.variants <= loaded.variants
    assert len(serving.variants) > len(loaded.variants) / 2


@EMULATED
def test_sampled_rows_draw_the_same_with_the_kernel() -> None:
    """Beside greedy rows, which the same launch serves."""
    launched: Counter[str] = Counter()

    def launch(kernel: Kernel, *given: Any) -> list[mx.array]:
        launched[kernel.name] += 1
        return on_cpu(kernel, *given)

    model, sampled = llama_model(), requests(3, max_tokens=8, temperature=0.9, top_p=0.9, top_k=30)
    asked = [*sampled[:2], *requests(3, max_tokens=8)[2:]]
    expected = run(engine_with_draft(model, max_rows=2), asked)
    every = contests([ChoiceShape(adapt(model).vocabulary, mx.float32)], launch)
    operations = Operations({contest.key: KERNEL for contest in every}, launch, in_place=False)
    done = run(engine_with_draft(model, max_rows=2, operations=operations), asked)
    assert launched["choose"] > 8
    assert {id: one.tokens for id, one in done.items()} == {id: one.tokens for id, one in expected.items()}
