"""`draftmill bench`: measures this machine's engine beside mlx-lm and other engines for MLX."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from ...producer.cli.report import print_table
from ...producer.input.dataset import BadLine, Dataset
from ...producer.input.lines import Defaults
from ...producer.queue.errors import FAILED_ITEMS, Interrupted, UserError
from ...producer.queue.paths import cache_dir

if TYPE_CHECKING:
    from ...engine.bench.report import Table

FILE = click.Path(exists=True, dir_okay=False, path_type=Path)
OUT = click.Path(dir_okay=False, writable=True, path_type=Path)


OF_SHAPES = ("bits", "accept", "context", "template", "idle")

MEANINGLESS = {
    "pair": (*OF_SHAPES, "only"),
    "shape": ("data", "limit", "only"),
    "suite": (*OF_SHAPES, "rows", "tokens", "repeats"),
}
"""Options that mean nothing for what is measured."""


class Numbers(click.ParamType):
    """Numbers with commas between them."""

    def __init__(self, number: type, least: float):
        self.name, self.number, self.least = "N,…", number, least

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> list[Any]:
        try:
            numbers = [self.number(part) for part in value.split(",")]
        except ValueError:
            self.fail(f"{value!r} is no list of numbers such as 1,4,8", param, ctx)
        if wrong := [number for number in numbers if not number >= self.least]:  # among them is nan
            self.fail(f"{wrong[0]} is not {self.least:g} or more", param, ctx)
        return numbers


MIXED = "mixed"


class Accepts(Numbers):
    """Tokens per round with commas between them, each of all rows, or the word for rows that differ."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> list[Any]:
        levels: list[Any] = []
        for part in value.split(","):
            levels += [part] if part == MIXED else super().convert(part, param, ctx)
        return levels


