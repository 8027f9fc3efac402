"""`draftmill cron`: schedules of `draftmill submit`, kept in Redis and run by any number of schedulers."""

from __future__ import annotations

import logging
import os
import re
import shlex
from copy import copy
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, get_args

import click
from click.core import ParameterSource

from ..client.fleet_feeder import FleetFeeder
from ..client.until_stopped import until_stopped
from ..cron import entries
from ..cron.entries import Entry
from ..cron.schedule import LONGEST_MS, NAME, SHORTEST_MS, Missed, Schedule, check_inside, check_url
from ..cron.scheduler import Scheduler
from ..cron.work import Planned, log
from ..input.remote import is_url
from ..queue import schedules as store
from ..queue.connect import connect, resolve, user
from ..queue.errors import INTERRUPTED, UserError
from ..queue.schedules import spoken
from ..queue.urls import masked
from . import options
from .batches import planned, submit_command
from .report import print_json


class Name(click.ParamType):
    """The name of a schedule."""

    name = "name"

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> str:
        if not re.fullmatch(NAME, value):
            self.fail(f"{value!r} is no name; use letters, digits, '.', '_' and '-', at most 64", param, ctx)
        return value


class BeforeSubmit(click.Command):
    """Leaves all that follows the word `submit` to that command, so that no `--` is needed."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        at = args.index("submit") if "submit" in args else len(args)
        own = args[: at - 1] if args[at - 1 : at] == ["--"] else args[:at]
        return super().parse_args(ctx, [*own, "--", *args[at:]])


@click.group("cron")
def cron_group() -> None:
    """Submit at set times: add schedules, and run schedulers.

    \b
    Example:
      draftmill cron add notes --every 1h -o 'summaries/%Y-%m-%dT%H%M.jsonl' submit notes.jsonl
      draftmill cron run
    """


@cron_group.command("add", cls=BeforeSubmit)
@click.argument("name", metavar="NAME", type=Name())
@click.argument("arguments", metavar="submit INPUT [OPTIONS OF SUBMIT]", nargs=-1, type=click.UNPROCESSED)
@click.option(
    "--every",
    type=options.Duration(SHORTEST_MS / 1000, LONGEST_MS / 1000),
    metavar="TIME",
    help="Such as 30s, 15m, 1h, 1d: from 00:00 UTC.",
)
@click.option("--cron", metavar="EXPRESSION", help='Minute, hour, day, month, weekday, such as "0 9 * * mon-fri".')
@click.option("--timezone", default="UTC", show_default=True, metavar="ZONE", help="Of --cron and -o.")
@click.option(
    "--missed",
    type=click.Choice(get_args(Missed)),
    default="one",
    show_default=True,
    help="What to do about slots that nobody took: leave them out, run only the last, or run all.",
)
@click.option(
    "-o", "--output", default="", metavar="OUT", help="Write each slot's results; OUT has its time, see below."
)
@options.redis_url
def add(name: str, arguments: tuple[str, ...], every: float | None, redis_url: str | None, **given: Any) -> None:
    """Add the schedule NAME: submit INPUT at each of its slots, each time as a batch of its own.

    \b
    Times    --every counts from 00:00 UTC: 1h is each full hour. --cron is read in --timezone. A time that
             the clocks skip in spring comes when they have been put forward; one that they repeat in autumn
             comes once, at its first time; with * for the hour, each hour comes, however it is called.
    Missed   A slot is missed if no scheduler took it within 60 s, or before the next slot. `skip` leaves it
             out, `one` runs the last one that was missed, however late, `all` runs each, the oldest first.
    Paths    INPUT and OUT are relative to the folder in which `draftmill cron run` runs, and inside it. INPUT may
             be a URL below one that `draftmill cron run --urls` names, OUT one below its --out-urls.
    OUT      is written by the scheduler when the batch is complete. %Y %m %d %H %M and so on stand for the
             slot's time in --timezone; no two slots may have the same OUT.

    \b
    Example:
      draftmill cron add notes --every 1h -o 'summaries/%Y-%m-%dT%H%M.jsonl' submit notes.jsonl --max-tokens 80
      draftmill cron add report --cron "0 9 * * mon-fri" --timezone Europe/Berlin submit questions.jsonl
    """
    if arguments[:1] != ("submit",):
        raise click.UsageError("say what to submit: `… submit INPUT` with the options of `draftmill submit`")
    every_ms = None if every is None else round(every * 1000)
    schedule = Schedule(name=name, arguments=arguments[1:], every_ms=every_ms, **given)
    schedule.check(check_arguments)
    first = entries.add(connect(redis_url), schedule)
    click.echo(f"Added {name}: first slot {schedule.local(first):%Y-%m-%d %H:%M:%S %Z}; `draftmill cron run` runs it")


@cron_group.command("list")
@options.as_json
@options.redis_url
def list_command(as_json: bool, redis_url: str | None) -> None:
    """List the schedules: when each runs next, how its last slot ended, and what it submits.

    \b
    Examples:
      draftmill cron list
      draftmill cron list --json | jq '.[].last.batch'
    """
    schedules = entries.read(connect(redis_url), check_arguments)
    if as_json:
        print_json([_report(entry) for entry in schedules.entries.values()])
        return
    if not schedules.entries and not schedules.unusable:
        click.echo("No schedules here. Make one: draftmill cron add NAME --every 1h submit INPUT")
    for entry in schedules.entries.values():
        for line in _told(entry):
            click.echo(line)
    for name, reason in schedules.unusable.items():
        click.echo(f"{name}\n  cannot run: {reason}")


def _report(entry: Entry) -> dict[str, Any]:
    """A schedule for scripts; slots are Unix milliseconds."""
    last = asdict(entry.last) | {"outcome": entry.last.outcome} if entry.last else None
    return entry.schedule.model_dump() | {"next": entry.next, "last": last}


def _told(entry: Entry) -> list[str]:
    schedule, last = entry.schedule, entry.last
    when = f"cron {schedule.cron!r}" if schedule.cron else f"every {options.duration((schedule.every_ms or 0) / 1000)}"
    missed = {
        "skip": "missed slots are left out",
        "one": "of missed slots the last runs",
        "all": "missed slots all run",
    }
    lines = [
        f"{schedule.name}",
        f"  when    {when}, {schedule.timezone}; {missed[schedule.missed]}",
        f"  next    {schedule.local(entry.next):%Y-%m-%d %H:%M:%S %Z}",
        f"  submit  {shlex.join(schedule.arguments)}",
    ]
    if schedule.output:
        lines.append(f"  out     {schedule.output}")
    if last:
        result = last.said if last.batch in last.said else f"{last.said} ({last.batch})"
        lines.append(f"  last    {spoken(last.at)}: {result}")
    return lines


@cron_group.command("remove")
@click.argument("name", metavar="NAME", type=Name())
@options.redis_url
def remove(name: str, redis_url: str | None) -> None:
    """Remove the schedule NAME. Batches that it submitted stay.

    \b
    Example:
      draftmill cron remove notes
    """
    store.remove(connect(redis_url), name)
    click.echo(f"Removed {name}")


@cron_group.command("run")
@click.option(
    "--folder",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    default=".",
    help="Where the paths of schedules begin.  [default: this one]",
)
@click.option(
    "--lease",
    type=options.Duration(1, 3600),
    default="1m",
    show_default=True,
    metavar="TIME",
    help="After which others take over the slots of a scheduler that fell silent.",
)
@click.option(
    "--urls", multiple=True, metavar="URL", help="INPUT of schedules may be below this one; repeatable. Default: none."
)
@click.option(
    "--out-urls",
    multiple=True,
    metavar="URL",
    help="OUT of schedules may be below this one; repeatable. Default: none.",
)
@options.redis_url
@click.pass_context
def run(
    context: click.Context,
    folder: Path,
    lease: float,
    urls: tuple[str, ...],
    out_urls: tuple[str, ...],
    redis_url: str | None,
) -> None:
    """Run the schedules until stopped; start as many schedulers as you like.

    Each slot is submitted by one of them; if that one dies meanwhile, another goes on with it. Schedulers on
    several machines need the same files in their folders. A schedule whose INPUT is a URL runs only where --urls says
    so, and one whose OUT is a URL where --out-urls does: the scheduler reads and writes it with its own credentials,
    whoever wrote the schedule. SIGTERM or Ctrl-C hands open slots to the others.

    \b
    Example:
      draftmill cron run --folder ~/work
      draftmill cron run --urls s3://bucket/prompts --out-urls s3://bucket/answers
    """
    url = resolve(redis_url)
    redis = connect(url)
    os.chdir(folder)
    for folder_url in urls:
        check_url("--urls", folder_url, None)
    for folder_url in out_urls:
        check_url("--out-urls", folder_url, None)
    check = partial(check_arguments, urls=urls)
    scheduler = Scheduler(redis, lease, check, partial(plan_arguments, user(redis)), out_urls)
    logging.basicConfig(format="%(asctime)s %(message)s", datefmt="%H:%M:%S", level=logging.INFO)
    if context.find_root().params["debug"]:
        log.setLevel(logging.DEBUG)
    feeder = FleetFeeder(redis)
    feeder.start()

    def schedule() -> bool:
        where = Path.cwd()
        click.echo(f"scheduler {scheduler.name} runs the schedules of {masked(url)} in {where}")  # signals stop it now
        return scheduler.run()

    is_done = until_stopped(schedule, scheduler.stop.set)
    feeder.stop()
    if not is_done:
        raise UserError("stopped with open slots; other schedulers, or the next one, go on with them", INTERRUPTED)


def check_arguments(arguments: tuple[str, ...], urls: tuple[str, ...] | None = None) -> None:
    """Refuses what `submit` would not take, and what a schedule must not do. URLs must be below one of `urls`, if they
    are given.
    """
    command = copy(submit_command)
    command.params = [copy(parameter) for parameter in command.params]
    for parameter in command.params:
        parameter.callback = None  # they would read files here and now
    context = _parse(command, arguments)
    for parameter in command.params:
        given: Any = context.params.get(parameter.name or "")
        if context.get_parameter_source(parameter.name or "") != ParameterSource.COMMANDLINE or given is None:
            continue
        if parameter.name in OWN:
            raise UserError(f"a schedule cannot have {parameter.opts[0]}: {OWN[parameter.name]}")
        if parameter.name == "input" and is_url(given):
            check_url("INPUT", given, urls)
        elif parameter.name == "input" or isinstance(parameter.type, click.Path | click.File):
            check_inside("INPUT" if parameter.name == "input" else parameter.opts[0], str(given))
        elif isinstance(given, str) and given.startswith("@"):
            check_inside(f"{parameter.opts[0]} @", given[1:])


def plan_arguments(user: str, arguments: tuple[str, ...], slot: str) -> Planned:
    """What `draftmill submit` would make of arguments, once they are checked, for `user` and a slot."""
    given = _parse(submit_command, arguments).params
    about = {name: value for name, value in given.items() if name not in OWN}
    retry_failed, reason = about.pop("retry_failed"), about.pop("reason") or ""
    return Planned(planned(user, slot=slot, **about), retry_failed, reason)


def _parse(command: click.Command, arguments: tuple[str, ...]) -> click.Context:
    try:
        return command.make_context("draftmill submit", list(arguments), help_option_names=[])
    except click.UsageError as error:
        raise UserError(f"{error.format_message().rstrip('.')}; see `draftmill submit --help`") from None


OWN = {
    "slot": "each slot is a batch of its own already",
    "redis_url": "it is submitted to the Redis that keeps it",
    "as_json": "the scheduler prints what it does itself",
    "dry_run": "it is there to submit",
    "detach": "the scheduler leaves what finds no room to a feeder by itself",
}
"""Options of `submit` that make no sense in a schedule, and why."""
