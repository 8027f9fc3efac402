"""Training of Markov heads: what one learns on a finished backbone, that a killed run goes on, what is exported."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from click.testing import CliRunner
from mlx.utils import tree_flatten

from draftmill.engine.drafting.checkpoint import load_draft
from draftmill.engine.drafting.dflash import DFlashDraft
from draftmill.engine.drafting.dspark import DSparkDraft
from draftmill.engine.engine import Engine
from draftmill.engine.models.targets import adapt
from draftmill.engine.train.blocks import block_hidden, block_labels, block_logits, matches, target_taps
from draftmill.engine.train.export import export
from draftmill.engine.train.features import CANDIDATES, load_features, write_features
from draftmill.engine.train.lessons import HeadLesson
from draftmill.engine.train.markov import load_backbone, with_head
from draftmill.engine.train.minibatches import split
from draftmill.engine.train.prompts import TrainingError
from draftmill.engine.train.recipe import Recipe, draft_config, new_draft
from draftmill.engine.train.responses import load_responses, write_responses
from draftmill.engine.train.run import Run, train
from draftmill.engine.train.trainer import Trainer
from draftmill.kernels.packing import Packing, Span
from draftmill.worker.cli.train import train as command
from tests.engine.drafting.test_speculation import engine_with_draft
from tests.engine.small import lfm2_model, llama_model, qwen3_5_model, reference, requests, run

from .test_train import MASK, RECIPE, ChatTokenizer, model, regular

HEADED = replace(RECIPE, markov_rank=32, learning_rate=2e-2, batch_tokens=256)


def chained() -> Any:
    """A model whose next token depends on the last one alone."""
    made = llama_model(hidden_size=64, intermediate_size=128)
    for layer in made.layers:
        for output in (layer.self_attn.o_proj, layer.mlp.down_proj):
            output.weight = mx.zeros_like(output.weight)
    return made


FAMILIES = {"chained": chained, "llama": model, "qwen3.5": lambda: qwen3_5_model(num_hidden_layers=4)}


def backbone_of(family: str, folder: Path) -> Path:
    """An untrained draft for a small model, exported."""
    target = adapt(FAMILIES[family]())
    export(new_draft(target, draft_config(target, RECIPE, MASK), 3), folder, 8)
    return folder


def engine_of(family: str) -> Engine:
    return Engine(adapt(FAMILIES[family]()), ChatTokenizer(), 512, 8, memory=2**24)


def run_of(family: str, folder: Path, steps: int = 20, recipe: Recipe = HEADED) -> Run:
    prompts = folder / "prompts.jsonl"
    prompts.write_text("".join(json.dumps({"prompt": f"{i} 2 {i}"}) + "\n" for i in range(40)))
    backbone = backbone_of(family, folder / "backbone")
    return Run("tiny", folder / "out", [prompts], [], 0, 20, steps, None, None, 8, recipe, backbone)


def headed(seed: int = 3, kind: str = "vanilla") -> tuple[Any, DFlashDraft, DSparkDraft]:
    """A target, a backbone, and that with a head whose weights are random."""
    target = adapt(model())
    backbone = new_draft(target, draft_config(target, RECIPE, MASK), seed)
    draft = with_head(backbone, target, replace(HEADED, markov_head=kind))
    mx.random.seed(seed)
    draft.markov_head.markov_w2.weight = mx.random.normal(draft.markov_head.markov_w2.weight.shape)
    return target, backbone, draft


@pytest.mark.parametrize("family", [qwen3_5_model, lfm2_model])
def test_taps_of_hybrid_targets_are_those_of_decoding(family: Any) -> None:
    target, tokens = adapt(family()), mx.arange(40)
    taps = tuple(range(len(target.layers)))
    span = Span(0, 40, (0,), 40, True, 0, fresh=True, final=True)
    packing = Packing.of([span], mx.arange(40, dtype=mx.int32), mx.zeros(1, mx.int32))
    _, expected = target.forward(tokens, packing, target.make_state(1), taps)
    assert mx.allclose(target_taps(target, tokens[None], taps)[0], mx.concatenate(expected, axis=-1), 1e-3, 1e-3)


def test_a_new_head_adds_nothing() -> None:
    target, backbone, _ = headed()
    draft = with_head(backbone, target, HEADED)
    tokens, anchors = mx.arange(20, dtype=mx.int32)[None], mx.array([[4, 9]], mx.int32)
    taps = target_taps(target, tokens, draft.config.target_layer_ids)
    before, after = (block_logits(target, each, taps, tokens, anchors) for each in (backbone, draft))
    assert mx.array_equal(before, after)


@pytest.mark.parametrize("kind", ["vanilla", "gated", "rnn"])
def test_a_walk_that_is_told_the_truth_is_right_where_drafting_is(kind: str) -> None:
    """Slot after slot with the head's own drafts, as decoding does, against the pass that training makes."""
    target, _, draft = headed(kind=kind)
    sequence = regular(1)[0]
    tokens = mx.array(sequence.tokens)[None]
    lengths, anchors = mx.array([tokens.size]), mx.arange(3, 20, dtype=mx.int32)[None]
    taps = target_taps(target, tokens, draft.config.target_layer_ids)
    logits = block_logits(target, draft, taps, tokens, anchors)
    labels, valid = block_labels(tokens, lengths, anchors, RECIPE.block)
    hidden = block_hidden(target, draft, taps, tokens, anchors)[0]
    base = target.head(hidden)
    head, state, before, drafts = draft.markov_head, None, tokens[0, anchors[0]], []
    for slot in range(RECIPE.block - 1):
        added, state = head(before, hidden[:, slot], state, target.operations)
        before = mx.argmax(base[:, slot] + added, axis=-1)
        drafts.append(before)
    right = mx.cumprod((mx.stack(drafts, axis=1) == labels[0]).astype(mx.int32) * valid[0], axis=-1).sum(axis=-1)
    assert right.tolist() == matches(logits, labels, valid)[0].tolist()


