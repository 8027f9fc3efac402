"""Counts the tokens of requests as a worker of their pair would, without loading a model or fetching anything."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from huggingface_hub import snapshot_download
from mlx_lm.tokenizer_utils import load

from ..engine.models import boxed
from ..engine.models.folder import HUB_FILES
from ..engine.models.pairs import ModelError, resolve
from ..engine.request import RequestError
from ..engine.text import Text
from ..producer.queue.errors import UserError
from ..producer.queue.paths import cache_dir
from ..producer.queue.wire import JobBody
from .jobs import prompts


def counter(pair: str) -> Callable[[JobBody], int]:
    """A function that counts the tokens of a request's prompts; it raises UserError for one that the model refuses.

    Raises UserError if the pair is unknown or its target is not on this machine.
    """
    try:
        text = Text(load(_folder(resolve(pair).target)))
    except ModelError as error:
        raise UserError(str(error)) from error
    except (OSError, ValueError) as error:
        raise UserError(f"the tokenizer of {pair} is not on this machine") from error

    def count(body: JobBody) -> int:
        try:
            return sum(len(text.encode(prompt).tokens) for prompt in prompts(body))
        except RequestError as error:
            raise UserError(f"line {body.line}: {error}") from error

    return count


def _folder(target: str) -> Path:
    """Where a target lies on this machine."""
    if target == boxed.NAME:
        return boxed.folder(cache_dir())
    folder = Path(target).expanduser()
    return (
        folder if folder.is_dir() else Path(snapshot_download(target, allow_patterns=HUB_FILES, local_files_only=True))
    )
