"""``gatewright run``: the words that belong to one mode alone."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from graphs import graph
from typer.testing import CliRunner

import gatewright as gw
from gatewright.errors import UsageError
from gatewright.runtime import driver
from gatewright.runtime.cli import app
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


def test_a_port_is_of_a_board(tmp_path: Path) -> None:
    assert mode_of("device", at_port=True) == "device"
    with pytest.raises(UsageError, match="--port belongs to mode device"):
        mode_of(None, at_port=True)
    gw.compile(graph("(float[1,2] x) => (float[1,2] y) { y = Relu(x) }"), "ort", out=tmp_path / "art")
    np.savez(tmp_path / "x.npz", x=np.zeros((3, 2), np.float32))
    words = ["run", str(tmp_path / "art"), "--data", str(tmp_path / "x.npz"), "--mode", "device"]
    assert CliRunner().invoke(app, words).exit_code == 0
    refused = CliRunner().invoke(app, [*words, "--port", "/dev/ttyUSB0"])
    assert refused.exit_code == 2
    assert "target ort is reached through no port" in refused.output
