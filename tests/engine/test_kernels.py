"""The whole engine with the kernels in place of their references, emulated: the same tokens as mlx-lm, one by one."""

from __future__ import annotations

from collections import Counter
from functools import partial
from typing import Any

import mlx.core as mx
import pytest

from draftmill.kernels.ragged_attention import fits, ragged_attention
from draftmill.kernels.recurrence import causal_convolution_by_kernel, gated_delta_by_kernel
from draftmill.kernels.source import Kernel
from tests.kernels.emulator import on_cpu
from tests.kernels.forms import EMULATED

from .small import llama_model, qwen3_5_model, qwen3_model, reference, requests, run
from .test_speculation import random_draft, replaying

BUILDERS = {
    "llama-sliding": lambda: llama_model(
        head_dim=64, layer_types=["full_attention", "sliding_attention", "sliding_attention"], sliding_window=16
    ),
    "qwen3": lambda: qwen3_model(head_dim=64),
    "qwen3.5": lambda: qwen3_5_model(head_dim=64, linear_key_head_dim=32),
}


@EMULATED
@pytest.mark.parametrize("family", BUILDERS)
def test_greedy_equals_mlx_lm_with_kernels(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    launched: Counter[str] = Counter()

    def launch(kernel: Kernel, *given: Any) -> list[mx.array]:
        launched[kernel.name] += 1
        return on_cpu(kernel, *given)

    def attention(queries: mx.array, keys: mx.array, *given: Any) -> mx.array:
        assert fits(queries, keys)
        return ragged_attention(queries, keys, *given, launch=launch)

    for place in ("families.transformer", "drafting"):
        monkeypatch.setattr(f"draftmill.engine.{place}.attention", attention)
    for name, kernel in (("gated_delta", gated_delta_by_kernel), ("causal_convolution", causal_convolution_by_kernel)):
        monkeypatch.setattr(f"draftmill.engine.recurrent.{name}", partial(kernel, launch=launch))

    model, asked = BUILDERS[family](), requests(5, max_tokens=16)
    draft = random_draft(head_dim=64, num_target_layers=len(model.layers), sliding_window=12)
    done = run(replaying(model, asked, lambda i: i % 3 == 0, max_rows=3, draft=draft), asked)
    for request in asked:
        assert list(done[request.id].tokens) == reference(model, request)
    assert launched["attend"] > 30
    assert (launched["gated_delta"] > 20) == (launched["convolve"] > 20) == (family == "qwen3.5")
