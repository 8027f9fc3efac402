"""What a bench leaves: tables as text, everything as JSON, and a chart."""

from __future__ import annotations

import importlib
import json
import platform
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

import mlx.core as mx

from .measure import Cell, ratios

PACKAGES = ("draftmill", "mlx", "mlx-cuda-13", "mlx-cuda-12", "mlx-lm", "dflash", "dflash-mlx")


class ReportError(RuntimeError):
    """The chart cannot be drawn; one line that says why and what to do."""


@dataclass
class Line:
    """A line of a table: what it was measured at, and the cells by their arms."""

    label: str
    cells: dict[str, Cell]
    at: float | None = None
    """Where on a chart's axis, if the lines have one in common."""
    facts: dict[str, int] = field(default_factory=dict)
    """What else there is to say of the line, by the heads of columns."""


@dataclass
class Table:
    """Arms beside each other, in tokens per second and as ratios to mlx-lm's batch, or without it to the first arm;
    or `facts`, where there is something else to say. With `seconds` cells begin with those of the run.
    """

    title: str
    axis: str = ""
    lines: list[Line] = field(default_factory=list)
    facts: list[dict[str, Any]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    seconds: bool = False

    @property
    def arms(self) -> list[str]:
        return list(dict.fromkeys(arm for line in self.lines for arm in line.cells))

    @property
    def finished(self) -> list[str]:
        """Arms with at least one figure."""
        return [arm for arm in self.arms if any(arm in line.cells and line.cells[arm].samples for line in self.lines)]

    @property
    def base(self) -> str | None:
        """The arm that ratios are to."""
        return "mlx-batch" if "mlx-batch" in self.arms else next(iter(self.arms), None)

    @property
    def failed(self) -> bool:
        """Whether some cell has no figure, for another reason than that its engine is not installed."""
        cells = [cell for line in self.lines for cell in line.cells.values()]
        return any(cell.error and not cell.missing for cell in cells) or any("failed" in fact for fact in self.facts)

    @property
    def grids(self) -> list[list[list[str]]]:
        """What to show, as rows of text below a head: median tokens/s and the ratio to the base, and the facts."""
        found = []
        if self.lines:
            about = list(dict.fromkeys(name for line in self.lines for name in line.facts))
            rows = (
                [
                    line.label,
                    *(show(line.facts.get(name, "")) for name in about),
                    *(self._cell(line, arm) for arm in self.arms),
                ]
                for line in self.lines
            )
            found.append([[self.axis, *about, *self.arms], *rows])
        if self.facts:
            names = list(dict.fromkeys(name for fact in self.facts for name in fact if not name.startswith("_")))
            found.append([names, *([show(fact.get(name, "")) for name in names] for fact in self.facts)])
        return found

    @property
    def failures(self) -> list[str]:
        """Why cells failed."""
        return [
            f"{line.label} {arm}: {cell.error}" for line in self.lines for arm, cell in line.cells.items() if cell.error
        ]

    def _cell(self, line: Line, arm: str) -> str:
        cell = line.cells.get(arm)
        if cell is None:
            return ""
        if cell.error or not cell.samples:
            return "missing" if cell.missing else "failed"
        base, text = line.cells.get(self.base or ""), f"{cell.rate:,.0f}" if cell.rate >= 100 else f"{cell.rate:.1f}"
        if self.seconds:
            part = f" for the first {cell.requests}" if cell.requests else ""
            text = f"{cell.seconds:,.1f} s{part}, {text} tokens/s"
        if cell.tokens_per_round and cell.tokens_per_round > 1.005:
            text += f" ({cell.tokens_per_round:.1f}/round)"
        if base and base is not cell and base.samples:
            middle, low, high = ratios(cell, base)
            text += f" {middle:.2f}x"
            text += f" [{low:.2f} {high:.2f}]" if len(cell.samples) > 1 else ""
        return text

    def record(self) -> dict[str, Any]:
        """Everything, for JSON: medians and ratios beside the samples they come from."""
        lines = []
        for line in self.lines:
            base = line.cells.get(self.base or "")
            cells = {}
            for arm, cell in line.cells.items():
                cells[arm] = asdict(cell)
                if cell.samples:
                    cells[arm] |= {"tokens_per_second": cell.rate, "spread": cell.spread, "seconds": cell.seconds}
                    if base and base.samples:
                        cells[arm]["ratio"] = dict(zip(("median", "least", "most"), ratios(cell, base), strict=True))
            lines.append({"label": line.label, "at": line.at, "facts": line.facts, "cells": cells})
        heads = {"title": self.title, "axis": self.axis, "base": self.base}
        return {**heads, "lines": lines, "facts": self.facts, "notes": self.notes}


def show(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.3f}" if abs(value) < 10 else f"{value:,.1f}"
    return f"{value:,}" if isinstance(value, int) else str(value)


def machine() -> dict[str, Any]:
    """Device and versions."""
    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    device = mx.device_info()
    return {
        "backend": "cpu" if mx.default_device() == mx.cpu else "metal" if mx.metal.is_available() else "cuda",
        "device": device.get("device_name") or platform.processor() or platform.machine(),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "python": platform.python_version(),
        "versions": versions,
    }


def write(file: Path, arguments: dict[str, Any], tables: Iterable[Table]) -> None:
    """Everything known so far; called again after each table. If it fails, what was written before stays."""
    content = {"machine": machine(), "arguments": arguments, "tables": [table.record() for table in tables]}
    text = json.dumps(content, indent=1, default=str) + "\n"
    if file.exists() and not file.is_file():  # a device or a pipe
        file.write_text(text, encoding="utf-8")
        return
    whole = file.resolve()
    part = whole.with_name(f"{whole.name}.part")
    try:
        part.write_text(text, encoding="utf-8")
        part.replace(whole)
    finally:
        part.unlink(missing_ok=True)


def need_matplotlib() -> Any:
    """Raises ReportError if there is no matplotlib."""
    try:
        matplotlib: Any = importlib.import_module("matplotlib")
    except ModuleNotFoundError:
        raise ReportError("a chart needs matplotlib: pip install 'draftmill[bench]', or leave --chart out") from None
    matplotlib.use("Agg")
    return importlib.import_module("matplotlib.pyplot")


def draw(file: Path, tables: Sequence[Table]) -> None:
    """A panel for each table that has speeds: lines over its axis, or bars."""
    pyplot = need_matplotlib()
    panels = [table for table in tables if any(cell.samples for line in table.lines for cell in line.cells.values())]
    if not panels:
        return
    wide = min(2, len(panels))
    high = -(-len(panels) // wide)
    figure, axes = pyplot.subplots(high, wide, figsize=(7 * wide, 4.2 * high), squeeze=False, layout="constrained")
    arms = list(dict.fromkeys(arm for table in panels for arm in table.arms))
    colours = {arm: f"C{number}" for number, arm in enumerate(arms)}
    for table, axis in zip(panels, axes.flat, strict=False):
        panel(table, axis, colours)
    for axis in list(axes.flat)[len(panels) :]:
        axis.set_visible(False)
    figure.savefig(file, dpi=120)
    pyplot.close(figure)


def panel(table: Table, axis: Any, colours: dict[str, str]) -> None:
    over = [line for line in table.lines if line.at is not None]
    arms = table.finished
    for number, arm in enumerate(arms):
        there = [(line, line.cells[arm]) for line in table.lines if arm in line.cells and line.cells[arm].samples]
        rates = [cell.rate for _, cell in there]
        errors = [[cell.rate - cell.spread[0] for _, cell in there], [cell.spread[1] - cell.rate for _, cell in there]]
        if len(over) > 1:
            axis.errorbar(
                [line.at for line, _ in there],
                rates,
                errors,
                marker="o",
                markersize=4,
                capsize=2,
                label=arm,
                color=colours[arm],
            )
        else:
            width = 0.8 / len(arms)
            places = [table.lines.index(line) + (number - (len(arms) - 1) / 2) * width for line, _ in there]
            axis.bar(places, rates, width, yerr=errors, capsize=2, label=arm, color=colours[arm])
    if len(over) > 1:
        axis.set_xscale("log", base=2)
        axis.set_xticks([line.at for line in over], [line.label for line in over])
    else:
        axis.set_xticks(range(len(table.lines)), [line.label for line in table.lines])
    axis.set_xlabel(table.axis)
    axis.set_ylim(bottom=0)
    axis.set_ylabel("tokens/s")
    axis.set_title(table.title, fontsize=9)
    axis.legend(fontsize=8)