def test_features_hold_what_the_backbone_says(tmp_path: Path) -> None:
    target, backbone, _ = headed()
    sequences, recipe = regular(5), replace(HEADED, batch_tokens=128)
    files = write_features(target, backbone, sequences, recipe, tmp_path, lambda line: None)
    assert len(files) == 3  # of two sequences of at most 64 tokens each
    found = load_features(files[0])
    assert found.candidates.shape == (2 * recipe.anchors, recipe.block - 1, CANDIDATES)
    scores = np.array(target.head(mx.array(found.hidden.astype(np.float32))))
    assert np.allclose(np.take_along_axis(scores, found.candidates, axis=-1), found.logits, atol=0.02)
    best = scores.argmax(axis=-1)
    assert (found.candidates == best[..., None]).any(axis=-1).all()
    followers = (found.before + 1) % 12  # what `regular` counts on to
    assert (found.candidates[..., 0] == followers)[found.valid].all()


def test_only_missing_features_are_made(tmp_path: Path) -> None:
    target, backbone, _ = headed()
    given = target, backbone, regular(5), replace(HEADED, batch_tokens=128), tmp_path
    first, second, third = write_features(*given, lambda line: None)
    made, before = first.stat().st_mtime_ns, load_features(second)
    second.unlink()
    third.with_suffix(".tmp.npz").write_bytes(b"cut off")
    said: list[str] = []
    assert write_features(*given, said.append) == [first, second, third]
    assert said == ["features of 4 of 5 responses"]
    assert first.stat().st_mtime_ns == made
    assert np.array_equal(load_features(second).logits, before.logits)


@pytest.mark.compiles
def test_a_head_learns_what_the_target_says_next(tmp_path: Path) -> None:
    """The backbone knows nothing yet; what the target says after a token is soon learnt."""
    learner = trainer(tmp_path)
    before = learner.measure()
    assert learner.run()
    assert before < 1.3
    assert learner.measure() > before + 0.5


