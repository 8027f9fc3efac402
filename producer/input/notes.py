"""What of a dataset was ignored, for its user to read."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

MOST_UNKNOWN = 5
"""Unknown fields that are named, the most frequent first: a dataset may have columns without an end."""


@dataclass(frozen=True)
class Notes:
    """Fields that would change the text, what may surprise, such as a model that is not the pair, and unknown fields.

    Each is counted by the lines in which it stands. All but the unknown ones are always named.
    """

    unserved: Counter[str] = field(default_factory=Counter)
    surprises: Counter[str] = field(default_factory=Counter)
    unknown: Counter[str] = field(default_factory=Counter)

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
            yield f"{note} ({count} {'line' if count == 1 else 'lines'})"
