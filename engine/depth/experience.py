"""What a row budget has learned with a pair on this machine, kept beside its costs for the next start."""

from __future__ import annotations

import logging
import time
from pathlib import Path
from typing import Any

from ...kernels.race import measurements
from .budget import Budget
from .calibration import here

log = logging.getLogger(__name__)

INTERVAL = 60.0
"""Seconds after which a busy engine writes down again what it has learned."""

PAIRS = 32
"""How many are kept for a machine: those that were written last."""


class Experience:
    """Lets a budget go on from what an earlier start has learned, and writes down what it learns.

    Args:
        cache: the folder of costs.json.
        name: of the pair, as its costs have it.
    """

    def __init__(self, cache: Path, name: str, budget: Budget):
        self._file, self._name, self._budget = cache / "learned.json", name, budget
        self._written, self._round = time.monotonic(), 0
        try:
            if learned := self._known().get(name):
                budget.begin(learned)
        except (KeyError, TypeError, ValueError, OverflowError):
            log.warning("%s: what was learned with %s is unreadable, so it is learned anew", self._file, name)

    def keep(self, idle: bool) -> None:
        """After a round: write down what is new, if the engine has nothing to do now, or if that was long ago."""
        now = time.monotonic()
        if self._budget.rounds == self._round or not (idle or now - self._written > INTERVAL):
            return
        others = {name: learned for name, learned in self._known().items() if name != self._name}
        newest = dict(list(others.items())[-(PAIRS - 1) :])
        measurements.write(self._file, here(), {**newest, self._name: self._budget.to_dict()})
        self._written, self._round = now, self._budget.rounds

    def _known(self) -> dict[str, Any]:
        """By pair, those that were written last at the end."""
        return measurements.known(self._file, here())
