"""Other engines for MLX as arms, where they are installed: z-lab's `dflash`, `dflash-mlx` and `vllm-mlx`."""

from __future__ import annotations

import copy
import importlib
import importlib.util
import json
import shutil
import subprocess
import sys
from collections.abc import Collection, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx_lm.utils import dequantize_model

from ..drafting.dflash import DFlashDraft, arrays
from ..request import Request
from .arms import BenchError, MissingPeer, OneByOne, Run, Session
from .replay import Continuation


class ZLab(OneByOne):
    """z-lab's MLX engine, with its own draft module over our draft's weights.

    Args:
        model: the target, of which it gets a copy of the modules, since it changes them.
        recurrent: whether the target has recurrent layers, for which it changes mlx-lm's class while it generates.
        continuation: what the draft says instead of what it thinks.

    Raises:
        MissingPeer: not installed.
    """

    def __init__(
        self,
        model: nn.Module,
        draft: DFlashDraft,
        tokenizer: Any,
        recurrent: bool,
        continuation: Continuation | None = None,
    ):
        self.package = peer("dflash.model_mlx", "dflash")
        self.model, self.tokenizer, self.alone = twin(model), tokenizer, recurrent
        self.draft = zlab_draft(self.package, draft, continuation)

    @property
    def ends(self) -> Collection[int]:
        return self.tokenizer.eos_token_ids

    def stream(self, request: Request) -> Iterator[list[int]]:
        self.draft.stream = request.sampling.seed
        tokens, count = mx.array(request.tokens), request.sampling.max_tokens
        for response in self.package.stream_generate(self.model, self.draft, self.tokenizer, tokens, max_tokens=count):
            yield response.tokens


def zlab_draft(package: Any, draft: DFlashDraft, continuation: Continuation | None = None) -> Any:
    """z-lab's draft module with the weights of `draft`; with a continuation it drafts from that, at its full price."""

    class Replay(package.DFlashDraftModel):
        stream = 0

        def __call__(self, inputs: mx.array, hidden: mx.array, cache: list[Any], logits_start: int = 0) -> mx.array:
            anchor = cache[0].offset + hidden.shape[1]  # its position
            logits = super().__call__(inputs, hidden, cache, logits_start)
            if continuation is None:
                return logits
            ahead = mx.arange(1, logits.shape[1] + 1)
            anchors = mx.broadcast_to(inputs[0, 0], ahead.shape)
            streams = mx.full(ahead.shape, self.stream, mx.int32)
            tokens = continuation.draft(anchors, ahead, streams, anchor + ahead)
            return mx.where(mx.arange(logits.shape[-1]) == tokens[:, None], mx.inf, logits)

    made = Replay(package.DFlashConfig(**asdict(draft.config)))
    plain: Any = dequantize_model(twin(draft))  # it knows no quantised weights
    made.load_weights(arrays(plain))
    made.eval()
    return made


class Elsewhere:
    """An engine in a process of its own, which runs whole requests.

    Raises:
        BenchError: it cannot load its models.
    """

    alone = False
    tokens_per_round: float | None = None

    def __init__(self, *command: str):
        pipes: Any = dict(stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        self.process = subprocess.Popen(command, **pipes)
        self._answer()  # that it is ready

    def __del__(self) -> None:
        if process := getattr(self, "process", None):
            process.kill()
            process.wait()

    def open(self, requests: Sequence[Request]) -> Session:
        raise BenchError("runs whole requests only")

    def runner(self) -> Run:
        return Run(self._run)

    def _run(self, requests: Sequence[Request]) -> list[list[int]]:
        asked = [[list(request.tokens), request.sampling.max_tokens] for request in requests]
        assert self.process.stdin
        self.process.stdin.write(json.dumps(asked) + "\n")
        self.process.stdin.flush()
        return self._answer()

    def _answer(self) -> Any:
        assert self.process.stdout
        answer = json.loads(self.process.stdout.readline() or '{"error": "its process ended by itself"}')
        if "error" in answer:
            raise BenchError(answer["error"])
        return answer["done"]


class DFlashMlx(Elsewhere):
    """`dflash-mlx`, one request after the other. It would change mlx-lm's classes for good.

    Raises:
        MissingPeer: not installed.
    """

    def __init__(self, target: str, draft: str):
        if not importlib.util.find_spec("dflash_mlx"):
            raise MissingPeer("dflash-mlx is not installed")
        super().__init__(sys.executable, "-m", f"{__package__}.dflash_mlx_process", target, draft)


class VllmMlx(Elsewhere):
    """`vllm-mlx`, so many rows at a time, in the environment of the program of that name: it needs another mlx-lm.

    Raises:
        MissingPeer: not installed.
    """

    def __init__(self, target: str, dtype: str, rows: int):
        program = shutil.which("vllm-mlx")
        if program is None:
            raise MissingPeer("vllm-mlx is not installed, in an environment of its own (uv tool install vllm-mlx)")
        with open(program, encoding="utf-8") as script:
            python = script.readline().removeprefix("#!").strip()
        super().__init__(python, str(Path(__file__).with_name("vllm_mlx_process.py")), target, dtype, str(rows))


def peer(module: str, package: str) -> Any:
    if not importlib.util.find_spec(package):
        raise MissingPeer(f"{package} is not installed")
    return importlib.import_module(module)


def twin(module: Any) -> Any:
    """A module tree of the same classes and the very same weights."""
    if isinstance(module, list):
        return [twin(part) for part in module]
    if not isinstance(module, nn.Module):
        return module
    made = copy.copy(module)
    for name, part in module.items():
        made[name] = twin(part)
    return made