@pytest.mark.parametrize("family", ["llama", "qwen3.5"])
def test_a_whole_run_makes_a_draft_that_decodes(family: str, tmp_path: Path) -> None:
    given = run_of(family, tmp_path)
    story = train(given, engine_of(family), lambda line: None)
    draft = load_draft(given.out)
    assert isinstance(draft, DSparkDraft)
    config = json.loads((given.out / "config.json").read_text())
    assert config["quantization"]["markov_head.markov_w1"] == {"group_size": 32, "bits": 8}
    assert (draft.config.markov_rank, draft.first) == (HEADED.markov_rank, 1)
    assert "Markov head" in (given.out / "README.md").read_text()
    assert story.steps == 20
    bare = load_draft(tmp_path / "backbone")
    before, after = (dense(each.layers[1].mlp.down_proj) for each in (bare, draft))
    assert mx.allclose(before, after, atol=0.01)  # rounded once more
    assert mx.array_equal(bare.norm.weight, draft.norm.weight)
    draft.set_dtype(mx.float32)
    asked, target = requests(4), FAMILIES[family]()
    done = run(engine_with_draft(target, draft), asked)
    assert all(list(done[each.id].tokens) == reference(target, each) for each in asked)


STEPS = 60


def dense(layer: Any) -> mx.array:
    return mx.dequantize(layer.weight, layer.scales, layer.biases, layer.group_size, layer.bits)


KILLED = """
import sys
from pathlib import Path
from tests.engine.train.test_markov import trainer
trainer(Path(sys.argv[1]), lambda line: print(line, flush=True)).run(checkpoint_seconds=0.1)
"""


def trainer(folder: Path, report: Any = lambda line: None) -> Trainer:
    """A trainer of a head, which goes on from what it finds in a folder."""
    engine = engine_of("chained")
    target = engine.target
    backbone = new_draft(target, draft_config(target, RECIPE, MASK), 3)
    prompts = [(1 + i, 2 + i % 7) for i in range(60)]
    write_responses(engine, prompts, folder, 24, report)
    training, held_back = split(load_responses(folder), HEADED.held_back, HEADED.seed)
    files = write_features(target, backbone, training, HEADED, folder, report)
    lesson = HeadLesson(target, with_head(backbone, target, HEADED), files, held_back, HEADED)
    return Trainer(lesson, HEADED, folder, STEPS, report=report)


def killed(folder: Path, after: str) -> None:
    """Train in another process, which is killed once it has said something that begins so."""
    command = [sys.executable, "-c", KILLED, str(folder)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        assert any(line.startswith(after) for line in process.stdout)
        process.send_signal(signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL


def test_a_killed_run_goes_on_and_ends_with_the_same_weights(tmp_path: Path) -> None:
    whole = trainer(tmp_path / "whole")
    whole.run()
    cut = tmp_path / "cut"
    killed(cut, "step 50")
    made = {file: file.stat().st_mtime_ns for file in cut.glob("features-*.npz")}
    resumed = trainer(cut)
    assert 0 < resumed.progress.step < STEPS
    assert {file: file.stat().st_mtime_ns for file in cut.glob("features-*.npz")} == made
    assert resumed.run()
    weights = [dict(tree_flatten(each.module.parameters())) for each in (whole, resumed)]
    # A GPU adds up gradients of the same code in any order.
    same = mx.array_equal if mx.default_device() == mx.cpu else partial(mx.allclose, rtol=1e-3, atol=1e-4)
    assert all(same(weights[0][name], weights[1][name]) for name in weights[0])


def test_a_backbone_of_another_kind_is_refused(tmp_path: Path) -> None:
    target, _, draft = headed()
    export(draft, tmp_path, 8)
    with pytest.raises(TrainingError, match="is a DSparkDraftModel; only a DFlashDraftModel takes a Markov head"):
        load_backbone(tmp_path, target, 8)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--backbone", "x"], "--backbone is for drafts with a Markov head: give --markov-rank"),
        (["--markov-head", "rnn"], "--markov-head is for drafts with a Markov head: give --markov-rank"),
        (["--backbone", "x", "--markov-rank", "8", "--block", "4"], "--block is what the --backbone has already"),
    ],
)
def test_options_without_effect_are_refused(options: list[str], message: str, tmp_path: Path) -> None:
    result = CliRunner().invoke(command, ["--out", str(tmp_path), *options])
    assert result.exit_code == 2
    assert message in result.output
