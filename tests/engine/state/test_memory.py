"""What a Mac can spare, read from its own words."""

from __future__ import annotations

import pytest

from draftmill.engine.state.memory import default_budget, reclaimable

VM_STAT = """Mach Virtual Memory Statistics: (page size of 16384 bytes)
Pages free:                               10000.
Pages active:                            300000.
Pages inactive:                          200000.
Pages speculative:                         5000.
Pages throttled:                              0.
Pages wired down:                        150000.
Pages purgeable:                            500.
"Translation faults":                 987654321.
Pages copy-on-write:                    1234567.
Swapins:                                      0.
"""


def test_what_runs_keeps_its_memory() -> None:
    assert reclaimable(VM_STAT) == 16384 * (10000 + 200000 + 5000)


@pytest.mark.parametrize("text", ["", "no such command", VM_STAT.replace("page size", "size")])
def test_other_words_are_an_error(text: str) -> None:
    with pytest.raises(ValueError, match="vm_stat"):
        reclaimable(text)


def test_something_is_spared_here() -> None:
    assert default_budget(0) > 0
