"""How many of a row's last tokens stand in its text before, as far as the host knows. Knows no MLX."""

from __future__ import annotations

from collections.abc import Iterable

MOST = 15
"""Most tokens that are copied in a round of a row."""

LEAST_MATCH = 3
"""How many tokens must be alike at least: what follows two is seldom the same."""

LONGEST_MATCH = 8
"""More are not counted: what follows them is the same, as likely as it gets."""


class Suffix:
    """A row's tokens, and where each LEAST_MATCH of them stood last."""

    def __init__(self, tokens: Iterable[int] = ()):
        self._tokens: list[int] = []
        self._places: dict[tuple[int, ...], int] = {}
        self._before = -1  # where the last tokens stood before, or -1
        self.extend(tokens)

    def __len__(self) -> int:
        return len(self._tokens)

    def extend(self, tokens: Iterable[int]) -> None:
        """The row goes on with these."""
        for token in tokens:
            self._tokens.append(token)
            last = tuple(self._tokens[-LEAST_MATCH:])
            place = len(self._tokens) - 1
            self._before = self._places.get(last, -1)
            self._places[last] = place

    @property
    def match(self) -> int:
        """How many tokens are the same before the end and at the last place where LEAST_MATCH are; 0 if there is none.

        At most LONGEST_MATCH.
        """
        if self._before < 0:
            return 0
        tokens, end = self._tokens, len(self._tokens) - 1
        most = min(LONGEST_MATCH, self._before + 1)
        return next((i for i in range(most) if tokens[self._before - i] != tokens[end - i]), most)