@click.command()
@click.option("--pair", metavar="NAME", help="Measure a pair on the prompts of --data.")
@click.option("--data", type=FILE, multiple=True, help="JSONL file of prompts, as for `run`; may be repeated.")
@click.option("--shape", metavar="NAME", help="Measure random weights in a published shape, at a set acceptance.")
@click.option("--suite", is_flag=True, help="Measure what tests/benchmarks/README.md shows; on a CPU, tiny shapes.")
@click.option(
    "--only",
    multiple=True,
    metavar="TABLE",
    help="Of the suite; may be repeated. `wall-time`, or a model of it: the seconds that a dataset takes each model.",
)
@click.option(
    "--bits", type=click.Choice(["4", "8", "16"]), default="16", show_default=True, help="Of a shape's weights."
)
@click.option("--rows", type=Numbers(int, 1), default="1,4,8", show_default=True, help="Rows at a time.")
@click.option(
    "--accept",
    type=Accepts(float, 1),
    default="8",
    show_default=True,
    help="Tokens per round at full depth; or `mixed`: 1, 2, 4 and 8 by row in turn.",
)
@click.option(
    "--context", type=click.IntRange(16), default=512, show_default=True, help="Prompt tokens of a shape's rows."
)
@click.option("--tokens", type=click.IntRange(8), default=256, show_default=True, help="Most tokens of a request.")
@click.option("--repeats", type=click.IntRange(1), default=4, show_default=True, help="Turns of each arm.")
@click.option("--arms", metavar="A,B,…", help="Default: all.")
@click.option("--dataset", type=click.IntRange(1), metavar="N", help="Run N requests of mixed lengths as a whole.")
@click.option("--template", type=click.IntRange(1), metavar="T", help="Shape: let them share T tokens, count prefills.")
@click.option("--idle", is_flag=True, help="Shape: measure how long the device has nothing to do.")
@click.option("--limit", type=click.IntRange(1), help="Prompts of each file.")
@click.option("-o", "--out", type=OUT, default="bench.json", show_default=True, help="JSON with everything.")
@click.option("--chart", type=OUT, metavar="PNG", help="Draw a chart; needs draftmill[bench].")
@click.option("--reference-blas", is_flag=True, help="Linux CPU: stay with the slow BLAS of MLX's wheel.")
def bench(**options: Any) -> None:
    """Measure speed side by side with mlx-lm and other engines for MLX.

    All arms take turns in one process, with the same prompts and the same number of tokens, greedily.

    \b
    Examples:
      draftmill bench --pair smollm2-135m --data prompts.jsonl --limit 16 --tokens 64
      draftmill bench --pair smollm2-135m --data prompts.jsonl --arms depth-0,adaptive --reference-blas
      draftmill bench --shape qwen3-4b --rows 4,8,16 --accept 4,8,mixed
      draftmill bench --shape qwen3.5-4b --bits 4 --dataset 256 --rows 8,32
      draftmill bench --pair smollm2-135m --data prompts.jsonl --dataset 32 --rows 8
      draftmill bench --suite --chart bench.png
      draftmill bench --suite --only wall-time --data prompts.jsonl --chart wall-time.png
    """
    if sum(map(bool, (options["pair"], options["shape"], options["suite"]))) != 1:
        raise click.UsageError("name one of --pair, --shape and --suite")
    if options["pair"] and not options["data"]:
        raise click.UsageError("--pair and --data belong together")
    mode = next(name for name in MEANINGLESS if options[name])
    refuse_given(f"--{mode}", MEANINGLESS[mode])
    for option in ("out", "chart"):
        if options[option] and not options[option].parent.is_dir():
            raise click.BadParameter(f"there is no folder {options[option].parent}", param_hint=f"--{option}")

    from ..blas import preload
    from ..cuda import suit_rounds

    suit_rounds(min(options["rows"]))
    if not options["reference_blas"] and (slow := preload()):
        click.echo(slow, err=True)

    import mlx.core as mx

    from ...engine.bench.arms import BenchError
    from ...engine.bench.report import ReportError, draw, need_matplotlib, write
    from ...engine.models.folder import ModelError
    from ...engine.request import RequestError

    if mx.default_device() != mx.cpu:
        # Peers clear MLX's cache as they go, which on CUDA costs more than it frees here; a bound does the same.
        mx.set_cache_limit(24 << 30)
    made: list[Any] = []
    try:
        if options["chart"]:
            need_matplotlib()
        for table in tables(options):
            made = [*(other for other in made if other is not table), table]
            _show(table)
            sys.stdout.flush()
            write(options["out"], options, made)
        if options["chart"]:
            draw(options["chart"], made)
    except (ModelError, BenchError, ReportError, RequestError) as error:
        raise UserError(str(error)) from error
    except KeyboardInterrupt:
        raise Interrupted(f"interrupted; what was measured is in {options['out']}" if made else "interrupted") from None
    click.echo(f"everything is in {options['out']}" + (f", drawn in {options['chart']}" if options["chart"] else ""))
    if any(table.failed for table in made):
        sys.exit(FAILED_ITEMS)


def _show(table: Table) -> None:
    click.echo(table.title)
    for head, *rows in table.grids:
        print_table(head, rows, numbers=True)
    for line in table.failures + table.notes:
        click.echo(f"  {line}")
    click.echo()


def tables(options: dict[str, Any]) -> Iterator[Any]:
    """What the options ask for, a table at a time; one that grows comes again."""
    if options["suite"]:
        return suite_tables(options)
    return pair_tables(options) if options["pair"] else shape_tables(options)


def suite_tables(options: dict[str, Any]) -> Iterator[Any]:
    import mlx.core as mx

    from ...engine.bench import suite, wall_time

    on_cpu, only = mx.default_device() == mx.cpu, options["only"]
    timed = wall_time.ON_CPU if on_cpu else wall_time.WallTime()
    timed = replace(timed, requests=options["dataset"] or timed.requests)
    refuse_unknown("--only", only, (*suite.TABLES, wall_time.NAME, *timed.models))
    models = timed.models if wall_time.NAME in only else [name for name in only if name in timed.models]
    if not models:
        refuse_given("--suite without wall-time", ("data", "limit", "arms", "dataset"))
    if timed.pair not in models:
        refuse_given(f"--suite without {timed.pair}", ("data", "limit"))
    elif not options["data"]:
        raise click.UsageError(f"{timed.pair} takes prompts: name a file of them by --data")
    arms = chosen(options, wall_time.ARMS)
    if grids := tuple(name for name in only or suite.TABLES if name in suite.TABLES):
        yield from (suite.TINY if on_cpu else suite.Suite()).run(cache_dir(), grids)
    if models:
        every = [prompt for file in options["data"] for prompt in prompts(file, timed.pair, options["limit"])]
        yield from timed.run(cache_dir(), models, every, arms)


