"""An engine of set speed: it has rows, rounds and a clock, and no model. Every token is one word.

What it says of its drafts is of the same kind: so many are verified each round, and a set pattern of them is accepted.
"""

from __future__ import annotations

import os
import signal
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import islice

from draftmill.engine.chat import ChatPrompt, Encoded
from draftmill.engine.request import NO_ADAPTERS, Completion, EngineFailed, Request, RequestError
from draftmill.engine.schedule.blame import check_device
from draftmill.engine.stats import Stats
from draftmill.engine.text import Prompt, Text

CONTEXT = 1000

GIVEN_UP = (
    "[METAL] Command buffer execution failed: Impacting Interactivity "
    "(0000000e:kIOGPUCommandBufferCallbackErrorImpactingInteractivity)."
)
"""As MLX words it, and macOS the part behind the colon."""


@dataclass
class Row:
    """A request at work, and what it has come to."""

    request: Request
    tokens: int = 0
    rounds: int = 0
    drafted: int = 0
    accepted: int = 0

    @property
    def done(self) -> bool:
        return self.tokens == self.request.sampling.max_tokens

    def completion(self) -> Completion:
        tokens = tuple(range(self.tokens))
        text = " ".join(f"word{n}" for n in tokens)
        of_prompt = len(self.request.tokens)
        return Completion(
            self.request.id, text, tokens, "length", of_prompt, 0, self.rounds, self.drafted, self.accepted
        )


class Words(Text):
    """Every word is a token."""

    def __init__(self) -> None:
        self.words: dict[int, str] = {}

    def encode(self, prompt: Prompt) -> Encoded:
        chat = isinstance(prompt, ChatPrompt)
        text = " ".join(message["content"] for message in prompt.messages) if chat else prompt
        assert isinstance(text, str)
        tokens = [hash(word) % 2**31 for word in text.split()]
        self.words.update(zip(tokens, text.split(), strict=True))
        return Encoded(tuple(tokens))


class SetSpeedEngine:
    """Generates one token per row and round, and those of `depth` drafted ones that are accepted; a round takes
    `round_seconds`.

    A request whose prompt contains "poison" kills the process, as a crash in a driver would; with "sick" no engine can
    go on; with "broken" it alone makes rounds fail, with "flaky" only the first time; with "needs:PATH" it is refused
    while there is no such file.
    After `aborts_after` rounds the GPU gives up: by MLX's error or, if it `dies`, by the end of the process.
    `before_round` is called with rows at work.
    """

    verdict = remark = precision = None
    adapters = NO_ADAPTERS

    def __init__(
        self,
        max_rows: int = 8,
        round_seconds: float = 0.005,
        depth: int = 0,
        aborts_after: int = 0,
        dies: bool = False,
    ) -> None:
        self.aborts_after, self.dies = aborts_after, dies
        self.max_rows = self.most_rows = max_rows
        self.round_seconds = round_seconds
        self.depth = depth
        self.stats = Stats(accepted_per_position=[0] * depth)
        self.text: Text = Words()
        self._words = self.text.words
        self._rows: dict[str, Row] = {}
        self._waiting: deque[Request] = deque()
        self._ended: list[Completion] = []
        self._flaked = False
        self.before_round: Callable[[], None] = lambda: None
        self.may_start: Callable[[Sequence[str]], bool] = lambda ids: True

    def resize(self, share: float) -> None:
        self.max_rows = max(1, int(share * self.most_rows))
        while len(self._rows) > self.max_rows:
            self._waiting.appendleft(self._rows.popitem()[1].request)

    @property
    def busy(self) -> bool:
        return bool(self._rows or self._waiting or self._ended)

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
        if request := row.request if row else waiting:
            self._ended.append(Completion(id, "", (), "cancelled", len(request.tokens)))

    def _fails(self, words: set[str | None]) -> bool:
        """Whether rounds with this row alone fail."""
        if "poison" in words:
            os.kill(os.getpid(), signal.SIGKILL)
        if "sick" in words:
            raise EngineFailed("a round failed (RuntimeError: out of memory)")
        flakes = "flaky" in words and not self._flaked
        self._flaked |= flakes
        return flakes or "broken" in words

    def step(self) -> list[Completion]:
        finished, self._ended = self._ended, []
        starting = list(islice(self._waiting, self.max_rows - len(self._rows)))
        if starting and self.may_start([request.id for request in starting]):
            for request in starting:
                self._waiting.popleft()
                self._rows[request.id] = Row(request)
                self.stats.prefilled_tokens += len(request.tokens)
        if not self._rows:
            return finished
        self.before_round()
        if self.aborts_after and self.stats.rounds == self.aborts_after:
            self._give_up()
        self.wait()
        self.stats.rounds += 1
        self.stats.rows += len(self._rows)
        for id, row in list(self._rows.items()):
            if self._fails({self._words.get(token) for token in row.request.tokens}):
                del self._rows[id]
                error = "the engine failed with RuntimeError"
                finished.append(replace(row.completion(), finish_reason="failed", error=error))
                continue
            self._advance(row)
            if row.done:
                del self._rows[id]
                self.stats.prompt_tokens += len(row.request.tokens)
                finished.append(row.completion())
        return finished

    def wait(self) -> None:
        """Until the round is over."""
        time.sleep(self.round_seconds)

    def _give_up(self) -> None:
        """What macOS does to a command buffer that takes too long."""
        if self.dies:
            os.write(
                2, f"libc++abi: terminating due to uncaught exception of type std::runtime_error: {GIVEN_UP}\n".encode()
            )
            os.abort()
        check_device(RuntimeError(GIVEN_UP))

    def _advance(self, row: Row) -> None:
        """One round of a row: as in the real engine, what is accepted beyond its last token counts as accepted."""
        accepted = (row.rounds + len(row.request.tokens)) % (self.depth + 1)
        tokens = min(accepted + 1, row.request.sampling.max_tokens - row.tokens)
        row.tokens += tokens
        row.rounds += 1
        self.stats.generated_tokens += tokens
        self.stats.row_rounds += 1
        for counters in (row, self.stats):
            counters.drafted += self.depth
            counters.accepted += accepted
        self.stats.drafted_by["dflash"] += self.depth
        self.stats.accepted_by["dflash"] += accepted
        for position in range(accepted):
            self.stats.accepted_per_position[position] += 1
