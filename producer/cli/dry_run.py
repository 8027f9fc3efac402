"""`--dry-run`: shows what would be run, how many tokens that is, and how long it may take; it submits nothing."""

from __future__ import annotations

import importlib
from collections.abc import Callable

import click
import redis as redis_py

from ..client.submission import Submission
from ..output.summary import count
from ..queue.connect import connect, running
from ..queue.errors import UserError
from ..queue.wire import JobBody
from .progress import clock, speed

PACKAGE = __name__.partition(".")[0]
SHOWN = 3
"""Prompts that are shown."""
MOST_SHOWN = 2_000
"""Characters that are shown of each message."""
MOST_COUNTED = 1_000
"""Prompts whose tokens are counted; of more than twice as many the tokens are estimated."""

Counter = Callable[[JobBody], int]


class Sizes:
    """Adds up prompts; counts the tokens of all while they are few, then of prompts at equal distances.

    A prompt that is counted and that the model refuses has neither tokens nor an answer: its line will fail.
    """

    def __init__(self, count: Counter | None) -> None:
        self._count = count
        self._counted: list[tuple[int, int]] = []
        self._distance = 1
        self.requests = self.characters = self.most_answered = self.refused = 0
        self.first_refused = ""

    def add(self, body: JobBody) -> None:
        characters = sum(len(text) for _, text in body.parts)
        try:
            if self._count and self.requests % self._distance == 0:
                self._counted.append((characters, self._count(body)))
        except UserError as error:
            self.refused += 1
            self.first_refused = self.first_refused or error.message
        else:
            self.characters += characters
            self.most_answered += body.sampling.max_tokens
        self.requests += 1
        if len(self._counted) == 2 * MOST_COUNTED:
            self._counted, self._distance = self._counted[::2], 2 * self._distance

    def __str__(self) -> str:
        """`12,345 tokens`, or what is known instead."""
        tokens = sum(tokens for _, tokens in self._counted)
        if self._count is None:
            return f"{self.characters:,} characters"
        if self._distance == 1:
            return f"{tokens:,} tokens"
        estimate = tokens * self.characters / max(1, sum(characters for characters, _ in self._counted))
        return f"about {estimate:,.0f} tokens, judged by {len(self._counted):,} of them"

    @property
    def failing(self) -> str:
        """`1 request, first: line 2: …`; once only some prompts are counted, of all those at least so many."""
        least = "" if self._distance == 1 else "at least "
        return f"{least}{count(self.refused, 'request')}, first: {self.first_refused}"


def preview(submission: Submission, redis_url: str | None) -> None:
    """Prints the first prompts and the totals of what would be submitted."""
    batch, survey = submission.info, submission.survey
    counters = {pair: _counter(pair) for pair in batch.pairs}
    sizes = {pair: Sizes(counter) for pair, (counter, _) in counters.items()}
    bodies = (item for item in submission.dataset if isinstance(item, JobBody))
    for place, body in enumerate(bodies):
        if place < SHOWN:
            _show(body, counters[body.pair][0])
        sizes[body.pair].add(body)
    bad = f", {count(survey.bad, 'bad line')} left out, first: {survey.first_bad}" if survey.bad else ""
    click.echo(f"{batch.id}: {count(survey.good, 'request')} for {', '.join(batch.pairs)}{bad}")
    for pair, size in sizes.items():
        if batch.others:
            click.echo(f"pair     {pair}: {count(size.requests, 'request')}")
        if size.refused:
            click.echo(f"failing  {size.failing}")
        click.echo(f"prompts  {size}{counters[pair][1]}")
        click.echo(f"answers  at most {size.most_answered:,} tokens, by max_tokens")
        click.echo(f"time     {_time(size.most_answered, pair, redis_url)}")
    click.echo("Nothing was submitted: --dry-run")


def _counter(pair: str) -> tuple[Counter | None, str]:
    """What counts tokens, or why only characters can be counted."""
    try:
        return importlib.import_module(f"{PACKAGE}.worker.tokens").counter(pair), ""
    except ModuleNotFoundError:
        return None, "; characters, because the packages that count tokens are not installed (draftmill[worker])"
    except UserError as error:
        return None, f"; characters, because tokens cannot be counted: {error.message}"


def _show(body: JobBody, counter: Counter | None) -> None:
    try:
        size = f", {counter(body):,} tokens" if counter else ""
    except UserError:
        size = ", will fail"
    click.echo(f"--- line {body.line}, id {body.custom_id}{size}")
    for role, text in body.parts:
        rest = f"… ({len(text) - MOST_SHOWN:,} more characters)" if len(text) > MOST_SHOWN else ""
        click.echo(f"{role}: {text[:MOST_SHOWN]}{rest}")


def _time(tokens: int, pair: str, redis_url: str | None) -> str:
    """How long the answers take at the speed at which the pair's workers generate just now."""
    try:
        redis = _redis(redis_url)
        live = speed(redis, pair) if redis else None
    except UserError as error:
        return f"unknown: {error.message}"
    if live is None:
        return "unknown: no Redis runs here; name one with --redis-url"
    if not live.workers:
        return f"unknown: no live worker serves {pair}"
    if not live.tokens_per_second:
        return f"unknown: the live workers of {pair} are idle, so their speed is not known"
    seconds = tokens / live.tokens_per_second
    return f"at most {clock(seconds)}, at the {live.tokens_per_second:,.0f} tokens/s of the live workers of {pair}"


def _redis(url: str | None) -> redis_py.Redis | None:
    """The Redis to ask; the private one is not started for this."""
    return connect(url) if url else running()
