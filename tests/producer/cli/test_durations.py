"""Every option that is a length of time is written the same way."""

from __future__ import annotations

from collections.abc import Iterator

import click
import pytest
from click.testing import CliRunner

from draftmill.producer.cli.main import LazyCommand, main
from draftmill.producer.cli.options import Duration, duration


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("90", 90),
        ("0.5", 0.5),
        (".5", 0.5),
        ("30s", 30),
        ("15m", 900),
        ("2h30m", 9000),
        ("24h", 86400),
        ("1.5d", 129600),
        ("1d2h3m4.5s", 93784.5),
        ("0", 0),
    ],
)
def test_lengths_of_time(text: str, seconds: float) -> None:
    found = Duration().convert(text, None, None)
    assert (found, type(found)) == (seconds, float)
    assert Duration().convert(duration(found), None, None) == seconds


@pytest.mark.parametrize("text", ["", "soon", "s", "2h30", "30m2h", "1h1h", "-1", "1e3", "1.2.3", "5 m", "2H", "nan"])
def test_what_is_no_length_of_time(text: str) -> None:
    with pytest.raises(click.BadParameter, match="is no length of time; write for example 90, 30s, 15m or 2h30m"):
        Duration().convert(text, None, None)


@pytest.mark.parametrize(
    ("kind", "text", "said"),
    [
        (Duration(1, 3600), "2h", "'2h' is not at least 1s and at most 1h"),
        (Duration(1, 3600), "0.5", "'0.5' is not at least 1s and at most 1h"),
        (Duration(0.1), "0", "'0' is not at least 0.1s"),
    ],
)
def test_bounds(kind: Duration, text: str, said: str) -> None:
    with pytest.raises(click.BadParameter) as refused:
        kind.convert(text, None, None)
    assert refused.value.message == said


def test_lengths_of_time_are_shown_as_they_are_written() -> None:
    shown = {0: "0s", 0.1: "0.1s", 60: "1m", 90: "1m30s", 9000: "2h30m", 86400: "1d", 31_622_400: "366d"}
    assert {seconds: duration(seconds) for seconds in shown} == shown


def options(command: click.Command, path: str = "") -> Iterator[tuple[str, click.Parameter]]:
    if isinstance(command, LazyCommand):
        command = command.load()
    for parameter in command.params:
        yield f"{path}{parameter.opts[-1]}", parameter
    for name, below in command.commands.items() if isinstance(command, click.Group) else ():
        yield from options(below, f"{path}{name} ")


def test_all_options_that_take_one() -> None:
    found = {name for name, parameter in options(main) if isinstance(parameter.type, Duration)}
    assert found == {
        "run --max-seconds",
        "submit --keep-results",
        "submit --max-seconds",
        "workers --wait",
        "workers drain --wait",
        "cron add --every",
        "cron run --lease",
        "serve --retention",
        "serve --timeout",
        "serve --window",
        "worker --lease",
        "worker --drain",
        "train --max-time",
    }
    assert not [name for name, option in options(main) if option.metavar in ("S", "SECONDS") and name[-4:] != "seed"]


def test_help_shows_defaults_as_they_are_written() -> None:
    shown = CliRunner().invoke(main, ["worker", "--help"]).stdout
    assert "[default: 5m]" in shown
    assert "[default: 1m]" in shown