def pair_tables(options: dict[str, Any]) -> Iterator[Any]:
    from ...engine.bench.real import ARMS, Real, pair_dataset_table, pair_table
    from ...engine.models.pairs import resolve

    arms, rows, tokens, repeats = chosen(options, ARMS), options["rows"], options["tokens"], options["repeats"]
    pair = Real(resolve(options["pair"]), cache_dir())
    files = [prompts(file, options["pair"], options["limit"]) for file in options["data"]]
    if options["dataset"]:
        every = [prompt for file in files for prompt in file]
        yield pair_dataset_table(pair, every, options["dataset"], rows, tokens, repeats, arms)
    else:
        for file in files:
            yield pair_table(pair, pair.requests(file, tokens), rows, tokens, repeats, arms)


def shape_tables(options: dict[str, Any]) -> Iterator[Any]:
    from ...engine.bench import replay, synthetic
    from ...engine.bench.tables import dataset_table, idle_table, rows_table, template_table

    arms = chosen(options, synthetic.ARMS)
    rows, tokens, repeats, context = (options[name] for name in ("rows", "tokens", "repeats", "context"))
    refuse_unknown("--shape", (options["shape"],), tuple(synthetic.SHAPES))
    accepts = [replay.MIXED if given == MIXED else (given,) for given in options["accept"]]
    if not options["dataset"] and min(rows) < (most := max(map(len, accepts))):
        raise click.BadParameter(f"'{MIXED}' takes --rows of {most} and more", param_hint="--accept")
    shape = synthetic.Synthetic(options["shape"], int(options["bits"]), cache_dir())
    if (fastest := max(map(max, accepts))) > shape.block:
        raise click.BadParameter(f"{fastest:g} is more than the draft's block of {shape.block}", param_hint="--accept")
    for accept in accepts:
        if options["template"]:
            yield template_table(shape, options["dataset"] or 1000, options["template"], rows[-1], accept)
        elif options["dataset"]:
            yield dataset_table(shape, options["dataset"], rows, accept, context, tokens, repeats, arms)
        elif options["idle"]:
            yield idle_table(shape, rows, accept, context, arms)
        else:
            yield rows_table(shape, rows, accept, context, tokens, repeats, arms)


def prompts(file: Path, pair: str, limit: int | None) -> list[Any]:
    """The prompts of a file, each as the engine encodes it; of a line with several, the first."""
    from .. import jobs

    dataset = Dataset(str(file), pair, Defaults({}, None))
    if bad := dataset.survey().bad_lines:
        click.echo(f"{file}: lines that cannot be run are left out, {len(bad)} in all; {bad[0]}", err=True)
    bodies = [item for item in dataset if not isinstance(item, BadLine)][:limit]
    return [jobs.prompts(body)[0] for body in bodies]


def chosen(options: dict[str, Any], known: tuple[str, ...]) -> tuple[str, ...]:
    """The arms that are asked for."""
    arms = tuple(options["arms"].split(",")) if options["arms"] else known
    refuse_unknown("--arms", arms, known)
    return arms


def refuse_given(mode: str, names: tuple[str, ...]) -> None:
    """Raises UsageError if one of these options was given."""
    source = click.get_current_context().get_parameter_source
    if given := [name for name in names if source(name) == ParameterSource.COMMANDLINE]:
        raise click.UsageError(f"--{given[0]} means nothing with {mode}")


def refuse_unknown(option: str, given: tuple[str, ...], known: tuple[str, ...]) -> None:
    if unknown := [name for name in given if name not in known]:
        raise click.BadParameter(f"'{unknown[0]}' is unknown; known: {', '.join(known)}", param_hint=option)
