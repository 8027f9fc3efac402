"""The Python interface: submit prompts, read results as they come, cancel; the same functions as the command line's."""

from __future__ import annotations

import tempfile
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from os import PathLike, fspath
from typing import Any, Literal, TypedDict, Unpack

import orjson
import redis as redis_py

from ..input import parameters
from ..input.dataset import BadLine, Dataset
from ..input.defaults import defaults
from ..input.request.faults import Fault
from ..input.rows import RowOptions
from ..queue import batches, connect
from ..queue.batches import BatchStatus
from ..queue.errors import UserError
from ..queue.result import Result
from ..queue.wire import DEFAULT_PAIR
from .collect import refuse_collected
from .follower import BLOCK_SECONDS, Follower, current, known
from .patience import Patience
from .submission import POLL_SECONDS, Cancelled, Feed, plan, refuse_cancelled

Source = str | PathLike[str] | Iterable[str | Mapping[str, Any]]
"""A path, or the rows themselves: prompts, or what a line of a JSONL file has."""


class Options(TypedDict, total=False):
    """What `draftmill submit --help` describes, by the same names; lengths of time are seconds."""

    pair: str
    models: Mapping[str, str]
    priority: Literal["high", "normal", "low"]
    max_tokens: int
    temperature: float
    top_p: float
    top_k: int
    min_p: float
    repetition_penalty: float
    presence_penalty: float
    frequency_penalty: float
    seed: int
    n: int
    stop: str | list[str]
    logprobs: int
    max_seconds: float
    model_defaults: bool
    drafts: Sequence[Literal["dflash", "mtp", "lookup"]]
    thinking: bool
    reasoning_effort: str
    thinking_budget: int
    chat_template_kwargs: Mapping[str, Any]
    control_tokens: bool
    system: str
    schema: Mapping[str, Any]
    regex: str
    choice: Sequence[str]
    grammar: str
    template: str
    id_column: str
    where: str
    limit: int
    sample: int
    keep: Sequence[str]
    format: str
    slot: str
    strict: bool
    keep_results: float
    retry_failed: bool
    reason: str
    detach: bool


NOT_ABOUT_LINES = {"priority", "keep_results", "retry_failed", "reason", "detach"}


@dataclass(frozen=True)
class Batch:
    """A batch in the queue. If this client submitted it, `bad` lists the lines that cannot be run, and `notes` tells
    what of the others was ignored.
    """

    id: str
    redis: redis_py.Redis = field(repr=False)
    bad: tuple[BadLine, ...] = ()
    feeder: Feeder | None = field(default=None, repr=False)
    notes: tuple[str, ...] = ()

    def status(self) -> BatchStatus:
        """How far it is."""
        return known(self.redis, self.id)

    def results(self, after: str = "0-0") -> Iterator[Result]:
        """Yields each result once, in the order in which they finish, until the batch is complete.

        `after` is the `entry` of the last result that an earlier call gave: this one goes on behind it. If failed lines
        are queued again meanwhile, their new results follow. Reading changes nothing: results stay in Redis until
        they are collected or forgotten, or for `keep_results`. It waits up to ten minutes for a Redis that is away.
        """
        reader = Reader(self, after)
        while (page := reader.next()) is not None:
            yield from page

    def wait(self, timeout: float | None = None) -> BatchStatus:
        """Returns when the batch is complete; raises TimeoutError after `timeout` seconds."""
        deadline = None if timeout is None else time.monotonic() + timeout
        patience = Patience(self.redis)
        while self.feeding() or not (state := patience(current, patience.redis, self.id)).complete:
            if deadline is not None and time.monotonic() > deadline:
                raise TimeoutError(f"{self.id} is not complete after {timeout:g} s")
            time.sleep(POLL_SECONDS)
        return state

    def cancel(self) -> None:
        """Ends queued lines now and running ones within seconds, each with an error as its result."""
        if self.feeder:
            self.feeder.stop()
        batches.cancel(self.redis, self.id)

    def forget(self) -> None:
        """Drops all that Redis holds of the batch, which must be complete."""
        if not current(self.redis, self.id).complete:
            raise UserError(f"{self.id} is not complete; cancel it first")
        if not batches.forget(self.redis, self.id):
            raise UserError(f"failed lines of {self.id} were queued again just now; nothing was dropped")

    def feeding(self) -> bool:
        """Whether its lines are still being queued; raises what has ended that early."""
        if self.feeder and self.feeder.error:
            raise self.feeder.error
        return self.feeder is not None and self.feeder.is_alive()


class Reader:
    """Reads the results of a batch from behind the stream entry `after`, page by page."""

    def __init__(self, batch: Batch, after: str) -> None:
        self._batch, self._follower = batch, Follower(Patience(batch.redis), batch.id, after=after)
        self._from_start, self._read = after == "0-0", 0

    def next(self) -> list[Result] | None:
        """The next results, perhaps none; None if no more will come. Raises UserError if somebody else took some."""
        feeding = self._batch.feeding()
        page, is_last = self._follower.patience(self._follower.look, BLOCK_SECONDS)
        self._read += len(page.results)
        if is_last and not feeding:
            if self._from_start and self._read < page.state.ended:
                refuse_collected(page.state)
            return None
        return [Result.parse(result.entry, result.line, result.n) for result in page.results]


