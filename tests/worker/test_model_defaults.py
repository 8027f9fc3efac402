"""Generation defaults of a model's folder: for what a job leaves to them, and for nothing else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import orjson
import pytest

from draftmill.engine.models.folder import ModelError
from draftmill.engine.request import RequestError
from draftmill.producer.queue.wire import JobBody, Sampling
from draftmill.worker.model_defaults import applied, read

QWEN3 = {
    "bos_token_id": 151643,
    "do_sample": True,
    "eos_token_id": [151645, 151643],
    "temperature": 0.6,
    "top_k": 20,
    "top_p": 0.95,
    "transformers_version": "4.51.0",
}
"""The file of Qwen3-4B."""


def folder(path: Path, **config: Any) -> Path:
    (path / "generation_config.json").write_bytes(orjson.dumps(config))
    return path


def job(*left: str, **sampling: Any) -> JobBody:
    body = {"batch": "b", "custom_id": "a", "pair": "p", "prompts": ["x"], "model_defaults": left, "sampling": sampling}
    return JobBody.model_validate(body)


def test_they_apply_to_what_a_job_leaves_to_them(tmp_path: Path) -> None:
    defaults = read(folder(tmp_path, **QWEN3))
    assert defaults == {"temperature": 0.6, "top_k": 20, "top_p": 0.95}
    left = job("temperature", "top_k", "min_p", top_p=0.5, seed=3, max_tokens=9)
    expected = Sampling(temperature=0.6, top_k=20, top_p=0.5, seed=3, max_tokens=9)
    assert applied(left, defaults).sampling == expected
    assert applied(job(), defaults) == job()


def test_what_a_folder_does_not_say_is_as_usual(tmp_path: Path) -> None:
    assert read(tmp_path) == {}
    assert read(folder(tmp_path, top_k=None, eos_token_id=1)) == {}
    assert read(folder(tmp_path, do_sample=False, temperature=0.7, repetition_penalty=1.1)) == {
        "repetition_penalty": 1.1
    }
    assert applied(job("temperature"), {}) == job("temperature")


def test_what_cannot_be_used_is_said(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match=r"generation_config\.json of the model has temperature = 9, which is not"):
        applied(job("temperature"), {"temperature": 9})
    (tmp_path / "generation_config.json").write_text("{")
    with pytest.raises(ModelError, match="is not valid JSON"):
        read(tmp_path)
