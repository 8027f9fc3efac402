"""The fault suite at its small size; `make soak` runs it at full size."""

from __future__ import annotations

import pytest

from tests.farm.figure import Fault
from tests.farm.soak import FAULTS

SLOW_MACHINE = ("claims", "looks", "renewals", "speed", "traffic", "waiting")
"""Figures of speed say nothing beside other tests; `make soak` judges them."""


@pytest.mark.parametrize("fault", FAULTS, ids=[fault.name for fault in FAULTS])
def test_fault(fault: Fault) -> None:
    figure = fault.run(False)
    assert figure.holds or fault.name in SLOW_MACHINE, figure.text
