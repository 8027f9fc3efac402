"""How many tokens of prompts a round has room for. Knows no MLX."""

from __future__ import annotations

from typing import Protocol

from .row import Row


class Room(Protocol):
    """What a round may still take, while chunks of prompts are put into it one after the other."""

    @property
    def left(self) -> bool:
        """Whether another prompt may begin."""
        ...

    def take(self, first: int, wanted: int) -> int:
        """How many of so many tokens from position `first` on the round takes, as one chunk; it has less room then."""
        ...

    def draft(self, tokens: int) -> None:
        """So many drafted tokens are in it, too."""
        ...


class TokenRoom:
    """Room for so many tokens, whatever lies behind them."""

    def __init__(self, tokens: int) -> None:
        self.tokens = tokens

    @property
    def left(self) -> bool:
        return self.tokens > 0

    def take(self, first: int, wanted: int) -> int:
        taken = min(wanted, self.tokens)
        self.tokens -= taken
        return taken

    def draft(self, tokens: int) -> None:
        """They do not count."""


def chunk_end(row: Row) -> int:
    """Where the row's next chunk ends at the latest: at a prefix that is to be kept, or with its prompt."""
    return row.prefixes[0].length if row.prefixes else len(row.feed)
