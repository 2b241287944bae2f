"""Every operation of the integer view on hls: equal to ref, or refused by name. All branches lie in one design, so that g++ runs once."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from hls_kit import needs_gxx

import gatewright as gw
from gatewright.frontend.reference import Reference

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "conformance"))
from cases import INTEGER, integer_feeds, integer_model

pytestmark = needs_gxx

REFUSED = {"matmul_of_activations"}
"""What has no layer, whatever the tool and the io type."""

ROOMY = """kind = "part"
vendor = "{vendor}"
family = "none"
part_number = "roomy"
toolchains = ["{tool}"]
luts = 90_000_000
lut_inputs = 6
ffs = 90_000_000
dsps = 1_000_000
bram_blocks = 1_000_000
bram_block_bits = 36_864
typical_clock_hz = 100e6
"""
"""All operations side by side fit no part that is made."""

TARGETS = [("vitis", "stream"), ("vitis", "parallel"), ("quartus", "stream"), ("quartus", "parallel")]


def case_of(value: str) -> str:
    """The case that a value's name begins with (the longest one: matmul_of_activations is not matmul)."""
    return max((case.name for case in INTEGER if value.startswith(f"{case.name}_")), key=len)


@pytest.mark.parametrize(("tool", "io"), [TARGETS[0], *(pytest.param(*t, marks=pytest.mark.slow) for t in TARGETS[1:])])
def test_every_operation(tool: str, io: str, tmp_path: Path) -> None:
    (tmp_path / "roomy.toml").write_text(ROOMY.format(vendor={"vitis": "amd", "quartus": "intel"}[tool], tool=tool))
    target = f"hls:{tmp_path}/roomy.toml{{tool={tool},io={io}}}"
    model = integer_model(INTEGER)
    values = {node.name: node.outputs[0].name or "" for node in model.graph}
    refused = {case_of(values[problem.node]) for problem in gw.check(model, target).problems}
    assert refused == REFUSED
    model = integer_model([case for case in INTEGER if case.name not in REFUSED])
    feeds = integer_feeds()
    expected = Reference(model).run(feeds)
    with gw.compile(model, target, out=tmp_path / "art").load() as executor:
        got = executor.run(feeds)
    assert {name: int(np.count_nonzero(got[name] != expected[name])) for name in expected} == dict.fromkeys(expected, 0)
