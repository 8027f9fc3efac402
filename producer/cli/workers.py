"""`draftmill workers`: the workers of the fleet, and what operators ask of them."""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from importlib import metadata
from typing import Any

import click
import redis as redis_py

from ... import __version__
from ..queue import fleet, pair_names
from ..queue.connect import connect
from ..queue.errors import FAILED_ITEMS, UserError
from ..queue.fleet import Report, Shift
from ..queue.wire import WIRE
from . import options
from .report import print_json, print_table, worker_report

POLL_SECONDS = 0.25


class Clock(click.ParamType):
    """A time of day such as 22:00."""

    name = "HH:MM"

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> str:
        if not re.fullmatch(r"([01]\d|2[0-3]):[0-5]\d", value):
            self.fail(f"{value!r} is no time of day; write for example 22:00", param, ctx)
        return value


@click.group("workers", invoke_without_command=True)
@click.option("--host", metavar="NAME", help="Only those of this machine.")
@click.option("--wait", type=options.Duration(), metavar="TIME", help="Wait for a live one, so long at most.")
@options.as_json
@options.redis_url
@click.pass_context
def workers_group(
    context: click.Context, host: str | None, wait: float | None, as_json: bool, redis_url: str | None
) -> None:
    """List the workers of the fleet, or say what they are to do: drain, resume, pair, require.

    One that vanished stays in the list for a day as `gone`, unless its machine has a new one. The exit code is 4 if
    there is no live worker and --wait or --host asks for one.

    \b
    Examples:
      draftmill workers
      draftmill workers --json | jq -r '.[] | select(.state == "gone").host'
      draftmill workers --host mini-3 --wait 2m
    """
    if context.invoked_subcommand:
        return
    redis = connect(redis_url)

    def found() -> list[Report]:
        return [report for report in fleet.reports(redis) if host in (None, report.host)]

    def live() -> bool:
        return any(not report.gone for report in found())

    missing = (host or wait is not None) and not _within(wait or 0, live)
    reports = found()
    if as_json:
        print_json([worker_report(report) for report in reports])
    else:
        _list(reports)
        _tell_orders(redis)
    if missing:
        sys.exit(FAILED_ITEMS)


def _connect(redis_url: str | None) -> redis_py.Redis:
    """Redis as a command below `workers` or `workers` itself names it."""
    parent = click.get_current_context().parent
    assert parent
    return connect(redis_url or parent.params["redis_url"])


@workers_group.command("drain")
@click.argument("names", metavar="NAME…", nargs=-1)
@click.option("--all", "everybody", is_flag=True, help="The whole fleet, and who joins it.")
@click.option("--wait", type=options.Duration(), metavar="TIME", help="Wait until they are drained, so long at most.")
@options.redis_url
def drain(names: tuple[str, ...], everybody: bool, wait: float | None, redis_url: str | None) -> None:
    """Let the worker or the machine NAME take nothing new until `resume`.

    What runs is finished; what takes longer than the worker's own --drain goes back to the queue. A machine
    stays drained when its worker is started again. With --wait the exit code is 4 if they are not drained in time.

    \b
    Examples:
      draftmill workers drain mini-3 --wait 10m
      draftmill workers drain --all
    """
    redis = _connect(redis_url)
    wanted = _named(names, everybody)
    known = {name for report in fleet.reports(redis) for name in (report.name, report.host)}
    if unknown := [name for name in wanted if name not in known | {fleet.EVERYBODY}]:
        raise UserError(f"no worker and no machine is called {unknown[0]!r}; `draftmill workers` lists them")
    fleet.drain(redis, wanted)
    if wait is None:
        return

    def drained() -> bool:
        meant = [report for report in fleet.reports(redis) if {report.name, report.host, fleet.EVERYBODY} & set(wanted)]
        return all(report.state in ("drained", "gone") for report in meant)

    if not _within(wait, drained):
        click.echo(f"not drained after {options.duration(wait)}; `draftmill workers` shows what runs", err=True)
        sys.exit(FAILED_ITEMS)


@workers_group.command("resume")
@click.argument("names", metavar="NAME…", nargs=-1)
@click.option("--all", "everybody", is_flag=True, help="All that is drained.")
@options.redis_url
def resume(names: tuple[str, ...], everybody: bool, redis_url: str | None) -> None:
    """Let what `drain` stopped take jobs again.

    \b
    Example:
      draftmill workers resume mini-3
    """
    redis = _connect(redis_url)
    wanted = _named(names, everybody)
    drained = fleet.drained(redis)
    if everybody:
        wanted = drained
    if missing := [name for name in wanted if name not in drained]:
        known = ", ".join("--all" if name == fleet.EVERYBODY else name for name in drained) or "nothing"
        raise UserError(f"{missing[0]!r} is not drained by that name; drained: {known}")
    if wanted:
        fleet.resume(redis, wanted)


