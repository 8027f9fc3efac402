"""The engines that are compared, each as an arm: it opens a session of steady decoding, and it runs whole requests."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import mlx.core as mx
from mlx_lm.generate import BatchGenerator, batch_generate, generation_stream, stream_generate
from mlx_lm.tokenizer_utils import TokenizerWrapper

from ..engine import Engine
from ..request import Request
from .proof import SAMPLE, flaw

PREFILL = 8192
"""Prompt tokens in a round of a session, so that its rows start decoding at nearly the same time."""


class BenchError(RuntimeError):
    """An arm cannot do what is asked of it; the message is one line for its cell."""


class MissingPeer(BenchError):
    """Another engine is not installed."""


class Session(Protocol):
    """Requests that are being decoded; each has its first token when the session is made."""

    @property
    def texts(self) -> list[list[int]]:
        """The tokens of each request so far."""
        ...

    def advance(self) -> int:
        """Run one round; returns how many tokens it brought.

        Raises:
            BenchError: a request has ended.
        """
        ...

    def flaw(self) -> str | None:
        """What is wrong with what its rows hold, in one line; None if nothing is, or nobody can see it."""
        ...

    def close(self) -> None: ...


@dataclass(frozen=True)
class Run:
    """Runs requests, however many there are: `run` returns the tokens of each, without the end token.

    Afterwards `flaw` says what is wrong with what computed them, if that can be seen.
    """

    run: Callable[[Sequence[Request]], list[list[int]]]
    flaw: Callable[[Sequence[Request]], str | None] = lambda requests: None


class Arm(Protocol):
    """One engine. `alone` if its sessions change modules that other arms use."""

    alone: bool
    tokens_per_round: float | None
    """Of the last run, where it speculates."""

    def open(self, requests: Sequence[Request]) -> Session:
        """Prefill requests."""
        ...

    def runner(self) -> Run:
        """Something that has run nothing yet, so that it can have no memory of these requests."""
        ...


class OneByOne(ABC):
    """An engine that takes one request after the other and yields the tokens of its rounds."""

    alone = False
    speculates = True
    tokens_per_round: float | None = None

    @property
    @abstractmethod
    def ends(self) -> Collection[int]:
        """The end tokens."""

    @abstractmethod
    def stream(self, request: Request) -> Iterator[list[int]]:
        """The tokens of a request, round by round, the first by itself."""

    def open(self, requests: Sequence[Request]) -> StreamSession:
        if len(requests) != 1:
            raise BenchError("one row only")
        return StreamSession(self.stream(requests[0]))

    def runner(self) -> Run:
        return Run(self._run)

    def _run(self, requests: Sequence[Request]) -> list[list[int]]:
        rounds = [[tokens for tokens in self.stream(request) if tokens] for request in requests]
        if self.speculates:
            drafted = [len(tokens) for request in rounds for tokens in request[1:]]
            self.tokens_per_round = sum(drafted) / max(1, len(drafted))
        return [[token for tokens in request for token in tokens if token not in self.ends] for request in rounds]


class MlxStream(OneByOne):
    """mlx-lm's `stream_generate`."""

    speculates = False

    def __init__(self, model: Any, tokenizer: TokenizerWrapper):
        self.model, self.tokenizer = model, tokenizer

    @property
    def ends(self) -> Collection[int]:
        return self.tokenizer.eos_token_ids

    def stream(self, request: Request) -> Iterator[list[int]]:
        tokens, count = list(request.tokens), request.sampling.max_tokens
        for response in stream_generate(self.model, self.tokenizer, tokens, max_tokens=count):
            yield [int(response.token)]


class StreamSession:
    """One request of an engine that yields the tokens of its rounds."""

    def __init__(self, stream: Iterator[list[int]]):
        self.stream: Any = stream
        self.texts = [list(next(stream))]

    def advance(self) -> int:
        tokens = next(self.stream, [])
        if not tokens:
            raise BenchError("the request ended too early")
        self.texts[0] += tokens
        return len(tokens)

    def flaw(self) -> None:
        return None

    def close(self) -> None:
        self.stream.close()


