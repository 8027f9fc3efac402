"""The bar of a terminal: how far a batch is, and below it a line for each worker. Only who shows it imports Rich."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from rich.console import Console, RenderableType
from rich.progress import BarColumn, Progress, TextColumn
from rich.text import Text


class Bar(Progress):
    """A bar with a line of text, and the lines that stand `below`."""

    def __init__(self) -> None:
        self.below: Sequence[str] = ()
        console = Console(stderr=True, highlight=False, soft_wrap=True)
        super().__init__(BarColumn(), TextColumn("{task.description}", markup=False), console=console)
        self._task = self.add_task("", total=None)

    def get_renderables(self) -> Iterable[RenderableType]:
        yield self.make_tasks_table(self.tasks)
        for line in self.below:
            yield Text(f"  {line}", style="bright_black")

    def say(self, text: str) -> None:
        """Shows `text` beside the bar."""
        self.update(self._task, description=text)

    def note(self, text: str) -> None:
        """Leaves a line standing above the bar."""
        self.console.print(text, markup=False)

    def show(self, text: str, completed: int, total: int, below: Sequence[str]) -> None:
        self.below = below
        self.update(self._task, description=text, completed=completed, total=total)
