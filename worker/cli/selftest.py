"""`draftmill selftest`: whether all works on this machine, in about two minutes."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from threading import Event
from typing import TYPE_CHECKING

import click

from ...producer.queue.errors import DISAGREEMENT, UserError, explain_file
from ...producer.queue.paths import cache_dir
from ..blas import preload
from ..cuda import MANY, suit_rounds

if TYPE_CHECKING:
    from ...engine.selftest.check import Finding
    from ...engine.selftest.checks import Sizes

COLOURS = {"ok": "green", "wrong": "red", "skipped": "yellow", "told": "cyan"}
OUT = click.Path(dir_okay=False, writable=True, path_type=Path)


@click.command()
@click.option("--out", type=OUT, metavar="FILE", help="Write a report as JSON; it says nothing of you or your files.")
def selftest(out: Path | None) -> None:
    """Check that kernels, engine and queue work on this machine, and tell how fast it is.

    Takes about two minutes, and fetches the boxed model (93 MB) if it is not here yet. Kernels are compared with
    plain MLX, the engine's tokens with mlx-lm's; a worker is killed and another takes over, with a private Redis of
    their own.
    Each line is ok, wrong, skipped (it cannot run here) or told (a fact without a judgement); the exit code is 1 if
    one is wrong.

    \b
    Examples:
      draftmill selftest
      draftmill selftest --out selftest.json      # a file to attach to an issue
    """
    suit_rounds(MANY)
    if slow := preload():
        click.echo(slow, err=True)
    from ...engine.selftest.checks import Sizes

    report(findings(cache_dir(), Sizes.here()), out)


def findings(folder: Path, sizes: Sizes) -> Iterator[Finding]:
    """What all checks find; `folder` is the cache of models and measurements."""
    from ...engine.selftest.checks import ALONE, TOGETHER
    from .takeover import takeover_check

    words = [str(folder), json.dumps(asdict(sizes))]
    given_up = Event()
    with ThreadPoolExecutor(1) as pool:
        takeover = pool.submit(takeover_check(folder, sizes.timed_tokens, given_up=given_up).finding)
        try:
            yield from found_by(TOGETHER, words)
            yield takeover.result()
        finally:
            given_up.set()
    yield from found_by([ALONE], words)


def found_by(names: Sequence[str], words: Sequence[str]) -> Iterator[Finding]:
    """What parts find that run at the same time."""
    from ...engine.selftest.parts import together

    with together(names, words) as parts:
        for part in parts:
            yield from part.findings()


def report(found: Iterable[Finding], out: Path | None) -> None:
    """Print what each check finds, and write that to a file; exits with 1 if anything is wrong."""
    from .selftest_report import write

    check_writable(out)
    findings: list[Finding] = []
    click.echo(line("check", "verdict", "seconds", "found"))
    for finding in found:
        findings.append(finding)
        verdict = click.style(f"{finding.verdict:<7}", COLOURS[finding.verdict])
        click.echo(line(finding.check, verdict, f"{finding.seconds:.1f}", finding.found))
        sys.stdout.flush()
    if out:
        write(out, findings)
        click.echo(f"the report is in {out}")
    wrong = [finding.check for finding in findings if finding.verdict == "wrong"]
    if wrong:
        click.echo(f"{len(wrong)} of {len(findings)} checks found something wrong: {', '.join(wrong)}", err=True)
        sys.exit(DISAGREEMENT)


def line(check: str, verdict: str, seconds: str, found: str) -> str:
    return f"{check:<40}  {verdict:<7}  {seconds:>7}  {found}"


def check_writable(out: Path | None) -> None:
    """Raise UserError now if the report could not be written in two minutes."""
    if out:
        try:
            out.open("a").close()
        except OSError as error:
            raise UserError(explain_file(error, "cannot write the report to", out)) from error