@workers_group.command("pair")
@click.argument("host", metavar="MACHINE")
@click.argument("pair", metavar="[PAIR]", required=False)
@click.option("--from", "start", type=Clock(), help="Serve it from this time of the machine's clock …")
@click.option("--until", "end", type=Clock(), help="… until this one; past midnight if it is the earlier one.")
@click.option("--clear", is_flag=True, help="Forget all that was said for MACHINE.")
@options.redis_url
def pair(host: str, pair: str | None, start: str | None, end: str | None, clear: bool, redis_url: str | None) -> None:
    """Say which PAIR the workers of MACHINE serve, always or at some hours; without PAIR, show it.

    MACHINE "*" stands for all that have no pairs of their own. Hours go before `always`, and of two that overlap the
    one that was said last. A worker with `--pair auto` changes its pair; others take nothing while it is another.

    \b
    Examples:
      draftmill workers pair mini-3 qwen3-4b
      draftmill workers pair mini-3 qwen3.5-27b --from 22:00 --until 06:00
      draftmill workers pair "*" smollm2-135m
    """
    if (start is None) != (end is None):
        raise click.UsageError("--from and --until belong together")
    if start is not None and (start == end or not pair):
        raise click.UsageError("--from and --until are the hours of a PAIR, and differ")
    redis = _connect(redis_url)
    pair = pair and pair_names.canonical(pair)
    shifts = [] if clear else fleet.schedule(redis, host)
    if pair:
        new = Shift(pair, start or "00:00", end or "00:00")
        shifts = [new, *(shift for shift in shifts if (shift.start, shift.end) != (new.start, new.end))]
    if pair or clear:
        fleet.set_schedule(redis, host, shifts)
    if pair and host != "*" and host not in {report.host for report in fleet.reports(redis)}:
        click.echo(f"Note: no worker of a machine called {host} is known yet; `draftmill workers` lists them", err=True)
    if pair and (hint := pair_names.hint(pair)):
        click.echo(f"Note: {pair} is no pair that is known by name{hint}", err=True)
    for shift in shifts:
        click.echo(f"{host}  {shift.pair}  {'always' if shift.always else f'{shift.start} to {shift.end}'}")
    if not shifts:
        click.echo(f"{host}  any pair")


@workers_group.command("require")
@click.argument("draftmill", metavar="[VERSION]", required=False)
@click.option("--mlx", metavar="VERSION", help="Of MLX, too.")
@click.option("--rq", metavar="VERSION", help="Of RQ, too.")
@click.option("--wire", type=click.IntRange(1), metavar="NUMBER", help="Of what stands in Redis, too.")
@click.option("--any", "anything", is_flag=True, help="Let workers of all versions work again.")
@options.redis_url
def require(anything: bool, redis_url: str | None, **given: Any) -> None:
    """Let only workers with draftmill VERSION and these other versions take jobs; the others say so and wait.

    Each call says all that is required: what it does not name may have any version. Without versions it shows what is
    required, and what this machine has.

    \b
    Examples:
      draftmill workers require 0.2.0
      draftmill workers require 0.2.0 --mlx 0.32.4
      draftmill workers require --wire 2
    """
    wanted = {name: str(given[name]) for name in fleet.VERSIONED if given[name]}
    if wanted and anything:
        raise click.UsageError("give versions or --any")
    redis = _connect(redis_url)
    if wanted or anything:
        fleet.require(redis, wanted)
    click.echo(f"required: {_versions(fleet.required(redis)) or 'any version'}; here: {_versions(_here())}")


def _here() -> dict[str, str]:
    """The versions of this machine; producers have no MLX."""
    found = {"draftmill": __version__}
    for name in ("mlx", "rq"):
        with suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found | {"wire": str(WIRE)}


def _versions(versions: Mapping[str, str]) -> str:
    return ", ".join(f"{name} {version}" for name, version in versions.items())


def _named(names: Sequence[str], everybody: bool) -> list[str]:
    if bool(names) == everybody:
        raise click.UsageError("name workers or machines, or say --all")
    return [fleet.EVERYBODY] if everybody else list(names)


def _within(seconds: float, holds: Callable[[], bool]) -> bool:
    """Whether it holds now or comes to hold in time."""
    deadline = time.monotonic() + seconds
    while not holds():
        if time.monotonic() >= deadline:
            return False
        time.sleep(POLL_SECONDS)
    return True


def _list(reports: Sequence[Report]) -> None:
    if not reports:
        click.echo("No workers here. Start one: draftmill worker")
        return
    rows = []
    for report in reports:
        speed, per_round, energy = report.tokens_per_second, report.tokens_per_round, report.watt_hours_per_million
        row = [
            report.name,
            report.state,
            report.text("chip"),
            report.served,
            report.text("version"),
            f"{speed:,.0f}",
            f"{per_round:.1f}" if per_round else "",
            f"{report.number('in_flight'):.0f}",
            f"{energy:,.0f}" if energy else "",
            ago(report.age),
        ]
        remarks = [report.reason] if report.reason else []
        if (heat := report.text("thermal")) in HOT:
            remarks.append(f"heat: {heat}")
        if stock := report.text("stock"):
            remarks.append(f"stock MLX runs: {stock}")
        rows.append([*row, "; ".join(remarks)])
    print_table(HEAD, rows)


HEAD = (
    "WORKER",
    "STATE",
    "CHIP",
    "PAIR",
    "VERSION",
    "TOKENS/S",
    "TOKENS/ROUND",
    "IN FLIGHT",
    "WH/MTOKEN",
    "BEAT",
    "",
)
HOT = ("fair", "serious", "critical")


def ago(seconds: float) -> str:
    """`2 s ago`, `5 min ago`, `3 h ago`."""
    for unit, length in (("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit} ago"
    return f"{seconds:.0f} s ago"


def _tell_orders(redis: redis_py.Redis) -> None:
    """What operators ask for, where it is not the usual."""
    if required := fleet.required(redis):
        click.echo(f"required: {_versions(required)}")
    if drained := fleet.drained(redis):
        click.echo(f"drained: {', '.join('all' if name == fleet.EVERYBODY else name for name in drained)}")
