"""Training: what a block may see, that it learns, resumes exactly, and exports what the engine loads."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_flatten

from draftmill.engine.drafting.checkpoint import load_draft
from draftmill.engine.drafting.dflash import DFlashDraft
from draftmill.engine.engine import Engine
from draftmill.engine.models.targets import adapt
from draftmill.engine.train import responses as store
from draftmill.engine.train.blocks import block_labels, block_logits, matches, target_taps
from draftmill.engine.train.lessons import BlockLesson
from draftmill.engine.train.minibatches import Minibatches, split, usable
from draftmill.engine.train.prompts import TrainingError, read_prompts, write_prompts
from draftmill.engine.train.recipe import Recipe, draft_config, new_draft, unused_token
from draftmill.engine.train.replay import Replay
from draftmill.engine.train.responses import Transcript, load_responses, write_responses
from draftmill.engine.train.run import Run, train
from draftmill.engine.train.trainer import Trainer
from draftmill.kernels.fused import rotary
from draftmill.kernels.fused.rotary import Norms
from draftmill.kernels.packing import Packing, Span
from tests.engine.models.gemma4 import gemma4_model
from tests.engine.small import VOCABULARY, NumberTokenizer, gemma3_model, llama_model, small_engine

MASK = 95
RECIPE = Recipe(
    layers=2, taps=2, block=5, anchors=6, batch_tokens=512, longest=64, learning_rate=2e-3, warmup=5, held_back=4
)


class ChatTokenizer(NumberTokenizer):
    """Numbers, with a chat template: a user message is put between 90 and 91."""

    chat_template = "90 {} 91 "
    bos_token_id = pad_token_id = unk_token_id = None
    added_tokens_decoder: ClassVar[dict[int, Any]] = {}

    def __init__(self, end: int = 0):
        super().__init__((end,))
        self.eos_token_id = end

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        return [int(word) for word in text.split() if word.isdigit()]

    def apply_chat_template(self, messages: list[dict[str, str]], tokenize: bool = True, **options: Any) -> Any:
        text = self.chat_template.format(messages[0]["content"])
        return self.encode(text) if tokenize else text


def model() -> Any:
    return llama_model(hidden_size=64, intermediate_size=128)


def pair(seed: int = 3) -> tuple[Any, DFlashDraft]:
    target = adapt(model())
    return target, new_draft(target, draft_config(target, RECIPE, MASK), seed)


def engine(end: int = 0) -> Engine:
    return Engine(adapt(model()), ChatTokenizer(end), 512, 8, memory=2**24)


def regular(count: int = 60) -> list[Transcript]:
    """Sequences that can be learnt: each response counts on from its prompt, round a clock of twelve."""
    random = np.random.default_rng(0)
    made = []
    for index in range(count):
        start, prompt, length = (int(random.integers(*bounds)) for bounds in ((0, 12), (3, 9), (24, 50)))
        made.append(Transcript(index, prompt, (start + np.arange(length)).astype(np.int32) % 12))
    return made


def logits_of(target: Any, draft: DFlashDraft, tokens: mx.array, anchors: mx.array) -> mx.array:
    return block_logits(target, draft, target_taps(target, tokens, draft.config.target_layer_ids), tokens, anchors)


def test_blocks_see_the_context_before_their_anchor_and_nothing_else() -> None:
    target, draft = pair()
    mx.random.seed(0)
    tokens = mx.random.randint(0, 90, (1, 40)).astype(mx.int32)
    anchors = mx.array([[10, 12, 25]], mx.int32)
    before = logits_of(target, draft, tokens, anchors)

    def changed(at: int) -> list[bool]:
        other = mx.array(tokens)
        other[0, at] = (tokens[0, at] + 1) % 90
        after = logits_of(target, draft, other, anchors)
        blocks: Any = (mx.abs(after - before).max(axis=(0, 2, 3)) > 1e-6).tolist()
        return blocks

    assert changed(39) == [False, False, False]
    assert changed(26) == [False, False, False]
    assert changed(25) == [False, False, True]
    assert changed(24) == [False, False, True]
    assert changed(12) == [False, True, True]
    assert changed(11) == [False, True, True]
    assert changed(10) == [True, True, True]
    assert changed(3) == [True, True, True]
    alone = logits_of(target, draft, tokens, anchors[:, 1:2])
    assert mx.allclose(alone[:, 0], before[:, 1], atol=1e-5)


@pytest.mark.parametrize(("causal", "window"), [(False, None), (True, None), (None, 6)])
def test_a_training_pass_equals_drafting_a_single_block(causal: bool | None, window: int | None) -> None:
    target, draft = pair()
    kinds = ("full_attention", "sliding_attention" if window else "full_attention")
    draft.config = replace(draft.config, is_causal=causal, sliding_window=window, layer_types=kinds)
    mx.random.seed(1)
    tokens = mx.random.randint(0, 90, (2, 30)).astype(mx.int32)
    anchors = mx.array([[4, 11], [20, 29]], mx.int32)
    together = logits_of(target, draft, tokens, anchors)
    for row in range(2):
        for place in range(2):
            alone = single_block(target, draft, tokens[row], int(anchors[row, place]))
            assert mx.allclose(together[row, place], alone, atol=1e-4)


def single_block(target: Any, draft: DFlashDraft, tokens: mx.array, anchor: int) -> mx.array:
    """Logits of a block as decoding drafts it: cached context, then the block, one attention after the other."""
    config = draft.config
    taps = target_taps(target, tokens[None], config.target_layer_ids)[0, :anchor]
    cached = draft.context(taps, mx.arange(anchor))
    block = [int(tokens[anchor])] + [config.mask_token_id] * (config.block_size - 1)
    positions = anchor + mx.arange(config.block_size)

    def attend(layer: int, projected: mx.array, turns: mx.array, norms: Norms) -> mx.array:
        queries, keys, values = rotary.split(projected, turns, norms, draft.layout)
        old_keys, old_values = cached[layer]
        keys, values = mx.concatenate([old_keys, keys]), mx.concatenate([old_values, values])
        groups = config.num_attention_heads // config.num_key_value_heads
        keys, values = mx.repeat(keys, groups, axis=1), mx.repeat(values, groups, axis=1)
        scores = mx.einsum("qhd,khd->hqk", queries, keys) * config.head_dim**-0.5
        places = mx.arange(anchor + config.block_size)
        seen = mx.ones((config.block_size, places.size), mx.bool_)
        if draft.causal(layer):
            seen = places <= positions[:, None]
        window = draft.window(layer)
        if window is not None:
            seen = seen & ((places >= anchor) | (positions[:, None] - places < window))
        scores = mx.softmax(mx.where(seen, scores, -mx.inf), axis=-1)
        return mx.einsum("hqk,khd->qhd", scores, values).reshape(config.block_size, -1)

    hidden = draft(target.embed(mx.array(block)), positions, attend)
    return draft.finish(target.head(hidden[1:]))


def test_what_a_draft_is_given_by_a_target_of_another_shape() -> None:
    """Scaled embeddings, windows and norms around zero are the target's own affair."""
    target = adapt(gemma3_model())
    tokens = mx.arange(40)
    packing = Packing.of([Span(0, 40, (0,), 40)], mx.arange(40, dtype=mx.int32))
    _, taps = target.forward(tokens, packing, target.make_state(1), (0, 2))
    assert mx.allclose(target_taps(target, tokens[None], (0, 2))[0], mx.concatenate(taps, axis=-1), 1e-4, 1e-4)
    draft = new_draft(target, draft_config(target, RECIPE, MASK), 0)
    attn, norm = target.layers[2].self_attn, target.layers[2].pre_feedforward_layernorm
    assert mx.array_equal(draft.norm.weight, 1 + target.body.norm.weight)
    assert mx.array_equal(draft.layers[1].self_attn.k_norm.weight, 1 + attn.k_norm.weight)
    assert mx.array_equal(draft.layers[1].post_attention_layernorm.weight, 1 + norm.weight)


