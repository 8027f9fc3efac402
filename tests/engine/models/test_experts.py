"""Quantised experts give mlx-lm's logits in either order, and the race tries both."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import pytest
from mlx_lm.models.switch_layers import SwitchGLU

from draftmill.engine.models.experts import BiasedExperts
from draftmill.engine.models.kernels_for import shapes
from draftmill.engine.models.load_check import Reference, settle
from draftmill.engine.models.targets import adapt
from draftmill.kernels.gpu.source import Kernel
from draftmill.kernels.operations import Operations
from draftmill.kernels.products import experts
from draftmill.kernels.products.experts import laid_apart
from draftmill.kernels.products.quantisation import Quantisation
from draftmill.kernels.race.contestants import contests
from draftmill.kernels.race.experts import ExpertsShape
from draftmill.kernels.race.keys import KERNEL, OTHER_ORDER, STOCK, ExpertsKind, Key, experts_key
from draftmill.kernels.variants import Recorder
from tests.kernels.emulator import on_cpu
from tests.kernels.forms import EMULATED

from ..small import gpt_oss_model, lfm2_moe_model, quantised, qwen3_5_moe_model, qwen3_moe_model, qwen3_next_model


def mxfp4(model: Any) -> Any:
    """Experts as gpt-oss publishes them."""
    nn.quantize(model, 32, 4, mode="mxfp4", class_predicate=lambda path, layer: hasattr(layer, "num_experts"))
    mx.eval(model.parameters())
    return model


MODELS: dict[str, Callable[[], Any]] = {
    "qwen3_moe": lambda: quantised(qwen3_moe_model()),
    "qwen3_5_moe": lambda: quantised(qwen3_5_moe_model()),
    "qwen3_next": lambda: quantised(qwen3_next_model()),
    "lfm2_moe": lambda: quantised(lfm2_moe_model(), bits=8),
    "gpt_oss": lambda: mxfp4(gpt_oss_model(intermediate_size=64)),
}


def keys(target: Any) -> list[Key]:
    """Those of the contests of a target's experts."""
    found = [shape for shape in shapes(target, None) if isinstance(shape, ExpertsShape)]
    assert len(found) == 1
    return [contest.key for contest in contests(found)]


