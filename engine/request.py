"""The data classes everybody shares: a request going into the engine and the completion coming out."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

FinishReason = Literal["stop", "length", "cancelled", "error", "failed"]


class RequestError(ValueError):
    """A request that this engine can never serve; the message is one line that says why and what to do."""


class EngineFailed(RuntimeError):
    """Rounds fail and it is no request's fault: the engine cannot go on. The message is one line that says why."""


@dataclass(frozen=True)
class Sampling:
    """How a row's tokens are chosen.

    `temperature` 0 is greedy. `top_k` 0 and `top_p` 1 mean no truncation. `stop` strings end the text before
    themselves. The random stream of a row is a function of `seed` and the token's position, of nothing else.
    """

    max_tokens: int = 512
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    seed: int = 0
    stop: tuple[str, ...] = ()

    @property
    def greedy(self) -> bool:
        return self.temperature == 0


@dataclass(frozen=True)
class Request:
    """One prompt, already tokenised, with its sampling parameters, and the JSON schema that the text must obey."""

    id: str
    tokens: tuple[int, ...]
    sampling: Sampling = field(default_factory=Sampling)
    schema: str | None = None


@dataclass(frozen=True)
class Completion:
    """A finished request.

    `tokens` are the generated tokens without the end token; `text` is cut before a stop string.
    Of the prompt's tokens `cached_tokens` were copied from another request's instead of prefilled.
    `rounds` counts the verify rounds that produced the tokens; `drafted` and `accepted` count draft tokens verified
    and accepted in them (both 0 at depth 0). Of a row that could not go on, and so ended with "error", `error` says in
    one line why; so it does of one that ended with "failed", because rounds with it alone fail on this machine.
    """

    id: str
    text: str
    tokens: tuple[int, ...]
    finish_reason: FinishReason
    prompt_tokens: int
    cached_tokens: int = 0
    rounds: int = 0
    drafted: int = 0
    accepted: int = 0
    seconds: float = 0.0
    error: str | None = None
