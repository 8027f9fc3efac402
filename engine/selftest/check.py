"""A check of the self-test, and what it found."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

Verdict = Literal["ok", "wrong", "skipped", "told"]


class Wrong(Exception):
    """Something here is not what it should be; the message is one line."""


class Skipped(Exception):
    """A check cannot run here; the message is the reason, in one line."""


@dataclass(frozen=True)
class Finding:
    """What a check found, in one line, and how many seconds it took. What is "told" is a fact without a judgement."""

    check: str
    verdict: Verdict
    found: str
    seconds: float


@dataclass(frozen=True)
class Check:
    """A check by its name. `run` returns what it found, or raises Wrong or Skipped."""

    name: str
    run: Callable[[], str]
    judged: bool = True

    def finding(self) -> Finding:
        """Run it. A check that fails in any way is wrong."""
        begin = time.perf_counter()
        verdict: Verdict = "ok" if self.judged else "told"
        try:
            found = self.run()
        except Skipped as reason:
            verdict, found = "skipped", str(reason)
        except Wrong as reason:
            verdict, found = "wrong", str(reason)
        except Exception as error:  # whatever a compiler, a driver or a model objects to
            lines = str(error).strip().splitlines() or [""]
            verdict, found = "wrong", f"it fails: {type(error).__name__}: {lines[0]}"[:300]
        return Finding(self.name, verdict, found, round(time.perf_counter() - begin, 1))