@pytest.mark.parametrize("family", MODELS)
def test_either_order_gives_the_logits_of_mlx_lm(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    target = adapt(MODELS[family]())
    raced, orders = keys(target), []

    def noting(name: str, form: Callable[..., mx.array]) -> Callable[..., mx.array]:
        def noted(x: mx.array, chosen: mx.array, through: experts.Through) -> mx.array:
            orders.append((chosen.size, name))
            return form(x, chosen, through)

        return noted

    for name in ("as_chosen", "by_expert"):
        monkeypatch.setattr(experts, name, noting(name, getattr(experts, name)))
    reference = Reference.of(target)
    for winner in (STOCK, OTHER_ORDER):
        orders.clear()
        target.operations = Operations(dict.fromkeys(raced, winner))
        assert reference.check(target).good
        other = {order for order in orders if (order[1] == "by_expert") != (order[0] >= 64)}
        assert bool(other) == (winner == OTHER_ORDER)
        assert len(orders) > len(other)


@EMULATED
@pytest.mark.parametrize("family", ["qwen3_moe", "gpt_oss"])
def test_the_kernel_gives_the_logits_of_mlx_lm(family: str) -> None:
    """Affine, and MXFP4 with biases."""
    launched: Counter[str] = Counter()

    def launch(kernel: Kernel, *given: Any) -> list[mx.array]:
        launched[kernel.name] += 1
        return on_cpu(kernel, *given)

    target = adapt(MODELS[family]())
    target.operations = Operations(dict.fromkeys(keys(target), KERNEL), launch, in_place=False)
    assert Reference.of(target).check(target).good
    assert launched["quantized_matmul"] == 3 * launched["route"] > 0


def test_the_model_stays_as_mlx_lm_runs_it() -> None:
    model = MODELS["qwen3_moe"]()
    target = adapt(model)
    assert type(model.layers[0].mlp.switch_mlp) is SwitchGLU
    assert target.mixtures[0] is not model.layers[0].mlp
    assert target.mixtures[1] is None  # a dense MLP


def test_an_order_that_is_wrong_is_named_and_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    target = adapt(MODELS["qwen3_moe"]())
    forms = "draftmill.kernels.operations.experts_in_other_order"
    monkeypatch.setattr(forms, lambda x, chosen, through: experts.experts(x, chosen[:, ::-1], through))
    target.operations = Operations(dict.fromkeys(keys(target), OTHER_ORDER))
    assert settle(target).dropped == ("experts",)
    assert set(target.operations.winners.values()) <= {STOCK}


@pytest.mark.parametrize(("mode", "bits"), [("affine", 3), ("affine", 8), ("mxfp4", 4)])
def test_the_race_tries_both_orders_and_the_kernels_that_fit(mode: str, bits: int) -> None:
    kind = ExpertsKind(64, 32, 6, Quantisation(32, bits, mode))
    for contest in contests([ExpertsShape(kind, 2, mx.float32)], Recorder()):
        names = [*contest.make()]
        assert names[:2] == [STOCK, OTHER_ORDER]
        assert (KERNEL in names) == (bits != 3)
        assert len(names) == (2 if bits == 3 else 4 if contest.key[-1] == 16 or mx.metal.is_available() else 3)


def test_rounds_take_the_winner_of_the_nearest_race() -> None:
    kind = ExpertsKind(64, 32, 6, Quantisation(32, 4))
    raced = [experts_key(tokens, 2, kind, mx.float32)[-1] for tokens in (1, 7, 8, 24, 25, 96, 97, 512)]
    assert raced == [0, 0, 16, 16, 64, 64, 0, 0]


@pytest.mark.parametrize("quantised_ones", [(), ("gate_proj",), ("up_proj", "gate_proj")])
@pytest.mark.parametrize("count", [1, 40])
def test_biased_experts_give_what_mlx_lm_s_do(count: int, quantised_ones: tuple[str, ...]) -> None:
    """Sorted and not; weights of which some or none are quantised."""
    model = gpt_oss_model()
    nn.quantize(model, 32, 4, mode="mxfp4", class_predicate=lambda path, layer: path.endswith(quantised_ones))
    target = adapt(model)
    block: Any = target.mixtures[0]
    assert isinstance(block.experts, BiasedExperts)
    tokens = mx.random.normal((count, target.hidden_size))
    chosen = mx.argsort(mx.random.uniform(shape=(count, 6)), axis=-1)[:, :2]
    assert mx.allclose(block.experts(tokens, chosen), block.experts.glu(tokens, chosen), rtol=1e-5, atol=1e-5)


def test_rows_are_laid_apart_by_their_length() -> None:
    rows = mx.random.normal((5, 8))
    for given in (rows[:, None], mx.expand_dims(rows, (-2, -3)), rows[:, None] + mx.ones((5, 1, 8))):
        laid = laid_apart(given)
        mx.eval(laid)
        assert memoryview(laid).strides[-2:] == (32, 4)  # type: ignore[arg-type] -- a buffer, which MLX's stubs do not say
        assert mx.array_equal(laid, given)


@pytest.mark.skipif(mx.default_device() == mx.cpu, reason="compares a GPU with the CPU")
@pytest.mark.parametrize("make", [gpt_oss_model, qwen3_moe_model, lfm2_moe_model])
def test_a_gpu_s_experts_are_a_cpu_s_for_any_number_of_tokens(make: Callable[[], Any]) -> None:
    """mlx-lm's own module, operation by operation: on CUDA those of gpt-oss were wrong at times."""
    glu: Any = next(module for _, module in make().named_modules() if isinstance(module, SwitchGLU))
    projections = {"up": glu.up_proj, "gate": glu.gate_proj, "down": glu.down_proj}
    mx.random.seed(5)
    for count in [70, 103, 12, 40, 300, 1, 16, 70, 103, 33, 64, 200]:
        tokens = mx.random.normal((count, glu.up_proj.weight.shape[-1]))
        inside = mx.random.normal((2 * count, 1, glu.down_proj.weight.shape[-1]))
        chosen = mx.argsort(mx.random.uniform(shape=(count, glu.up_proj.weight.shape[0])), axis=-1)[:, :2]
        order = mx.argsort(chosen.flatten())
        mx.eval(tokens, inside, chosen, order)

        def given(
            device: Any,
            tokens: mx.array = tokens,
            inside: mx.array = inside,
            chosen: mx.array = chosen,
            order: mx.array = order,
        ) -> dict[str, mx.array]:
            with mx.stream(device):
                ascending, doubled = chosen.flatten()[order], mx.repeat(tokens, 2, axis=0)[order][:, None]
                doubled = laid_apart(doubled)
                found = {
                    name: projection(inside if name == "down" else doubled, ascending, sorted_indices=True)
                    for name, projection in projections.items()
                }
                found["activation"] = glu.activation(inside, inside[::-1])
                found["all"] = glu(tokens, chosen)
                found["ours"] = BiasedExperts(glu)(tokens, chosen)
                mx.eval(found)
                return found

        expected = given(mx.cpu)
        for name, array in given(mx.gpu).items():
            assert mx.allclose(array, expected[name], rtol=1e-4, atol=1e-4), (count, name)
