"""What of a dataset was ignored, and what of it workers could not do, for its user to read."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

MOST_UNKNOWN = 5
"""Unknown fields that are named, the most frequent first: a dataset may have columns without an end."""

MOST_OF_ANSWERS = 5
"""Notes of workers that are told, the most frequent first."""


@dataclass(frozen=True)
class Notes:
    """Fields that would change the text, what may surprise, such as a model that is not the pair, and unknown fields.

    Each is counted by the lines in which it stands. All but the unknown ones are always named. `models` has the names
    of models that stand in lines, and which pair runs these.
    """

    unserved: Counter[str] = field(default_factory=Counter)
    surprises: Counter[str] = field(default_factory=Counter)
    unknown: Counter[str] = field(default_factory=Counter)
    models: dict[str, str] = field(default_factory=dict[str, str])

    def __iter__(self) -> Iterator[tuple[str, int]]:
        """Each note with its number of lines, the gravest first."""
        for notes in (self.unserved, self.surprises, self.unknown):
            yield from notes.most_common()

    def lines(self) -> Iterator[str]:
        """What is shown of them."""
        known = len(self.unserved) + len(self.surprises)
        for place, (note, count) in enumerate(self):
            if place == known + MOST_UNKNOWN:
                rest = len(self.unknown) - MOST_UNKNOWN
                yield f"{rest:,} more field{' is' if rest == 1 else 's are'} unknown and ignored"
                return
            yield _counted(note, count)


def of_answers(notes: Counter[str]) -> Iterator[str]:
    """What is shown of the notes that workers put into results, each counted by its lines."""
    for note, count in notes.most_common(MOST_OF_ANSWERS):
        yield _counted(note, count)
    if (rest := len(notes) - MOST_OF_ANSWERS) > 0:
        yield f"{rest:,} more note{' stands' if rest == 1 else 's stand'} in the results"


def _counted(note: str, count: int) -> str:
    return f"{note} ({count} {'line' if count == 1 else 'lines'})" if count else note
