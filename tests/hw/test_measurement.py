"""A figure keeps its unit and its source, and a latency is never emulated."""

from __future__ import annotations

import pytest

from gatewright.hw.measurement import Measurement


def test_measurement_to_json() -> None:
    assert Measurement(1.5, "s", "measured").to_json() == {"value": 1.5, "unit": "s", "source": "measured"}


def test_a_wrong_source_is_refused() -> None:
    with pytest.raises(ValueError, match="guessed"):
        Measurement(1.0, "s", "guessed")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="never emulated"):
        Measurement(1.0, "s", "emulated")
