"""Compiled for TPUs by libtpu on this machine: what stands in the HLO, the memory, the collectives. Skipped without libtpu."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from graphs import graph, scale

import gatewright as gw
from gatewright.errors import DoesNotFit
from gatewright.frontend.model import Model

pytest.importorskip("libtpu", reason="compiling for TPUs needs libtpu: pip install 'gatewright[tpu]'")


def pair() -> Model:
    """Two int8 products, wide enough for the matrix unit."""
    rng = np.random.default_rng(0)
    return graph(
        """(int8[1,128] q) => (int8[1,64] y) {
            x = DequantizeLinear(q, s, z) a = DequantizeLinear(aq, s, z) b = DequantizeLinear(bq, s, z)
            c = MatMul(x, a) r = Relu(c) rq = QuantizeLinear(r, t, z) d = DequantizeLinear(rq, t, z)
            e = MatMul(d, b) y = QuantizeLinear(e, t, z)
        }""", s=scale(0.02), t=scale(0.1), z=np.int8(0), aq=rng.integers(-127, 128, (128, 256)).astype(np.int8),
        bq=rng.integers(-127, 128, (256, 64)).astype(np.int8),
    )  # fmt: skip


def floats() -> Model:
    rng = np.random.default_rng(1)
    a, b = rng.normal(size=(128, 256)).astype(np.float32), rng.normal(size=(256, 64)).astype(np.float32)
    return graph("(float[1,128] x) => (float[1,64] y) { c = MatMul(x, a) r = Relu(c) y = MatMul(r, b) }", a=a, b=b)


def bucket(artifact: gw.Artifact) -> dict[str, Any]:
    found: dict[str, Any] = artifact.manifest["target"]["buckets"][0]
    return found


def test_int8_products_are_integers_in_the_hlo(tmp_path: Path) -> None:
    made = gw.compile(pair(), "tpu:v5e{batches=32}", out=tmp_path / "a")
    entry = bucket(made)
    assert entry["products"]["integer_share"] == 1.0
    assert entry["products"]["matrix_share"] == 1.0
    text = (made.path / entry["hlo"]).read_text(encoding="utf-8")
    assert "= s32[32,256]" in text
    assert "f32[32,256]" not in text, "no float takes part"
    assert 0 < entry["memory"]["total"] < entry["memory"]["available"]
    assert entry["memory"]["arguments"] >= 128 * 256 + 256 * 64
    for file in (entry["executable"], entry["stablehlo"], entry["program"]):
        assert (made.path / file).stat().st_size > 0
    assert made.manifest["target"]["ahead_of_time"] is True
    figures = made.target().figures(made)
    assert (figures["MACs in int8"].value, figures["MACs in int8"].source) == (100.0, "synthesized")
    assert figures["peak_memory"].value == entry["memory"]["total"]


@pytest.mark.slow
def test_float32_is_multiplied_as_the_options_say(tmp_path: Path) -> None:
    with ThreadPoolExecutor(2) as pool:  # two compilations side by side: libtpu's lock must not mind
        names = ("highest", "bf16")
        made = list(pool.map(lambda p: gw.compile(floats(), f"tpu:v5e{{batches=32,precision={p}}}", out=tmp_path / p), names))
    shares = [bucket(artifact)["products"] for artifact in made]
    assert shares[0]["by_unit"] == {"float32": shares[0]["macs"]}
    assert shares[0]["matrix_share"] == 0
    assert shares[1]["by_unit"] == {"bf16": shares[1]["macs"]}


@pytest.mark.parametrize(("mesh", "reduced"), [pytest.param("data", 0, marks=pytest.mark.slow), ("model", 1)])
def test_collectives_on_four_chips(mesh: str, reduced: int, tmp_path: Path) -> None:
    """Samples apart say nothing to one another; weights halved by columns, then by rows, cost one all-reduce."""
    made = gw.compile(floats(), f"tpu:v5e{{topology=2x2,mesh={mesh},batches=64}}", out=tmp_path / "a")
    found = bucket(made)["collectives"]
    assert found.get("all-reduce", {"count": 0})["count"] == reduced
    assert set(found) <= {"all-reduce"}
    if reduced:
        # 32 samples of a pair of cores, 64 outputs each.
        assert found["all-reduce"]["bytes"] == 32 * 64 * 4


@pytest.mark.slow
def test_what_the_compiler_needs_is_held_against_the_memory(tmp_path: Path) -> None:
    """The estimate lets it pass; with its code and its padding it does not fit."""
    text = (Path(gw.__file__).parents[2] / "hw/processors/v5e.toml").read_text(encoding="utf-8")
    (tmp_path / "v5e.toml").write_text(text.replace("17_179_869_184", "80_000"), encoding="utf-8")
    where = f"tpu:{tmp_path / 'v5e.toml'}"
    assert gw.check(pair(), where).ok
    with pytest.raises(DoesNotFit, match="80,000"):
        gw.compile(pair(), where, out=tmp_path / "a")


@pytest.mark.slow
@pytest.mark.parametrize("chip", ["v2", "v3", "v4", "v5p", "v6e", "tpu7x"])
def test_every_generation_compiles(chip: str, tmp_path: Path) -> None:
    entry = bucket(gw.compile(pair(), f"tpu:{chip}{{batches=32}}", out=tmp_path / "a"))
    assert entry["products"]["integer_share"] == 1.0
