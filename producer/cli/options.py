"""Command line options that several commands share."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, fields
from functools import wraps
from pathlib import Path
from typing import Any, get_args

import click
import orjson

from ..client.hook import SECRET, Hook
from ..input.dataset import Dataset, Survey
from ..input.defaults import defaults
from ..input.request.faults import Fault
from ..input.request.structure import schema_text
from ..input.request.thinking import EFFORTS
from ..input.rows import RowOptions
from ..input.sources import BOM, FORMATS
from ..queue.errors import UserError, explain_file
from ..queue.wire import DEFAULT_PAIR, MOST_CHOICES, MOST_LOGPROBS, DraftSource
from .completion import batch_ids
from .progress import Moving

Command = Callable[..., Any]

UNITS = {"d": 86400, "h": 3600, "m": 60, "s": 1}
NUMBER = r"\d+(?:\.\d+)?|\.\d+"


class Duration(click.ParamType):
    """A length of time such as 90, 30s, 2h30m or 1.5d, as seconds; a bare number counts seconds.

    `least` and `most` are the seconds that it may have.
    """

    name = "time"

    def __init__(self, least: float = 0.0, most: float = math.inf) -> None:
        self.least, self.most = least, most

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> float:
        parts = "".join(rf"(?:({NUMBER}){unit})?" for unit in UNITS)
        match = re.fullmatch(parts, f"{value}s" if re.fullmatch(NUMBER, value) else value)
        if not value or match is None:
            self.fail(f"{value!r} is no length of time; write for example 90, 30s, 15m or 2h30m", param, ctx)
        seconds = sum(float(part) * length for part, length in zip(match.groups(), UNITS.values(), strict=True) if part)
        if math.isinf(seconds):
            self.fail("it is too long a time", param, ctx)
        if not self.least <= seconds <= self.most:
            most = "" if self.most == math.inf else f" and at most {duration(self.most)}"
            self.fail(f"{value!r} is not at least {duration(self.least)}{most}", param, ctx)
        return seconds


class Drafts(click.ParamType):
    """Sources of drafts, with a comma between two; or none."""

    name = "drafts"

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, ...]:
        names, known = [each.strip() for each in value.split(",")], get_args(DraftSource)
        if names == ["none"]:
            return ()
        if wrong := [name for name in names if name not in known]:
            self.fail(f"{wrong[0]!r} is no source of drafts: name some of {', '.join(known)}, or none", param, ctx)
        return tuple(names)


def duration(seconds: float) -> str:
    """As `Duration` reads it: `2h30m`, `0.5s`."""
    text, left = "", seconds
    for unit, length in UNITS.items():
        count = left if unit == "s" else left // length
        if count:
            text += f"{count:g}{unit}"
            left -= count * length
    return text or "0s"


redis_url = click.option(
    "--redis-url",
    envvar="REDIS_URL",
    show_envvar=True,
    metavar="URL",
    help="redis://, rediss://, unix:// or redis+sentinel:// URL. Default: a private server on this machine.",
)


def batch(required: bool = True) -> Callable[[Command], Command]:
    """BATCH, which shells can complete."""
    metavar = "BATCH" if required else "[BATCH]"
    return click.argument("batch", metavar=metavar, required=required, shell_complete=batch_ids)


ADAPTER = r"\w[\w.-]*"
"""Names of adapters: no comma, which stands between two, and no colon, which stands before one."""


class Folders(click.ParamType):
    """Folders by their names: NAME=PATH, with a comma between two."""

    name = "folders"

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> dict[str, Path]:
        folders: dict[str, Path] = {}
        for each in value.split(","):
            name, _, path = each.strip().partition("=")
            if not re.fullmatch(ADAPTER, name) or not path:
                self.fail(f"{each!r} is not NAME=PATH; a name has letters, digits, '.', '_' and '-'", param, ctx)
            if name in folders:
                self.fail(f"{name!r} is named twice", param, ctx)
            folders[name] = Path(path).expanduser()
        return folders


@dataclass(frozen=True)
class Lora:
    """LoRA adapters by name, the `default` that lines have which name none, and the `options` that said so."""

    folders: Mapping[str, Path] = field(default_factory=dict[str, Path])
    default: str | None = None
    options: tuple[str, ...] = ()

    @staticmethod
    def of(adapter: str | None, adapters: Mapping[str, Path] | None) -> Lora:
        """What `--adapter` or `--adapters` say; that of all lines is called as its folder is. Raises UserError."""
        if adapter and adapters:
            raise UserError("--adapter is for all lines: give either --adapter or --adapters")
        if adapter:
            path = Path(adapter).expanduser()
            own = re.sub(r"[^\w.-]+", "-", path.resolve().name)
            return Lora({own: path}, own, ("--adapter", adapter))
        if not adapters:
            return Lora()
        return Lora(adapters, None, ("--adapters", ",".join(f"{name}={path}" for name, path in adapters.items())))


def lora(command: Command) -> Command:
    """Gives a command the argument `lora`."""

    @click.option(
        "--adapter", metavar="PATH", help="LoRA adapter for all lines: a folder that mlx_lm.lora has written."
    )
    @click.option("--adapters", type=Folders(), metavar="NAME=PATH,…", help="LoRA adapters for lines that name them.")
    @wraps(command)
    def with_lora(*args: Any, adapter: str | None, adapters: dict[str, Path] | None, **given: Any) -> Any:
        return command(*args, lora=Lora.of(adapter, adapters), **given)

    return with_lora


def retry_failed(command: Command) -> Command:
    """Gives a command the arguments `retry_failed` and `reason`."""

    @click.option("--retry-failed", is_flag=True, help="Run failed lines again; those with a result stay.")
    @click.option(
        "--reason",
        metavar="TEXT",
        help="With --retry-failed: only those with TEXT in the first 200 characters of their error, code and message.",
    )
    @wraps(command)
    def with_retry(*args: Any, retry_failed: bool, reason: str | None, **given: Any) -> Any:
        if reason is not None and not retry_failed:
            raise click.UsageError("--reason says which failed lines run again; it needs --retry-failed")
        return command(*args, retry_failed=retry_failed, reason=reason or "", **given)

    return with_retry


def notify(command: Command) -> Command:
    """Gives a command the argument `hook`: whom to tell when the batch has ended, or None."""

    @click.option(
        "--notify",
        metavar="URL|COMMAND",
        help="Tell it when the batch has ended: a URL by a signed POST, a command on its standard input.",
    )
    @click.option(
        "--notify-secret",
        type=click.Path(path_type=Path),
        metavar="FILE",
        help=f"Holds the secret that signs for a URL.  [default: the environment's {SECRET}]",
    )
    @wraps(command)
    def with_hook(*args: Any, notify: str | None, notify_secret: Path | None, **given: Any) -> Any:
        if notify is None and notify_secret:
            raise click.UsageError("--notify-secret signs what --notify sends; name a URL with --notify")
        hook = None if notify is None else Hook.of(notify, notify_secret)
        return command(*args, hook=hook, **given)

    return with_hook


dry_run = click.option("--dry-run", is_flag=True, help="Show three prompts, tokens and time; submit nothing.")
out = click.option(
    "-o", "--output", "out", required=True, type=click.Path(), help="File of results, or its URL (s3://, gs://, hf://)."
)
as_json = click.option("--json", "as_json", is_flag=True, help="Print JSON for scripts on standard output.")


def _text_or_file(_: click.Context, __: click.Parameter, value: str | None) -> str | None:
    """What an option says, or what the file behind an @ holds; its byte order mark is no part of that."""
    if value is None or not value.startswith("@"):
        return value
    try:
        return Path(value[1:]).read_text(encoding="utf-8-sig").removesuffix("\n")
    except UnicodeDecodeError:
        raise UserError(f"{value[1:]!r} is not UTF-8; convert it") from None
    except OSError as error:
        raise UserError(explain_file(error, "cannot read", value[1:])) from error


def _if_any(_: click.Context, __: click.Parameter, values: tuple[str, ...]) -> tuple[str, ...] | None:
    """What a repeatable option says, or None: an empty list is something that only programs can ask for."""
    return values or None


def _schema(_: click.Context, __: click.Parameter, path: str | None) -> str | None:
    """The text of the JSON schema in a file."""
    if path is None:
        return None
    try:
        return schema_text(orjson.loads(Path(path).read_bytes().removeprefix(BOM)), "--schema")
    except (orjson.JSONDecodeError, Fault) as error:
        raise UserError(f"{path!r} does not hold a JSON schema: {error}") from None
    except OSError as error:
        raise UserError(explain_file(error, "cannot read", path)) from error


_dataset = (
    click.argument("input", metavar="INPUT"),
    click.option(
        "--pair", default=DEFAULT_PAIR, show_default=True, metavar="NAME", help="Model that runs the prompts."
    ),
    click.option(
        "--models",
        multiple=True,
        metavar="NAME=PAIR,…",
        callback=_if_any,
        help="Pairs of lines whose model has such a name; NAME alone is a pair. Those of `draftmill pairs` go without.",
    ),
    click.option("--max-tokens", type=click.IntRange(1, 1_000_000), metavar="N", help="Default: 512."),
    click.option("--temperature", type=click.FloatRange(0, 2), metavar="T", help="Default: 0, the likeliest token."),
    click.option("--top-p", type=click.FloatRange(0, 1, min_open=True), metavar="P", help="Default: 1."),
    click.option("--top-k", type=click.IntRange(-1), metavar="K", help="Default: 0, no limit."),
    click.option("--min-p", type=click.FloatRange(0, 1), metavar="P", help="Default: 0, no limit."),
    click.option("--repetition-penalty", type=click.FloatRange(0.01, 100), metavar="X", help="Default: 1, none."),
    click.option("--presence-penalty", type=click.FloatRange(-2, 2), metavar="X", help="Default: 0, none."),
    click.option("--frequency-penalty", type=click.FloatRange(-2, 2), metavar="X", help="Default: 0, none."),
    click.option("--seed", type=click.IntRange(-1), metavar="S", help="Default: one for each line."),
    click.option("--n", type=click.IntRange(1, MOST_CHOICES), metavar="N", help="Answers to each line. Default: 1."),
    click.option(
        "--logprobs",
        type=click.IntRange(0, MOST_LOGPROBS),
        metavar="K",
        help="Log-probabilities of the tokens, and of the K likeliest at each place.",
    ),
    click.option("--max-seconds", type=Duration(0.001), metavar="TIME", help="Default: no limit."),
    click.option("--model-defaults", is_flag=True, help="Else sample as the model's generation_config.json says."),
    click.option("--drafts", type=Drafts(), metavar="SOURCE,…", help="Where drafts may come from: as workers have it."),
    click.option("--thinking/--no-thinking", default=None, help="Default: as the model's chat template has it."),
    click.option("--reasoning-effort", type=click.Choice(EFFORTS), help="How much to think, if the model knows it."),
    click.option("--thinking-budget", type=click.IntRange(-1), metavar="N", help="Most tokens of thoughts."),
    click.option(
        "--chat-template-kwargs",
        metavar="JSON",
        callback=_text_or_file,
        help="What else the chat template is told, an object. @FILE reads it from a file.",
    ),
    click.option("--control-tokens", is_flag=True, help="Let messages name control tokens such as <|im_end|>."),
    click.option(
        "--template",
        metavar="TEXT",
        callback=_text_or_file,
        help="Prompt of each row, Jinja2 over its columns: 'Summarise: {{ text }}'. @FILE reads it from a file.",
    ),
    click.option(
        "--system",
        metavar="TEXT",
        callback=_text_or_file,
        help="System message for chats that have none; a template, or @FILE, as well.",
    ),
    click.option(
        "--schema",
        type=click.Path(),
        metavar="FILE",
        callback=_schema,
        help="JSON schema that completions must obey, where a line has no response_format of its own.",
    ),
    click.option(
        "--regex", metavar="TEXT", callback=_text_or_file, help="The same with a regular expression, or @FILE."
    ),
    click.option(
        "--choice",
        multiple=True,
        metavar="TEXT",
        callback=_if_any,
        help="The same with a choice of texts; repeatable.",
    ),
    click.option(
        "--grammar",
        metavar="TEXT",
        callback=_text_or_file,
        help="The same with a grammar in Lark's form; @FILE as well.",
    ),
    click.option("--where", metavar="EXPRESSION", help="Run only rows for which it holds: 'stars | int > 3'."),
    click.option("--limit", type=click.IntRange(1), metavar="N", help="Run the first N of these rows."),
    click.option("--sample", type=click.IntRange(1), metavar="N", help="Run N of them at random, always the same."),
    click.option("--id-column", metavar="COLUMN", help="Column that names each row. Default: id, else its number."),
    click.option(
        "--keep", multiple=True, metavar="COLUMN", help="Column of each row to hand back in its result; repeatable."
    ),
    click.option("--format", type=click.Choice(FORMATS), help="Format of INPUT. Default: by its name, else JSONL."),
    click.option("--slot", metavar="TEXT", help="Run lines that were run before anew for each TEXT, such as a date."),
    click.option("--strict", is_flag=True, help="Refuse the whole file if any line is bad."),
)


def dataset(command: Command) -> Command:
    """INPUT and what applies where its lines say nothing."""
    for option in reversed(_dataset):
        command = option(command)
    return command


def _row_options(given: Mapping[str, Any]) -> RowOptions:
    return RowOptions(**{field.name: given[field.name] for field in fields(RowOptions) if field.name in given})


def _called(name: str, value: Any) -> str:
    """How the user wrote an option."""
    off = "no-" if name == "thinking" and value is False else ""
    return f"--{off}{name.replace('_', '-')}"


def read(input: str, pair: str, strict: bool, slot: str | None = None, **given: Any) -> tuple[Dataset, Survey]:
    """Opens and surveys INPUT."""
    try:
        said = defaults(given, {name: _called(name, value) for name, value in given.items()})
    except Fault as fault:
        raise UserError(str(fault)) from None
    dataset = Dataset(input, pair, said, _row_options(given), tell=Moving())
    survey = dataset.survey(slot)
    if strict and survey.first_bad:
        raise UserError(f"{dataset.name}: {survey.first_bad} ({survey.bad} bad in all; --strict refuses the file)")
    return dataset, survey


def say_notes(notes: Iterable[str]) -> None:
    """Says on standard error what of a dataset was ignored, or could not be done."""
    for note in notes:
        click.echo(f"Note: {note}", err=True)
