"""An engine of set speed: it has rows, rounds and a clock, and no model. Every token is one word."""

from __future__ import annotations

import os
import signal
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence

from draftmill.engine.request import Completion, Request, RequestError
from draftmill.engine.stats import Stats

CONTEXT = 1000


class SetSpeedEngine:
    """Generates one token per row and round; a round takes `round_seconds`.

    A request whose prompt contains "poison" kills the process, as a crash in a driver would; with "flaky" one round
    fails, with "broken" all of its rounds fail; with "needs:PATH" it is refused while there is no such file.
    `before_round` is called with rows at work.
    """

    def __init__(self, max_rows: int = 8, round_seconds: float = 0.005) -> None:
        self.max_rows = max_rows
        self.round_seconds = round_seconds
        self.stats = Stats()
        self._words: dict[int, str] = {}
        self._rows: dict[str, tuple[Request, int]] = {}
        self._waiting: deque[Request] = deque()
        self._cancelled: list[Completion] = []
        self._flaked = False
        self.before_round: Callable[[], None] = lambda: None

    @property
    def busy(self) -> bool:
        return bool(self._rows or self._waiting or self._cancelled)

    def encode(self, messages: Sequence[Mapping[str, str]] | None, prompt: str | None) -> list[int]:
        text = prompt if messages is None else " ".join(message["content"] for message in messages)
        words = (text or "").split()
        for word in words:
            self._words[hash(word) % 2**31] = word
        return [hash(word) % 2**31 for word in words]

    def add(self, request: Request) -> None:
        if len(request.tokens) > CONTEXT:
            raise RequestError(f"the prompt has {len(request.tokens)} tokens, the context {CONTEXT}")
        for word in (self._words[token] for token in request.tokens):
            if word.startswith("needs:") and not os.path.exists(word.removeprefix("needs:")):
                raise RequestError("there is no such file")
        self._waiting.append(request)

    def cancel(self, id: str) -> None:
        row = self._rows.pop(id, None)
        waiting = next((request for request in self._waiting if request.id == id), None)
        if waiting:
            self._waiting.remove(waiting)
        if request := row[0] if row else waiting:
            self._cancelled.append(Completion(id, "", (), "cancelled", len(request.tokens)))

    def _misbehave(self, words: set[str | None]) -> None:
        if "poison" in words:
            os.kill(os.getpid(), signal.SIGKILL)
        if "broken" in words or ("flaky" in words and not self._flaked):
            self._flaked = True
            raise RuntimeError("out of memory")

    def step(self) -> list[Completion]:
        finished, self._cancelled = self._cancelled, []
        while self._waiting and len(self._rows) < self.max_rows:
            request = self._waiting.popleft()
            self._rows[request.id] = (request, 0)
        if not self._rows:
            return finished
        self.before_round()
        time.sleep(self.round_seconds)
        self.stats.rounds += 1
        self.stats.rows += len(self._rows)
        self.stats.generated_tokens += len(self._rows)
        for id, (request, count) in list(self._rows.items()):
            self._misbehave({self._words.get(token) for token in request.tokens})
            self._rows[id] = (request, count + 1)
            if count + 1 == request.sampling.max_tokens:
                del self._rows[id]
                self.stats.prompt_tokens += len(request.tokens)
                tokens = tuple(range(count + 1))
                text = " ".join(f"word{n}" for n in tokens)
                finished.append(Completion(id, text, tokens, "length", len(request.tokens), rounds=count + 1))
        return finished
