"""Reuse factors by CP-SAT: the optimum of small cases by enumeration, the objectives, what is said where nothing fits."""

from __future__ import annotations

import itertools
from dataclasses import astuple, replace
from pathlib import Path

import numpy as np
import pytest
from hls_kit import PYNQ, cnn, mlp, quantized

import gatewright as gw
from gatewright.errors import DoesNotFit, UsageError
from gatewright.hw.cost import FpgaResources
from gatewright.hw.device import Part, load_device
from gatewright.targets.hls.allocate import Choice, Objective, allocate

XC7Z020 = load_device("xc7z020")
assert isinstance(XC7Z020, Part)
SMALL = replace(XC7Z020, luts=1000, ffs=4000, dsps=20, bram_blocks=10)
NOTHING = FpgaResources(0, 0, 0, 0)


def random_choices(seed: int) -> dict[str, list[Choice]]:
    """Three layers with four factors each; slower ones are cheaper, more or less."""
    rng = np.random.default_rng(seed)
    found = {}
    for layer in ("a", "b", "c"):
        passes = int(rng.integers(1, 20))
        found[layer] = [
            Choice(r, passes * r, passes * r + 3, FpgaResources(int(rng.integers(50, 500)) // r, 100 // r, int(rng.integers(0, 9)), r // 2))
            for r in (1, 2, 4, 8)
        ]
    return found


def goal(picked: tuple[Choice, ...], objective: Objective) -> float:
    interval = max(c.interval for c in picked)
    share = sum(1_000_000 * used // there for c in picked for used, there in zip(astuple(c.cost), (1000, 4000, 20, 10), strict=True))
    return {"interval": interval, "latency": sum(c.latency for c in picked), "resources": share}[objective]


@pytest.mark.parametrize("objective", ["interval", "latency", "resources"])
@pytest.mark.parametrize("seed", range(8))
def test_the_choice_is_the_best_of_all_that_fit(seed: int, objective: Objective) -> None:
    choices = random_choices(seed)
    found = allocate(choices, NOTHING, SMALL, objective, None, 1.0)
    picked = tuple(next(c for c in options if c.reuse == found[name]) for name, options in choices.items())
    limits = (1000, 4000, 20, 10)

    def fits(candidate: tuple[Choice, ...]) -> bool:
        return all(sum(astuple(c.cost)[i] for c in candidate) <= limit for i, limit in enumerate(limits))

    everything = [candidate for candidate in itertools.product(*choices.values()) if fits(candidate)]
    assert everything
    assert fits(picked)
    assert goal(picked, objective) == min(goal(candidate, objective) for candidate in everything)


def test_the_same_problem_has_the_same_answer() -> None:
    answers = [allocate(random_choices(3), NOTHING, SMALL, "latency", None, 0.8) for _ in range(3)]
    assert answers[0] == answers[1] == answers[2]


def test_an_interval_bounds_every_layer() -> None:
    choices = random_choices(1)
    least = max(min(c.interval for c in options) for options in choices.values())
    found = allocate(choices, NOTHING, SMALL, "resources", least, 1.0)
    assert all(next(c for c in options if c.reuse == found[name]).interval <= least for name, options in choices.items())


def test_where_nothing_fits_the_smallest_is_taken_and_reported() -> None:
    tiny = replace(SMALL, luts=10)
    found = allocate(random_choices(0), NOTHING, tiny, "latency", None, 0.8)
    assert set(found) == {"a", "b", "c"}


def test_objectives_trade_latency_for_resources() -> None:
    model = quantized(cnn())
    checks = {o: gw.check(model, f"{PYNQ}{{design=ip,objective={o}}}").figures for o in ("latency", "resources", "interval")}
    cycles = {o: found["latency_cycles"].value for o, found in checks.items()}
    assert cycles["latency"] <= cycles["interval"] < cycles["resources"]
    assert checks["resources"]["LUT"].value < checks["latency"]["LUT"].value
    assert checks["interval"]["interval"].value <= checks["resources"]["interval"].value
    bounded = gw.check(model, f"{PYNQ}{{design=ip,objective=resources,interval=200}}").figures
    assert checks["interval"]["interval"].value <= bounded["interval"].value <= 200


def test_check_shows_what_the_part_has_and_labels_estimates() -> None:
    found = gw.check(quantized(mlp()), PYNQ)
    assert {"LUT", "FF", "DSP", "BRAM", "interval", "latency_cycles", "clock"} <= set(found.figures)
    assert {figure.source for figure in found.figures.values()} == {"estimated"}
    assert found.available["LUT"].value == 53_200
    assert any("strategy latency" in note and "accumulators of" in note for note in found.notes)
    assert any("more than designs reach" in note for note in gw.check(quantized(mlp()), f"{PYNQ}{{clock_mhz=400}}").notes)


def small_part(folder: Path, luts: int) -> str:
    """A part file of a user, with so many LUTs."""
    text = (Path(gw.hw.device.__file__).parent / "parts" / "xc7z020.toml").read_text()
    (folder / "small.toml").write_text(text.replace("luts = 53_200", f"luts = {luts}"))
    return str(folder / "small.toml")


def test_what_does_not_fit_is_told_with_a_board_and_a_compression_that_would(tmp_path: Path) -> None:
    target = f"hls:{small_part(tmp_path, 150)}{{io=parallel}}"
    model = quantized(mlp())
    found = gw.check(model, target)
    assert any(short.startswith("LUT: needs about") for short in found.shortfalls)
    assert any("the smallest board here that holds it is pynq-z2" in note and "would fit (estimated)" in note for note in found.notes)
    with pytest.raises(DoesNotFit, match="pynq-z2") as error:
        gw.compile(model, target, out=tmp_path / "art")
    assert error.value.exit_code == 3
    assert not (tmp_path / "art").exists()


def test_limits_of_the_tools_are_shortfalls_by_name() -> None:
    from graphs import graph

    rng = np.random.default_rng(0)
    weights = {"w": rng.normal(size=(8, 2, 3, 3)).astype(np.float32), "b": np.zeros(8, np.float32)}
    model = graph("(float[1,2,40,40] x) => (float[1,8,38,38] y) { y = Conv(x, w, b) }", **weights).renamed("wide")
    found = gw.check(quantized(model), f"{PYNQ}{{io=parallel}}")
    assert any(short.startswith("partition:") and "11552 values" in short for short in found.shortfalls)
    assert not gw.check(quantized(model), PYNQ).shortfalls  # streamed


@pytest.mark.parametrize(
    ("target", "said"),
    [
        ("hls:alveo-u50{tool=vivadoaccelerator}", "Alveo with tool=vitis"),
        ("hls:xc7z020{tool=vivadoaccelerator}", "boards with one: alveo-u250"),
        ("hls:pynq-z2{tool=vivadoaccelerator,design=ip}", "tool=vivado"),
        ("hls:de10-nano{tool=quartus,design=accelerator}", "no accelerator design"),
        ("hls:pynq-z2{interval=0}", "interval"),
        ("hls:pynq-z2{fill=2}", "fill"),
        ("hls:pynq-z2{objective=speed}", "objective"),
    ],
)
def test_options_that_cannot_be_are_usage_errors(target: str, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        gw.check(quantized(mlp()), target)
