"""The `draftmill` command: its group, its commands, and how errors leave it."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import click

from ... import __version__
from ..queue.errors import CUT_SHORT, check_words, explain, heed_signals, usage_in_one_line
from ..queue.urls import without_passwords
from .batches import cancel_command, collect_command, forget_command, submit_command
from .completion import completion_command
from .failed.command import failures_command
from .orders.limit import limit_command
from .orders.steer import pause_command, priority_command, resume_command
from .redis import redis_group
from .run import run
from .status import status_command
from .workers import workers_group

PACKAGE = __name__.partition(".")[0]
WORDS = f"{PACKAGE}.words"
"""Where the context keeps the command line."""


class LazyCommand(click.Command):
    """Stands for a command of the worker in the list; it is imported when it is called, never before."""

    def __init__(self, name: str, target: str, help: str) -> None:
        super().__init__(name, help=help)
        self.target = target

    def load(self) -> click.Command:
        module, _, attribute = self.target.partition(":")
        return getattr(importlib.import_module(f"{PACKAGE}.{module}"), attribute)


class Commands(click.Group):
    """A group that keeps its commands in order and turns every exception into one line and an exit code."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.commands)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        name, command, rest = super().resolve_command(ctx, args)
        if isinstance(command, LazyCommand):
            command = command.load()
        heed_signals()
        return name, command, rest

    def make_context(self, info_name: str | None, args: list[str], *rest: Any, **extra: Any) -> click.Context:
        words = list(args)
        with _reader_may_leave(), _unspoken(words), usage_in_one_line():
            check_words(words)
            context = super().make_context(info_name, args, *rest, **extra)
        context.meta[WORDS] = words
        return context

    def invoke(self, ctx: click.Context) -> Any:
        with _reader_may_leave(), _unspoken(ctx.meta[WORDS]):
            try:
                with usage_in_one_line():
                    return super().invoke(ctx)
            except (click.ClickException, click.exceptions.Exit, click.Abort):
                raise
            except (Exception, KeyboardInterrupt) as error:
                if ctx.params["debug"] or isinstance(error, BrokenPipeError):
                    raise
                raise explain(error) from None


@contextmanager
def _reader_may_leave() -> Iterator[None]:
    """Ends quietly when nobody reads the output any more; Python would end with 1 and a traceback."""
    try:
        yield
    except BrokenPipeError:
        with open(os.devnull, "wb") as nowhere:
            for stream in (sys.stdout, sys.stderr):  # what is left in them is flushed at exit
                os.dup2(nowhere.fileno(), stream.fileno())
        raise SystemExit(CUT_SHORT) from None


@contextmanager
def _unspoken(words: Sequence[str]) -> Iterator[None]:
    """Takes the passwords of the command line out of what an error says."""
    try:
        yield
    except click.ClickException as error:
        told = without_passwords(error.message, words)
        error.message = told  # pyright: ignore[reportAttributeAccessIssue] -- exit code and form are its class's
        raise


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="draftmill")
@click.option("--debug", is_flag=True, help="Show where an error comes from.")
def main(debug: bool) -> None:
    """Offline batch LLM inference for a fleet of Macs.

    \b
    On one machine:
      draftmill run prompts.jsonl -o results.jsonl
    With a fleet:
      draftmill submit prompts.jsonl          prints the batch id
      draftmill worker                        on each Mac
      draftmill collect BATCH -o results.jsonl --follow

    Exit codes: 0 done, 1 the self-test found something wrong, 2 wrong usage or input, 3 cannot use Redis, 4 finished
    with failed or bad lines, 70 a defect or a worker that died, 130 interrupted, and the same command goes on, 141 its
    output was not read to the end.

    \b
    Environment:
      REDIS_URL         Redis to use, where --redis-url is not given
      DRAFTMILL_HOME    folder of the private Redis and of results that wait for one
      DRAFTMILL_CACHE   folder of models and measurements
      NO_COLOR          if set, no colours
    """
    if os.environ.get("NO_COLOR"):
        click.get_current_context().color = False


for command in (
    run,
    submit_command,
    status_command,
    failures_command,
    collect_command,
    pause_command,
    resume_command,
    priority_command,
    cancel_command,
    forget_command,
    limit_command,
):
    main.add_command(command)
main.add_command(LazyCommand("serve", "producer.web.serve.command:serve", "Serve OpenAI's Batch API."))
main.add_command(
    LazyCommand("dashboard", "producer.web.dashboard.command:dashboard", "Show batches and workers on a live page.")
)
main.add_command(LazyCommand("worker", "worker.cli.worker:worker", "Load a model and work on its queue."))
main.add_command(LazyCommand("pairs", "worker.cli.pairs:pairs", "List the known pairs of target and draft."))
main.add_command(LazyCommand("doctor", "worker.cli.doctor:doctor", "Check this machine and say what is missing."))
main.add_command(LazyCommand("selftest", "worker.cli.selftest:selftest", "Prove that all works on this machine."))
main.add_command(LazyCommand("train", "worker.cli.train:train", "Train a draft for a target."))
main.add_command(LazyCommand("bench", "worker.cli.bench:bench", "Measure speed beside mlx-lm and other engines."))
main.add_command(LazyCommand("exporter", "producer.web.exporter:exporter", "Serve the fleet's metrics to Prometheus."))
main.add_command(LazyCommand("cron", "producer.cli.cron:cron_group", "Submit at set times."))
main.add_command(LazyCommand("feed", "producer.cli.orders.feed:feed_command", "Queue what submitters left."))
main.add_command(redis_group)
main.add_command(workers_group)
main.add_command(completion_command)