class MlxBatch:
    """mlx-lm's `batch_generate`, `rows` requests at a time; its sessions step the generator that it steps."""

    alone = False
    tokens_per_round: float | None = None

    def __init__(self, model: Any, tokenizer: TokenizerWrapper, rows: int):
        self.model, self.tokenizer = model, tokenizer
        self.sizes: Any = dict(completion_batch_size=rows, prefill_batch_size=min(8, rows))

    def open(self, requests: Sequence[Request]) -> MlxBatchSession:
        generator = BatchGenerator(self.model, stop_tokens=[[t] for t in self.tokenizer.eos_token_ids], **self.sizes)
        return MlxBatchSession(generator, requests)

    def runner(self) -> Run:
        return Run(self._run)

    def _run(self, requests: Sequence[Request]) -> list[list[int]]:
        done = batch_generate(
            self.model,
            self.tokenizer,
            [list(request.tokens) for request in requests],
            max_tokens=[request.sampling.max_tokens for request in requests],
            return_token_ids=True,
            **self.sizes,
        )
        assert done.token_ids is not None
        return done.token_ids


class MlxBatchSession:
    def __init__(self, generator: BatchGenerator, requests: Sequence[Request]):
        self.generator = generator
        self.texts: list[list[int]] = [[] for _ in requests]
        prompts = [list(request.tokens) for request in requests]
        uids = generator.insert(prompts, [request.sampling.max_tokens for request in requests])
        self.places = {uid: place for place, uid in enumerate(uids)}
        while not all(self.texts):
            self.advance()

    def advance(self) -> int:
        _, responses = self.generator.next()
        for response in responses:
            if response.finish_reason is not None:
                raise BenchError("a request ended too early")
            self.texts[self.places[response.uid]].append(int(response.token))
        return len(responses)

    def flaw(self) -> None:
        return None

    def close(self) -> None:
        self.generator.close()


class Draftmill:
    """This engine, made anew by `make` for each session and run."""

    alone = False
    tokens_per_round: float | None = None

    def __init__(self, make: Callable[[], Engine]):
        self.make = make

    def open(self, requests: Sequence[Request]) -> EngineSession:
        return EngineSession(self.make(), requests)

    def runner(self) -> Run:
        engine = self.make()

        def run(requests: Sequence[Request]) -> list[list[int]]:
            for request in requests:
                engine.add(request)
            done: dict[str, list[int]] = {}
            while engine.busy:
                done.update({completion.id: list(completion.tokens) for completion in engine.step()})
            if rounds := engine.stats.row_rounds:
                self.tokens_per_round = 1 + engine.stats.accepted / rounds
            return [done[request.id] for request in requests]

        def flaw(requests: Sequence[Request]) -> str | None:
            longest = sorted(requests, key=lambda request: request.sampling.max_tokens)[-min(SAMPLE, engine.max_rows) :]
            session = EngineSession(engine, longest)
            found = session.flaw()
            session.close()
            return found

        return Run(run, flaw)


class EngineSession:
    def __init__(self, engine: Engine, requests: Sequence[Request]):
        self.engine = engine
        engine.scheduler.prefill_tokens = PREFILL
        for request in requests:
            engine.add(request)
        engine.step()  # admits them
        self.rows = list(engine.scheduler.rows)
        while len(self.rows) < len(requests) or not all(row.generated for row in self.rows):
            self.advance()
            self.rows += [row for row in engine.scheduler.rows if row not in self.rows]

    @property
    def texts(self) -> list[list[int]]:
        return [list(row.generated) for row in sorted(self.rows, key=lambda row: row.request.sampling.seed)]

    def advance(self) -> int:
        before = self.engine.stats.generated_tokens
        if self.engine.step():
            raise BenchError("a request ended too early")
        return self.engine.stats.generated_tokens - before

    def flaw(self) -> str | None:
        return flaw(self.engine, self.rows)

    def close(self) -> None:
        for row in self.rows:
            self.engine.cancel(row.request.id)
        while self.engine.busy:
            self.engine.step()


class Numbers:
    """What mlx-lm and the engine ask of a tokenizer, for models that know no text. Has no end token."""

    eos_token_id = None
    bos_token = None
    chat_template = None

    def encode(self, text: str, **_: Any) -> list[int]:
        return [int(word) for word in text.split() if word.isdigit()]

    def decode(self, tokens: Sequence[int], **_: Any) -> str:
        return "\n" * len(tokens)

    def apply_chat_template(self, messages: Sequence[dict[str, str]], **_: Any) -> list[int]:
        return self.encode(messages[-1]["content"])

    def get_vocab(self) -> dict[str, int]:
        return {}


def synchronize() -> None:
    """Wait until the device has nothing left to do."""
    mx.synchronize(generation_stream)
    mx.synchronize()