def test_a_target_whose_layers_take_more_is_refused_at_once(tmp_path: Path) -> None:
    engine = small_engine(gemma4_model())
    run = Run("gemma", tmp_path, (), (), 0, 8, 1, None, MASK, 16)
    with pytest.raises(TrainingError, match="drafts of models such as gemma cannot be trained here"):
        train(run, engine, print)


def test_labels_end_with_the_sequence() -> None:
    tokens = mx.arange(8, dtype=mx.int32)[None]
    labels, valid = block_labels(tokens, mx.array([7]), mx.array([[2, 5]], mx.int32), 4)
    assert labels[0, 0].tolist() == [3, 4, 5]
    assert labels[0, 1, 0].item() == 6
    assert valid.tolist() == [[[True, True, True], [True, False, False]]]


def trainer(folder: Path, steps: int, seed: int = 3) -> Trainer:
    target, draft = pair(seed)
    training, held_back = split(regular(), RECIPE.held_back, RECIPE.seed)
    lesson = BlockLesson(target, draft, training, held_back, RECIPE)
    return Trainer(lesson, RECIPE, folder, steps, report=lambda line: None)


def test_training_learns(tmp_path: Path) -> None:
    run = trainer(tmp_path, 60)
    before = run.measure()
    assert run.run()
    assert before < 1.5
    assert run.progress.measured[-1][1] > 2


