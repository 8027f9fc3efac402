"""What an engine counts."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field


@dataclass
class Stats:
    """Counters since the engine was made.

    Of the `prompt_tokens` of finished requests `cached_tokens` were copied from other requests' prefixes;
    `prefilled_tokens` went through the target, those of a preempted row again when it came back.
    `rows` sums the rows of all rounds; `row_rounds` those of them that decoded. `drafted` and `accepted` count the
    draft tokens verified and accepted in these; `drafted_by` and `accepted_by` by their origin, `accepted_per_position`
    by their place in the round, if rows draft.
    """

    rounds: int = 0
    rows: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    prefilled_tokens: int = 0
    generated_tokens: int = 0
    row_rounds: int = 0
    drafted: int = 0
    accepted: int = 0
    drafted_by: Counter[str] = field(default_factory=Counter)
    accepted_by: Counter[str] = field(default_factory=Counter)
    accepted_per_position: list[int] = field(default_factory=list)

    @property
    def handled_tokens(self) -> int:
        """Tokens that were prefilled and tokens that were generated."""
        return self.prefilled_tokens + self.generated_tokens