class Feeder(threading.Thread):
    """Queues a submission in the background; a window of its lines is in the queue at a time, and if it is to `detach`
    the rest is left to a feeder of the fleet.
    """

    def __init__(self, feed: Feed, detach: bool) -> None:
        super().__init__(name=f"draftmill-{feed.submission.info.id}")
        self.error: Exception | None = None
        self._stopped, self._feed, self._detach = threading.Event(), feed, detach

    def run(self) -> None:
        try:
            self._feed.detach(self._tick) if self._detach else self._feed.to_end(self._tick)
        except (_Stopped, Cancelled):
            pass
        except Exception as error:  # for `Batch.feeding`, in the thread that wants to know
            self.error = error

    def stop(self) -> None:
        """Lets it end after the lines that it queues just now."""
        self._stopped.set()
        self.join()

    def _tick(self) -> None:
        if self._stopped.is_set():
            raise _Stopped


class _Stopped(Exception):
    """Nothing more is to be queued."""


class Client:
    """A connection to the queue; a context manager, and threads may share it.

    Args:
        redis_url: redis://, rediss://, unix:// or redis+sentinel:// URL; by default REDIS_URL, else this machine's
            private server.

    Raises:
        UserError: in one line, what is wrong and what to do. RedisError: Redis failed later on.
    """

    def __init__(self, redis_url: str | None = None) -> None:
        self.redis = connect.connect(redis_url)
        self._feeders: list[Feeder] = []

    def __enter__(self) -> Client:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self.close(wait=kind is None)

    def submit(self, source: Source, **options: Unpack[Options]) -> Batch:
        """Queues prompts as a batch and returns while they are being queued.

        `source` is a path, or prompts, or rows such as `{"id": "q1", "prompt": "…", "max_tokens": 100}`. The same
        source with the same options is the same batch: submitting it again, after whatever befell this process,
        queues what has no result yet, and with `retry_failed` also what failed, if its error has `reason` in its code
        or message. With `detach`, what finds no room is left to a feeder of the fleet, and `close` does not wait for
        it. Lines that cannot be run are in `Batch.bad`; with `strict` they raise UserError. What of the others was
        ignored is told by `Batch.notes`.
        """
        if unknown := options.keys() - Options.__annotations__.keys():
            raise TypeError(f"submit() has no option {', '.join(sorted(unknown))}")
        given: dict[str, Any] = {"pair": DEFAULT_PAIR, **options, "keep": tuple(options.get("keep", ()))}
        dataset = self._dataset(source, given)
        survey = dataset.survey(options.get("slot"))
        if options.get("reason") and not options.get("retry_failed"):
            raise UserError("reason says which failed lines run again; it needs retry_failed")
        if survey.first_bad and options.get("strict"):
            raise UserError(f"{dataset.name}: {survey.first_bad} ({survey.bad} bad in all)")
        about = parameters.of({name: given[name] for name in given.keys() - NOT_ABOUT_LINES})
        priority, user = options.get("priority", "normal"), connect.user(self.redis)
        submission = plan(dataset, survey, user, priority, about, options.get("keep_results"))
        id, bad, notes = submission.info.id, tuple(survey.bad_lines), tuple(survey.notes.lines())
        before, retry_failed = batches.status(self.redis, id), options.get("retry_failed", False)
        refuse_cancelled(before)
        if before and before.complete and "keep_results" in options and not retry_failed:
            notes += ("the batch is complete already; keep_results changes nothing",)
        if before and before.collected and not retry_failed:
            return Batch(id, self.redis, bad, notes=notes)
        submission.begin(self.redis)
        patience, reason = Patience(self.redis), options.get("reason", "")
        feed = Feed(submission, patience, retry_failed=retry_failed, reason=reason)
        feeder = Feeder(feed, options.get("detach", False))
        self._feeders.append(feeder)
        feeder.start()
        return Batch(id, self.redis, bad, feeder, notes)

    def batch(self, id: str) -> Batch:
        """A batch that was submitted before, by whomever."""
        known(self.redis, id)
        return Batch(id, self.redis)

    def close(self, wait: bool = True) -> None:
        """Lets what was submitted be queued to its end, or with `wait` False stops that; then disconnects."""
        for feeder in self._feeders:
            feeder.join() if wait else feeder.stop()
        self.redis.close()
        for feeder in self._feeders:
            if wait and feeder.error:
                raise feeder.error

    def _dataset(self, source: Source, given: dict[str, Any]) -> Dataset:
        try:
            said = defaults(given)
        except Fault as fault:
            raise UserError(str(fault)) from None
        pair, options = (
            given["pair"],
            RowOptions(**{f.name: given[f.name] for f in fields(RowOptions) if f.name in given}),
        )
        if isinstance(source, str | PathLike):
            return Dataset(fspath(source), pair, said, options)
        with tempfile.NamedTemporaryFile(prefix="draftmill-", suffix=".jsonl") as file:
            for row in source:
                file.write(orjson.dumps({"prompt": row} if isinstance(row, str) else dict(row)) + b"\n")
            file.flush()
            dataset = Dataset(file.name, pair, said, replace(options, format="jsonl"))  # it keeps the file open
        dataset.name = "rows of a program"
        return dataset
