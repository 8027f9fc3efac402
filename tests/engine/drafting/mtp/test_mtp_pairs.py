"""Which pairs draft by an MTP head: one that their target's checkpoint carries, if they have no draft."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
from mlx_lm.utils import save_model
from tokenizers import Tokenizer, models, pre_tokenizers

from draftmill.engine.depth.calibration import Pace
from draftmill.engine.drafting.load import named
from draftmill.engine.engine import Engine
from draftmill.engine.models.folder import ModelError
from draftmill.engine.models.pairs import Pair
from draftmill.engine.models.targets import adapt
from draftmill.engine.request import Completion, Sampling
from tests.engine.drafting.mtp.heads import random_head, stored
from tests.engine.small import VOCABULARY, qwen3_5_model, reference, requests, run


@pytest.fixture
def target(tmp_path: Path) -> Path:
    """A small Qwen3.5 as mlx-lm writes it, without a head."""
    model, folder = qwen3_5_model(), tmp_path / "target"
    save_model(folder, model)
    text = vars(model.language_model.args) | {"max_position_embeddings": 512}
    (folder / "config.json").write_text(json.dumps({"model_type": "qwen3_5", "text_config": text}))
    tokenizer: Any = Tokenizer(models.WordLevel({f"{n}": n for n in range(VOCABULARY)}, unk_token="0"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.save(str(folder / "tokenizer.json"))
    kind = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "1"}
    (folder / "tokenizer_config.json").write_text(json.dumps(kind))
    return folder


def load(target: Path, draft: Path | None = None, **options: Any) -> Engine:
    pair = Pair(str(target), str(target), str(draft) if draft else None)
    return Engine.load(pair, target.parent, max_rows=2, memory=2**25, **options)


def add_head(folder: Path, target: Path, **config: Any) -> None:
    folder.mkdir(exist_ok=True)
    file = "mtp.safetensors" if folder == target else "model.safetensors"
    mx.save_safetensors(str(folder / file), stored(random_head(adapt(qwen3_5_model()).model.args)))
    if config:
        (folder / "config.json").write_text(json.dumps(config))


def test_a_target_without_a_draft_takes_its_own_head(target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("draftmill.engine.depth.calibration.ON_CPU", Pace(0.0, 0.0))
    add_head(target, target)
    engine = load(target, drafts=("mtp",))
    assert engine.drafting == "MTP head, blocks of 4"
    engine.scheduler.depths = lambda rows, prompt: [3] * len(rows)
    asked, model = requests(3, max_tokens=8), qwen3_5_model()
    done = run(engine, asked)
    for request in asked:
        expected = reference(model, request)
        assert list(done[request.id].tokens) == (expected[: expected.index(1)] if 1 in expected else expected)
    assert set(engine.stats.drafted_by) == {"mtp"}
    assert engine.budget
    assert engine.budget.cost.steps(2)[1] > 0


@pytest.mark.skipif(mx.default_device() != mx.cpu, reason="on a GPU rounds are timed before the first answer")
def test_the_first_answer_does_not_wait_for_what_rounds_cost(target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("draftmill.engine.depth.calibration.ON_CPU", Pace(0.0, 0.0))
    add_head(target, target)
    engine, model = load(target), qwen3_5_model()
    lengths = zip(requests(2), (2, 24), strict=True)
    short, long = (replace(r, sampling=Sampling(max_tokens=n, ignore_eos=True)) for r, n in lengths)
    engine.add(short)
    engine.add(long)
    done: list[Completion] = []
    while not done:
        done = engine.step()
        assert engine.budget is None
    assert engine.stats.drafted == 0
    done += run(engine, []).values()
    assert engine.budget
    assert {each.id: list(each.tokens) for each in done} == {r.id: reference(model, r) for r in (short, long)}
    assert load(target).budget  # what was measured is known to the next start


@pytest.mark.skipif(mx.default_device() != mx.cpu, reason="on a GPU rounds are timed before the first answer")
def test_a_lone_request_has_its_answer_before_that(target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("draftmill.engine.depth.calibration.ON_CPU", Pace(0.0, 0.0))
    add_head(target, target)
    engine = load(target)
    assert not engine.busy
    engine.add(replace(requests(1)[0], sampling=Sampling(max_tokens=3)))
    while not engine.step():
        pass
    assert engine.busy
    assert engine.budget is None
    assert engine.step() == []
    assert engine.budget
    while engine.busy:
        assert engine.step() == []


def test_without_a_head_or_without_being_asked_it_does_not(target: Path) -> None:
    with pytest.raises(ModelError, match=r"has no MTP head that can be used: leave mtp out of --drafts"):
        load(target, drafts=("mtp",))
    add_head(target, target)
    assert load(target, depth=0).drafter is None


def test_a_head_in_a_folder_of_its_own_is_a_draft(target: Path, tmp_path: Path) -> None:
    folder = tmp_path / "target-MTP-4bit"
    add_head(folder, target, model_type="qwen3_5_mtp")
    engine = load(target, folder, depth=2)
    assert engine.drafting == "MTP head, blocks of 4"


def test_the_kind_of_a_draft_is_known_before_it_is_fetched() -> None:
    head, draft = "mlx-community/Qwen3.5-9B-MTP-4bit", "z-lab/Qwen3.5-9B-DFlash"
    assert named(head, ("mtp", "lookup")) == head
    assert named(head, ("dflash",)) is None
    assert named(draft, ("mtp",)) is None
    assert named(draft, ("dflash", "mtp")) == draft
    assert named(None, ("dflash", "mtp")) is None
