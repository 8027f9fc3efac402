"""What an output is, in words."""

from __future__ import annotations

from .output import Output


def count(number: int, noun: str) -> str:
    """`1 line`, `2 lines`."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def where(output: Output) -> str:
    """What lies in which file."""
    shown = output.place.shown
    text = f"{count(output.done, 'result')} in {shown(output.holder)}"
    if output.failed or output.bad:
        text += f", {output.failed} failed and {count(output.bad, 'bad line')} in {shown(output.errors.path)}"
    if output.holder != output.path:
        text += f"; {output.place.name} is written when the batch is complete"
    return text
