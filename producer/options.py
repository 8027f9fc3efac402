"""Command line options that several commands share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click

from .contract import DEFAULT_PAIR, batch_of_slot
from .dataset import Dataset, RowOptions, Survey
from .errors import UserError
from .lines import SAMPLING, Defaults, Fault, sampling

Command = Callable[..., Any]

redis_url = click.option(
    "--redis-url",
    envvar="REDIS_URL",
    show_envvar=True,
    metavar="URL",
    help="redis://, rediss:// or unix:// URL. Default: a private server on this machine.",
)

_dataset = (
    click.argument("input", metavar="INPUT"),
    click.option(
        "--pair", default=DEFAULT_PAIR, show_default=True, metavar="NAME", help="Model that runs the prompts."
    ),
    click.option("--max-tokens", type=click.IntRange(1, 1_000_000), metavar="N", help="Default: 512."),
    click.option("--temperature", type=click.FloatRange(0, 2), metavar="T", help="Default: 0, the likeliest token."),
    click.option("--top-p", type=click.FloatRange(0, 1, min_open=True), metavar="P", help="Default: 1."),
    click.option("--top-k", type=click.IntRange(0), metavar="K", help="Default: 0, no limit."),
    click.option("--seed", type=click.IntRange(0), metavar="S", help="Default: one for each line."),
    click.option("--max-seconds", type=click.FloatRange(0, min_open=True), metavar="S", help="Default: no limit."),
    click.option("--system", metavar="TEXT", help="System message for chats that have none."),
    click.option(
        "--keep", multiple=True, metavar="COLUMN", help="Field of each line to hand back in its result; repeatable."
    ),
    click.option("--slot", metavar="TEXT", help="Run lines that were run before anew for each TEXT, such as a date."),
    click.option("--strict", is_flag=True, help="Refuse the whole file if any line is bad."),
)


def dataset(command: Command) -> Command:
    """INPUT and what applies where its lines say nothing."""
    for option in reversed(_dataset):
        command = option(command)
    return command


def read(input: str, pair: str, strict: bool, slot: str | None = None, **given: Any) -> tuple[Dataset, Survey]:
    """Opens and surveys INPUT; says on standard error what was ignored."""
    values = {name: given[name] for name in SAMPLING if given.get(name) is not None}
    try:
        sampling({}, values)
    except Fault as fault:
        raise UserError(f"--{fault}") from None
    dataset = Dataset(input, pair, Defaults(values, given.get("system")), RowOptions(keep=given.get("keep", ())))
    survey = dataset.survey()
    if strict and survey.first_bad:
        raise UserError(f"{dataset.name}: {survey.first_bad} ({survey.bad} bad in all; --strict refuses the file)")
    if slot:
        survey.batch = batch_of_slot(survey.batch, slot)
    for note, count in survey.notes.most_common(5):
        click.echo(f"Note: {note} ({count} {'line' if count == 1 else 'lines'})", err=True)
    return dataset, survey
