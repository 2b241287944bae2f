"""The target as a user meets it: check, compile, emulate, and what it refuses."""

from __future__ import annotations

import re
from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest

import gatewright as gw
from gatewright.errors import DoesNotFit, GatewrightError, UsageError
from gatewright.frontend.reference import Reference
from gatewright.targets.rtl import target as rtl_target

DEMO = Path(str(files("gatewright.runtime"))) / "demo_data"


@pytest.fixture(scope="module")
def data() -> tuple[gw.Dataset, gw.Dataset]:
    prepared = {"x": gw.Input(scale=1 / 16)}
    train = gw.Dataset.load(DEMO / "digits.npz", inputs=prepared, part="train")
    return train, gw.Dataset.load(DEMO / "digits.npz", inputs=prepared)


@pytest.fixture(scope="module")
def small(data: tuple[gw.Dataset, gw.Dataset]) -> gw.Model:
    return gw.transform(gw.load(DEMO / "digits_mlp.onnx"), "fuse,prune{amount=0.75},quantize{bits=4,grid=pow2}", data=data[0])


def test_emulation_equals_ref(small: gw.Model, data: tuple[gw.Dataset, gw.Dataset], tmp_path: Path) -> None:
    feeds = data[1].feeds(small.inputs)
    expected = Reference(small).run(feeds, trace=True)
    with gw.compile(small, "rtl:icebreaker", out=tmp_path / "a").load("emulate") as executor:
        assert np.array_equal(executor.run(feeds)["y"], expected["y"])
        trace = executor.trace({name: array[:7] for name, array in feeds.items()})
    inner = [name for name in trace if name in expected and trace[name].dtype == expected[name].dtype]
    assert len(inner) >= 4
    for name in inner:
        assert np.array_equal(trace[name], expected[name][:7]), name


def test_files_are_the_same_for_the_same_model(small: gw.Model, tmp_path: Path) -> None:
    from gatewright.runtime.targetspec import resolve
    from gatewright.targets.base import TargetContext

    folders = [tmp_path / "a", tmp_path / "b"]
    for folder in folders:
        folder.mkdir()
        resolve("rtl:ulx3s-25f").lower(small, folder, TargetContext(tmp_path / "cache"))
    names = sorted(file.name for file in folders[0].iterdir())
    assert {"network.v", "network.json", "top.v", "top.lpf", "serial.v", "synth.ys", "host_pre.onnx"} <= set(names)
    assert all((folders[0] / name).read_bytes() == (folders[1] / name).read_bytes() for name in names)


def test_what_does_not_fit_names_a_board_that_would(data: tuple[gw.Dataset, gw.Dataset], tmp_path: Path) -> None:
    model = gw.transform(gw.load(DEMO / "digits_mlp.onnx"), "fuse,quantize{bits=4,grid=pow2}", data=data[0])
    checked = gw.check(model, "rtl:icebreaker")
    assert not checked.ok
    assert "LUT: needs about" in checked.shortfalls[0]
    assert gw.check(model, "rtl:ulx3s-25f").ok
    with pytest.raises(DoesNotFit, match="does not fit icebreaker") as caught:
        gw.compile(model, "rtl:icebreaker", out=tmp_path / "a")
    board = re.findall(r"it would fit ([\w-]+)", str(caught.value.hint))[0]
    assert gw.check(model, f"rtl:{board}").ok
    amount = re.findall(r"prune\{amount=([\d.]+)\}", str(caught.value.hint))[0]
    smaller = gw.transform(gw.load(DEMO / "digits_mlp.onnx"), f"fuse,prune{{amount={amount}}},quantize{{bits=4,grid=pow2}}", data=data[0])
    assert gw.check(smaller, "rtl:icebreaker").ok
    assert caught.value.exit_code == 3
    assert not (tmp_path / "a").exists()


def test_more_than_was_ever_routed_is_told_before(small: gw.Model, monkeypatch: pytest.MonkeyPatch) -> None:
    assert not any("routed" in note for note in gw.check(small, "rtl:ulx3s-85f").notes)
    monkeypatch.setattr(rtl_target, "ROUTED_CELLS", 100)
    assert any("the most that was seen routed" in note for note in gw.check(small, "rtl:ulx3s-85f").notes)
    assert not any("routed" in note for note in gw.check(small, "rtl:zcu102").notes)  # that is Vivado's to do


def test_a_float_model_needs_data(tmp_path: Path) -> None:
    checked = gw.check(gw.load(DEMO / "digits_mlp.onnx"), "rtl:icebreaker")
    assert "takes quantized models" in checked.problems[0].rule


def test_a_board_needs_a_bitstream_and_a_port(small: gw.Model, tmp_path: Path) -> None:
    artifact = gw.compile(small, "rtl:icebreaker", out=tmp_path / "a")
    with pytest.raises(GatewrightError, match="no bitstream yet"):
        artifact.load("device")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("rtl", "needs a device"),
        ("rtl:pynq-z2{wrapper=uart}", "no open tools"),
        ("rtl:pynq-z2", None),
        ("rtl:ulx3s-25f{wrapper=axi}", "no Vivado project"),
        ("rtl:icebreaker{wrapper=spi,baud=3000000}", "too fast for spi"),
        ("rtl:icebreaker{clock_mhz=0}", "takes 0.1 to 1000"),
        ("rtl:icebreaker{clock_mhz=13.37}", "no PLL"),
        ("rtl:icebreaker{baud=7}", "usual speed"),
        ("rtl:icebreaker{clock_mhz=12,baud=3000000}", None),
        ("rtl:znver3", "takes a board"),
    ],
)
def test_words(text: str, message: str | None) -> None:
    from gatewright.runtime.targetspec import resolve

    if message is None:
        resolve(text)
        return
    with pytest.raises(UsageError, match=message):
        resolve(text)


def test_a_large_network_shares_its_sums_among_few(data: tuple[gw.Dataset, gw.Dataset], tmp_path: Path) -> None:
    model = gw.transform(gw.load(DEMO / "digits_mlp.onnx"), "fuse,quantize{bits=8,grid=pow2}", data=data[0])
    auto, widely, nearby = (gw.check(model, f"rtl:ulx3s-85f{{share={how}}}").figures for how in ("auto", "all", "few"))
    assert auto == nearby
    assert widely["LUT"].value < nearby["LUT"].value < 1.25 * widely["LUT"].value
    assert widely["latency"].value < nearby["latency"].value
    artifact = gw.compile(model, "rtl:ulx3s-85f", out=tmp_path / "a")
    assert artifact.manifest["target"]["large"]
    feeds = {name: array[:20] for name, array in data[1].feeds(model.inputs).items()}
    with artifact.load("emulate") as executor:
        assert np.array_equal(executor.run(feeds)["y"], Reference(model).run(feeds)["y"])


def test_a_small_network_shares_its_sums_among_all(small: gw.Model) -> None:
    auto, widely = (gw.check(small, f"rtl:ulx3s-85f{{share={how}}}").figures for how in ("auto", "all"))
    assert auto == widely