def test_a_resumed_run_ends_with_the_same_weights(tmp_path: Path) -> None:
    whole = trainer(tmp_path / "whole", 20)
    whole.run()
    cut = trainer(tmp_path / "cut", 20)
    assert not cut.run(stop=lambda: cut.progress.step == 9)
    resumed = trainer(tmp_path / "cut", 20, seed=4)
    assert resumed.progress.step == 9
    assert resumed.run()
    weights = [dict(tree_flatten(each.module.parameters())) for each in (whole, resumed)]
    assert all(mx.array_equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_a_checkpoint_of_another_recipe_is_refused(tmp_path: Path) -> None:
    trainer(tmp_path, 1).save()
    target, draft = pair()
    with pytest.raises(TrainingError, match="other settings"):
        Trainer(BlockLesson(target, draft, regular(), regular()[:4], Recipe()), Recipe(), tmp_path, 5)


def test_replay_walks_as_decoding_would() -> None:
    target, draft = pair()
    sequences = regular(6)
    rounds = emitted = 0
    for sequence in sequences:
        tokens = mx.array(sequence.tokens)[None]
        lengths, anchor, end = mx.array([tokens.size]), sequence.prompt, tokens.size - 1
        emitted += end - anchor
        while anchor < end:
            at = mx.array([[anchor]], mx.int32)
            right = matches(logits_of(target, draft, tokens, at), *block_labels(tokens, lengths, at, RECIPE.block))
            anchor += np.array(right).item() + 1
            rounds += 1
    assert Replay(target, draft, 256).tokens_per_round(sequences) == pytest.approx(emitted / rounds)


def test_responses_go_on_where_they_were_cut(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "SHARD", 4)
    prompts = [(1 + i, 2, 3) for i in range(10)]
    write_responses(engine(), prompts[:6], tmp_path / "cut", 12, lambda line: None)
    write_responses(engine(), prompts, tmp_path / "cut", 12, lambda line: None)
    write_responses(engine(), prompts, tmp_path / "whole", 12, lambda line: None)
    cut, whole = load_responses(tmp_path / "cut"), load_responses(tmp_path / "whole")
    assert [each.index for each in cut] == list(range(10))
    assert [each.tokens.tolist() for each in cut] == [each.tokens.tolist() for each in whole]
    assert all(each.tokens[: each.prompt].tolist() == list(prompts[each.index]) for each in whole)


def test_an_end_token_is_part_of_the_response(tmp_path: Path) -> None:
    prompts = [(1 + i, 2, 3) for i in range(8)]
    write_responses(engine(end=VOCABULARY), prompts, tmp_path / "long", 12, lambda line: None)
    end = int(load_responses(tmp_path / "long")[0].tokens[6])
    write_responses(engine(end=end), prompts, tmp_path / "ending", 12, lambda line: None)
    assert load_responses(tmp_path / "ending")[0].tokens.tolist()[-1] == end
    assert len(load_responses(tmp_path / "ending")[0].tokens) <= 7


def test_the_target_writes_prompts_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("draftmill.engine.train.prompts.OPENINGS", ("", "5 6 "))
    written = list(write_prompts(engine(end=7), 24, 0, known=[], longest=40))
    assert 4 < len(written) == len(set(written))
    assert any(prompt.startswith("5 6 ") for prompt in written)
    again = list(write_prompts(engine(end=7), 24, 0, known=written[:1], longest=40))
    assert again == written[1:]


def test_anchors_lie_in_the_response() -> None:
    batches = Minibatches(usable(regular(), RECIPE.longest), RECIPE)
    for step in range(2 * batches.epoch_steps):
        batch = batches.batch(step)
        assert (batch.anchors < batch.lengths[:, None] - 1).all()
        assert (batch.anchors >= 3).all()
        assert (np.diff(batch.anchors, axis=1) >= 0).all()


def test_a_whole_run_makes_a_draft_that_loads(tmp_path: Path) -> None:
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text("".join(json.dumps({"prompt": f"{i} 2 {i}"}) + "\n" for i in range(40)))
    measured = tmp_path / "measured.jsonl"
    measured.write_text(prompts.read_text().splitlines()[5] + "\n")
    run = Run("tiny", tmp_path / "out", [prompts], [measured], 0, 20, 10, None, MASK, 8, RECIPE)
    said: list[str] = []
    story = train(run, engine(), said.append)
    assert story.prompts == {"prompts.jsonl": 39}
    assert story.measured["measured"][1] >= 1
    draft = load_draft(run.out)
    assert draft.config.target_layer_ids == (1,)
    assert draft.config.mask_token_id == MASK
    assert "tokens per round" in (run.out / "README.md").read_text()
    again = train(run, engine(), said.append)
    assert again.held_back_figure == story.held_back_figure
    assert "going on from step 10" in said


@pytest.mark.parametrize(("line", "message"), [('{"text": "x"}', ":2 is no JSON object"), ("[", ":2 is no JSON")])
def test_a_bad_prompt_file_is_one_line(tmp_path: Path, line: str, message: str) -> None:
    file = tmp_path / "p.jsonl"
    file.write_text('{"prompt": "a"}\n' + line + "\n")
    with pytest.raises(TrainingError, match=message):
        read_prompts([file])
    with pytest.raises(TrainingError, match="cannot read"):
        read_prompts([tmp_path / "none.jsonl"])


def test_the_mask_token_is_an_unused_special_one() -> None:
    class Added:
        def __init__(self, content: str, special: bool = True):
            self.content, self.special = content, special

    class Tokenizer(ChatTokenizer):
        added_tokens_decoder: ClassVar[dict[int, Any]] = {
            0: Added("<end>"),
            1: Added("<user>"),
            2: Added("<spare>"),
            3: Added("x", False),
        }

    assert unused_token(Tokenizer(0), "<user> {}") == 2
    with pytest.raises(TrainingError, match="--mask-token"):
        unused_token(Tokenizer(0), "<user><spare>")
