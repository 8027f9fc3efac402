"""What commands print: counts in words, the state of a batch, and JSON with keys that do not change, for scripts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import click
import orjson

from ..client.hook import Event, Hook, Status
from ..output.output import Output
from ..queue.batches import BatchStatus
from ..queue.errors import AGAIN, Interrupted
from ..queue.fleet import Report, Spent
from .progress import Speed


def print_json(report: dict[str, Any] | list[dict[str, Any]]) -> None:
    """One line on standard output."""
    click.echo(orjson.dumps(report))


GAP = 2
"""Spaces between columns."""

NARROW = 24
"""Characters that the last column of a table keeps on a narrow terminal, if it needs so many."""


def print_table(
    head: Sequence[str],
    rows: Sequence[Sequence[str]],
    *,
    styles: Mapping[str, str] | None = None,
    numbers: bool = False,
) -> None:
    """A table of texts on standard output, below a `head` unless that is empty.

    In a pipe each row is one line, and nothing is cut. On a terminal the last column is folded to fit; the others are
    not, for people copy names from there. `styles` are Rich's, by the text of a cell; `numbers` aligns to the right.
    Characters that do something to a terminal, or begin another line, are spaces.
    """
    from rich.cells import cell_len
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    rows = [[_harmless(cell) for cell in row] for row in rows]
    console = Console(highlight=False)
    widths = [max(map(cell_len, column)) for column in zip(*([head] if head else []), *rows, strict=True)]
    *others, last = widths
    fixed = sum(others) + GAP * len(others)
    if not console.is_terminal and not numbers:  # Rich takes half a millisecond a row
        for row in ([head] if head else []) + rows:
            cells = (cell + " " * (width - cell_len(cell) + GAP) for cell, width in zip(row, widths, strict=True))
            click.echo("".join(cells).rstrip())
        return
    if console.is_terminal and not numbers:
        last = min(last, max(NARROW, console.width - fixed))
    console.width = fixed + last
    table = Table(box=None, padding=(0, GAP, 0, 0), pad_edge=False, show_header=bool(head))
    for name, width in zip(head or [""] * len(widths), [*others, last], strict=True):
        table.add_column(Text(name), width=width, overflow="fold", justify="right" if numbers else "left")
    for row in rows:
        table.add_row(*(Text(cell, (styles or {}).get(cell, "")) for cell in row))
    with console.capture() as shown:
        console.print(table)
    for line in shown.get().splitlines():
        click.echo(line.rstrip())


def _harmless(text: str) -> str:
    return text if text.isprintable() else "".join(each if each.isprintable() else " " for each in text)


def word(state: BatchStatus) -> str:
    """The state of a batch in one word."""
    if state.is_cancelled:
        return "cancelled"
    if state.complete:
        return "collected" if state.collected else "complete"
    if state.is_paused:
        return "paused"
    return "running" if state.running else "queued"


def batch_report(state: BatchStatus, live: Speed | None = None) -> dict[str, Any]:
    """A batch for scripts; times are Unix seconds."""
    report: dict[str, Any] = {
        "batch": state.id,
        "state": word(state),
        "complete": state.complete,
        "source": state.source,
        "pair": state.pair,
        "pairs": state.pairs,
        "priority": state.priority,
        "user": state.user,
        "created": state.created,
        "collected": state.collected,
        "lines": state.total,
        "submitted": state.submitted,
        "queued": state.queued,
        "running": state.running,
        "done": state.done,
        "failed": state.failed,
        "cancelled": state.cancelled,
        "prompt_tokens": state.prompt_tokens,
        "completion_tokens": state.completion_tokens,
    }
    if live:
        report |= {
            "tokens_per_second": live.tokens_per_second,
            "tokens_per_round": live.tokens_per_round,
            "watt_hours_per_million_tokens": live.watt_hours_per_million,
            "workers": [asdict(worker) for worker in live.workers],
        }
    return report


def worker_report(report: Report) -> dict[str, Any]:
    """A worker for scripts; `heartbeat_seconds` is how long ago its last heartbeat was."""
    return {
        "worker": report.name,
        "host": report.host,
        "state": report.state,
        "reason": report.reason,
        "pair": report.text("pair"),
        "adapters": report.text("adapters").split(",") if report.text("adapters") else [],
        "version": report.text("version"),
        "mlx": report.text("mlx"),
        "rq": report.text("rq"),
        "wire": int(report.number("wire")) or None,
        "chip": report.text("chip"),
        "memory": int(report.number("memory")),
        "os": report.text("os"),
        "thermal": report.text("thermal"),
        "power_watts": report.power_watts,
        "in_flight": int(report.number("in_flight")),
        "done": int(report.number("done")),
        "failed": int(report.number("failed")),
        "generated_tokens": int(report.number("generated_tokens")),
        "tokens_per_second": report.tokens_per_second,
        "tokens_per_round": report.tokens_per_round,
        "watt_hours_per_million_tokens": report.watt_hours_per_million,
        "heartbeat_seconds": round(report.age, 1),
    }


def user_report(found: Spent) -> dict[str, Any]:
    """What a user had, for scripts; `watt_hours` are those of the `metered_tokens`."""
    return {
        "user": found.user,
        "prompt_tokens": found.prompt_tokens,
        "generated_tokens": found.generated_tokens,
        "metered_tokens": found.metered_tokens,
        "watt_hours": found.watt_hours,
    }


def tell(hook: Hook | None, output: Output, status: Status = "completed") -> None:
    """Tells whom it concerns that OUT is complete, unless that was told before. Raises UserError."""
    manifest = output.manifest
    about = output_report(output, True) | {"source": manifest.source}
    event = Event(manifest.batch, status, {name: about[name] for name in TOLD})
    if hook and manifest.told != event.id:
        try:
            hook.tell_patiently(event)
        except KeyboardInterrupt:
            raise Interrupted(f"interrupted; OUT is complete, and {hook.name} may not know: {AGAIN}") from None
        output.remember(event.id)
        output.send()


TOLD = ("source", "out", "errors", "done", "failed", "bad")


def output_report(output: Output, complete: bool) -> dict[str, Any]:
    """What lies in which file, for scripts; `errors` is null while there are none."""
    return {
        "batch": output.manifest.batch,
        "complete": complete,
        "out": output.place.shown(output.holder),
        "errors": output.place.shown(output.errors.path) if output.failed or output.bad else None,
        "done": output.done,
        "failed": output.failed,
        "bad": output.bad,
    }
