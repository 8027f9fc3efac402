"""The boxed pair in a type of one's choice, with kernels wherever there are any, and mlx-lm's own model beside it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import mlx.core as mx
from mlx_lm.utils import dequantize_model

from ...kernels.gpu.launch import on_gpu
from ...kernels.operations import Operations
from ...kernels.pages.proof import flaw
from ...kernels.race.contestants import OperationShape, contests
from ...kernels.race.keys import KERNEL
from ..bench.peers.zlab import twin
from ..drafting.checkpoint import load_draft
from ..drafting.dflash import DFlashDraft
from ..engine import Engine
from ..models import boxed
from ..models.folder import ModelError, load, locate, unpacks
from ..models.kernels_for import shapes
from ..models.pairs import PAIRS
from ..models.targets import adapt
from ..models.targets.transformer import Transformer
from ..request import Request, Sampling
from .check import Skipped

MEMORY = 1 << 29
"""Bytes for what the rows of a check keep."""

TEXTS = (
    "Hello",
    "The capital of Japan is",
    "Once upon a time there was a small dog who",
    "A recipe for bread: mix flour, water, salt and yeast in a bowl, then",
    "Question: Why is the sky blue in the day and red in the evening?\nAnswer:",
    "1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 29,",
    "Dear Sir or Madam,\n\nthank you for your letter of last week. We have looked into the matter, and "
    "we are sorry to hear that the parcel had not reached you. We have sent another one today, and",
    "def fibonacci(n):\n    if n < 2:\n        return n\n    return fibonacci(n - 1) + fibonacci(n - 2)\n\n\n"
    "def factorial(n):\n    if n < 2:\n        return 1\n    return n * factorial(n - 1)\n\n\n"
    "def is_prime(n):\n    for divisor in range(2, n):\n        if n % divisor == 0:\n            return",
)
"""Prompts as ragged as real ones."""


@dataclass(frozen=True)
class BoxedPair:
    """The pair, ready to generate. `model` has mlx-lm's own layers over the target's weights."""

    model: Any
    tokenizer: Any
    target: Transformer
    draft: DFlashDraft

    @staticmethod
    def load(folder: Path, dtype: mx.Dtype | None = None) -> BoxedPair:
        """Load it in this type, or in that of this machine. `folder` is the cache of models.

        Raises:
            Skipped: it cannot be had.
            ModelError: it cannot be read.
        """
        have(folder)
        pair = PAIRS[boxed.NAME]
        loaded = load(pair.target, folder)
        if dtype:
            loaded.model.set_dtype(dtype)
        target = adapt(loaded.model)
        assert pair.draft
        draft: Any = load_draft(locate(pair.draft, folder))
        draft.set_dtype(target.dtype)
        if unpacks(pair.target):
            dequantize_model(draft)
        target.operations = everywhere(shapes_of(target, draft))
        return BoxedPair(twin(loaded.model), loaded.tokenizer, target, draft)

    @property
    def shapes(self) -> list[OperationShape]:
        """What its operations work on."""
        return shapes_of(self.target, self.draft)

    def engine(self, rows: int, depth: int | None) -> Engine:
        """An engine for so many rows that verifies so many drafted tokens of each, or whole blocks."""
        return Engine(self.target, self.tokenizer, 2048, rows, MEMORY, self.draft, depth)

    def requests(self, count: int, tokens: int) -> list[Request]:
        """Greedy requests for so many tokens each, whatever they say."""
        return requests_of(self.tokenizer, count, Sampling(max_tokens=tokens, ignore_eos=True))


@cache
def reason_to_miss(folder: Path) -> str | None:
    """Why the boxed model cannot be had, in one line; it is tried once."""
    try:
        boxed.unbox(folder)
    except ModelError as error:
        return str(error)
    return None


def have(folder: Path) -> None:
    """Fetch and unbox the model if it is not there; raises Skipped if it cannot be had."""
    if reason := reason_to_miss(folder):
        raise Skipped(reason)


def requests_of(tokenizer: Any, count: int, sampling: Sampling) -> list[Request]:
    """So many requests with ragged prompts, all of them different."""
    texts = [f"{n // len(TEXTS)}. " * (n >= len(TEXTS)) + TEXTS[n % len(TEXTS)] for n in range(count)]
    return [Request(f"r{n}", tuple(tokenizer.encode(text)), sampling) for n, text in enumerate(texts)]


def shapes_of(target: Transformer, draft: DFlashDraft) -> list[OperationShape]:
    """The shapes of both, each once."""
    if mx.default_device() != mx.cpu:
        draft.join()
    return shapes(target, draft)


def everywhere(shapes: list[OperationShape]) -> Operations:
    """Kernels for all of these shapes, whichever form would win a race; without a GPU, plain MLX."""
    if mx.default_device() == mx.cpu:
        return Operations()
    return Operations({contest.key: KERNEL for contest in contests(shapes)}, in_place=flaw(on_gpu) is None)
