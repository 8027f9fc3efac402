"""Engines that run in processes of their own as arms: `dflash-mlx` and `vllm-mlx`, where they are installed."""

from __future__ import annotations

import importlib.util
import json
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ...request import Request
from ..arms import BenchError, MissingPeer, Run, Session


class Elsewhere:
    """An engine in a process of its own, by some Python; it runs whole requests.

    Raises:
        BenchError: it cannot load its models.
    """

    alone = False
    tokens_per_round: float | None = None

    def __init__(self, python: str, *engine: str):
        command = [python, str(Path(__file__).with_name("process.py")), *engine]
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
        super().__init__(sys.executable, "dflash-mlx", target, draft)


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
        super().__init__(python, "vllm-mlx", target, dtype, str(rows))
