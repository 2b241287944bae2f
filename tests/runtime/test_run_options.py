"""``gatewright run``: the words that belong to mode simulate."""

from __future__ import annotations

import pytest

from gatewright.errors import UsageError
from gatewright.runtime import driver
from gatewright.runtime.words import mode_of


def test_level_and_wave_belong_to_simulation() -> None:
    assert mode_of("simulate", simulates=True) == "simulate"
    assert mode_of(None) is None
    for mode in (None, "emulate", "device"):
        with pytest.raises(UsageError, match="belong to mode simulate"):
            mode_of(mode, simulates=True)


def test_the_context_carries_them() -> None:
    assert driver.context(level="netlist").level == "netlist"
    assert driver.context().wave is None
