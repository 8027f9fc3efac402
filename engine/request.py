"""The data classes everybody shares: a request going into the engine and the completion coming out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, get_args

FinishReason = Literal["stop", "length", "cancelled", "error", "failed"]

Thinking = Literal["none", "may", "open"]

Origin = Literal["dflash", "mtp", "lookup", "grammar"]
"""Where a drafted token comes from: the pair's draft, an MTP head, the row's own text, or a grammar."""

ORIGINS: tuple[Origin, ...] = get_args(Origin)

SOURCES = ORIGINS[:3]
"""Those that a worker can do without: a grammar leaves no choice."""


NO_ADAPTER = -1
"""The place of the LoRA adapter of what has none."""


class RequestError(ValueError):
    """A request that this engine can never serve; the message is one line that says why and what to do."""


class EngineFailed(RuntimeError):
    """Rounds fail and it is no request's fault: the engine cannot go on. The message is one line that says why."""


class DeviceFailed(EngineFailed):
    """The system took the GPU away in the middle of a round. A new process may go on, with shorter command buffers."""


@dataclass(frozen=True)
class Sampling:
    """How a row's tokens are chosen.

    `temperature` 0 is greedy. `top_k` 0, `top_p` 1 and `min_p` 0 mean no truncation. `stop` strings end the text before
    themselves, or behind if `include_stop`. The random stream of a row is a function of `seed` and the token's
    position, of nothing else.

    The target's logits change before a token is chosen: `presence_penalty` and `frequency_penalty` are subtracted for
    tokens that were generated before, `repetition_penalty` divides positive logits and multiplies negative ones of
    those and of the prompt's; `logit_bias` is added, by token. Only `allowed_token_ids` may come, if there are any, and
    no text of `bad_words`.

    `stop_token_ids` end the text as the model's end tokens do, and stay out of it; with `ignore_eos` those are tokens
    like any other. None of them, and no stop string, ends it before `min_tokens`.

    `logprobs` asks for the log-probability of each token, and of so many likeliest ones. At most `thinking_budget`
    tokens are thoughts.
    """

    max_tokens: int = 512
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: tuple[tuple[int, float], ...] = ()
    allowed_token_ids: tuple[int, ...] = ()
    bad_words: tuple[str, ...] = ()
    seed: int = 0
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    include_stop: bool = False
    ignore_eos: bool = False
    min_tokens: int = 0
    logprobs: int | None = None
    thinking_budget: int | None = None

    @property
    def greedy(self) -> bool:
        return self.temperature == 0


@dataclass(frozen=True)
class Grammar:
    """What the answer must obey: `text` is a JSON schema, a regular expression, a JSON list of choices, or a grammar in
    Lark's notation.
    """

    kind: Literal["json", "regex", "choice", "lark"]
    text: str


@dataclass(frozen=True)
class Request:
    """One prompt, already tokenised, with its sampling parameters, and the grammar that the answer must obey.

    `thinking` says whether the text begins inside the model's thoughts ("open": the prompt ends with the marker), may
    begin with them ("may"), or is an answer from its first token on ("none"). `adapter` names the LoRA adapter that the
    text is to have. `drafts` has the sources that may draft for it, by default all that the engine has.
    """

    id: str
    tokens: tuple[int, ...]
    sampling: Sampling = field(default_factory=Sampling)
    grammar: Grammar | None = None
    thinking: Thinking = "none"
    adapter: str | None = None
    drafts: tuple[Origin, ...] | None = None


@dataclass(frozen=True)
class Adapters:
    """The LoRA adapters of an engine: the folder of each by its name. `default` is that of requests that name none."""

    folders: Mapping[str, Path] = field(default_factory=dict)
    default: str | None = None

    def place(self, name: str | None) -> int:
        """The place of the adapter that a request names, or NO_ADAPTER; raises RequestError."""
        name = name or self.default
        if name is None:
            return NO_ADAPTER
        if name not in self.folders:
            names = ", ".join(self.folders)
            known = f"it has {names}; name one of them" if names else "it has none; start workers with --adapters"
            raise RequestError(f"adapter {name!r} is unknown to this worker: {known}")
        return list(self.folders).index(name)


NO_ADAPTERS = Adapters()


@dataclass(frozen=True)
class TokenLogprob:
    """A token's log-probability, and those of the likeliest ones at its place: (token, log-probability), best first."""

    token: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True)
class Completion:
    """A finished request.

    `tokens` are the generated tokens without the end token; `text` is cut before a stop string.
    Of the prompt's tokens `cached_tokens` were copied from another request's instead of prefilled.
    `rounds` counts the verify rounds that produced the tokens; `drafted` and `accepted` count draft tokens verified
    and accepted in them, `accepted_by` by their source: "dflash" for the draft's, "lookup" for those copied from the
    row's own text, "grammar" for those that were forced. Of a row that could not go on, and so ended with "error",
    `error` says in one line why; so it does of one that ended with "failed", because rounds with it alone fail on this
    machine.
    `logprobs` are those of `tokens`, if they were asked for.
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
    accepted_by: Mapping[str, int] = field(default_factory=dict)
    seconds: float = 0.0
    error: str | None = None
    logprobs: tuple[TokenLogprob, ...] = ()
