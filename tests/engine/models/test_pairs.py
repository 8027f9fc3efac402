"""Names resolve to pairs: by name, by target, by any quantisation of it; a slip is answered with the nearest."""

from __future__ import annotations

from pathlib import Path

import pytest

from draftmill.engine.models.folder import ModelError
from draftmill.engine.models.pairs import PAIRS, resolve


@pytest.mark.parametrize(
    ("name", "draft"),
    [
        ("qwen3-4b", "z-lab/Qwen3-4B-DFlash-b16"),
        ("Qwen3-4B", "z-lab/Qwen3-4B-DFlash-b16"),
        ("Qwen/Qwen3-4B", "z-lab/Qwen3-4B-DFlash-b16"),
        ("mlx-community/Qwen3-4B-4bit", "z-lab/Qwen3-4B-DFlash-b16"),
        ("mlx-community/Qwen3-8B-4bit-DWQ", "z-lab/Qwen3-8B-DFlash-b16"),
        ("someone/Qwen3.5-35B-A3B-MLX-8bit", "z-lab/Qwen3.5-35B-A3B-DFlash"),
        ("mlx-community/Qwen3-Coder-30B-A3B-Instruct-4bit", "z-lab/Qwen3-Coder-30B-A3B-DFlash"),
        ("mlx-community/gpt-oss-20b-MXFP4-Q8", "z-lab/gpt-oss-20b-DFlash"),
        ("mlx-community/Meta-Llama-3.1-8B-Instruct-4bit", "z-lab/LLaMA3.1-8B-Instruct-DFlash-UltraChat"),
        ("mlx-community/Qwen3-Coder-Next-8bit", "z-lab/Qwen3-Coder-Next-DFlash"),
        ("gemma-4-31b", "z-lab/gemma-4-31B-it-DFlash"),
        ("mlx-community/gemma-4-12B-it-4bit", "z-lab/gemma4-12B-it-DFlash"),
        ("lmstudio-community/gemma-4-26B-A4B-it-MLX-6bit", "z-lab/gemma-4-26B-A4B-it-DFlash"),
        ("mlx-community/gemma-4-e4b-it-4bit", None),
        ("mlx-community/Qwen3-4B-Instruct-2507-4bit", None),
        ("mlx-community/Llama-3.2-1B-Instruct-4bit", None),
    ],
)
def test_every_name_of_a_target_finds_its_draft(name: str, draft: str | None) -> None:
    assert resolve(name).draft == draft


def test_a_folder_is_a_target(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "Qwen3-4B-8bit"
    folder.mkdir()
    assert resolve(str(folder)).draft == PAIRS["qwen3-4b"].draft
    monkeypatch.chdir(tmp_path)
    assert resolve("Qwen3-4B-8bit").target == "Qwen3-4B-8bit"


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("smollm-135m", "smollm2-135m"),
        ("qwen35-4b", "qwen3.5-4b"),
        ("qwen4-b", "qwen3-4b' or 'qwen3.5-4b"),
        ("Qwem3-4B", "qwen3-4b' or 'qwen3.5-4b' or 'qwen3-8b"),
    ],
)
def test_a_misspelt_pair_is_answered_with_the_nearest(name: str, near: str) -> None:
    with pytest.raises(ModelError, match=f"did you mean '{near}'"):
        resolve(name)


def test_drafts_that_were_published_for_answers_alone_say_so_whatever_names_them() -> None:
    for name in ("qwen3-4b", "mlx-community/Qwen3-8B-4bit"):
        advice = resolve(name).advice
        assert advice
        assert str(resolve(name).draft) in advice
        assert "\n" not in advice
    assert {name for name, pair in PAIRS.items() if pair.advice} == {"qwen3-4b", "qwen3-8b"}
