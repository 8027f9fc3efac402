"""Under Metal's rules no round copies a pool: kernels write in place, or the next round waits."""

from __future__ import annotations

from dataclasses import replace

import mlx.core as mx
import pytest

from draftmill.engine.drafting.mtp.head import MTP
from draftmill.engine.models.targets import adapt
from draftmill.engine.request import Request
from draftmill.kernels.operations import Operations
from tests.kernels.emulator import on_cpu
from tests.kernels.forms import EMULATED

from .drafting.mtp.heads import random_head
from .drafting.test_speculation import random_draft
from .metal_rules import HeldEngine
from .small import (
    NumberTokenizer,
    llama_model,
    memory_for,
    qwen3_5_model,
    reference,
    requests,
    run,
)

pytestmark = pytest.mark.skipif(mx.default_device() != mx.cpu, reason="the double stands in for a GPU")

BUILDERS = {"llama": llama_model, "qwen3.5": qwen3_5_model}


KINDS = [*((family, draft) for family in BUILDERS for draft in (None, "DFlash")), ("qwen3.5", "MTP head")]


def held(family: str, draft: str | None, in_place: bool) -> HeldEngine:
    target = adapt(BUILDERS[family]())
    target.operations = Operations(launch=on_cpu, in_place=in_place)
    model = random_draft(num_target_layers=len(target.layers)) if draft == "DFlash" else None
    if draft == "MTP head":
        model = MTP(random_head(target.model.args), target)
    memory = memory_for(target, model, 640, 4)
    return HeldEngine(target, NumberTokenizer(), 512, 4, memory, model).begin()


def asked() -> list[Request]:
    """Some begin alike, so that they share pages; there is no room for all of them to end, so that some give way."""
    template = tuple(7 * i % 90 for i in range(130))
    own = requests(6, max_tokens=30)
    return [replace(r, tokens=template + r.tokens) if i % 2 else r for i, r in enumerate(own)]


@EMULATED
@pytest.mark.parametrize(("family", "draft"), KINDS)
def test_kernels_write_in_place(family: str, draft: str | None) -> None:
    engine = held(family, draft, in_place=True)
    done = run(engine, asked(), every=2)
    for request in asked():
        assert list(done[request.id].tokens) == reference(engine.target.model, request)
    assert engine.stats.cached_tokens >= 128
    assert not engine.copied


@pytest.mark.parametrize(("family", "draft"), [kind for kind in KINDS if kind[1]])
def test_where_kernels_cannot_the_next_round_waits(family: str, draft: str) -> None:
    engine = held(family, draft, in_place=False)
    engine._waits = True
    done = run(engine, asked())
    for request in asked():
        assert list(done[request.id].tokens) == reference(engine.target.model, request)
    assert not engine.copied


@pytest.mark.parametrize("draft", [None, "DFlash"])
def test_scattering_ahead_of_the_device_copies(draft: str | None) -> None:
    """The test of the test: this is what must not run on Metal."""
    engine = held("llama", draft, in_place=False)
    run(engine, asked())
    assert len(engine.copied) > engine.stats.rounds / 2
