"""Winograd convolutions of 8-bit integers: every plan bit for bit the reference's, on several instructions; who is offered them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import pytest
from by_kernel import run
from graphs import Array, graph, scale
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from lesser_cpus import lesser

from gatewright.frontend.model import Model
from gatewright.frontend.reference import Reference
from gatewright.hw.device import Processor, host, load_device
from gatewright.targets.tvm.codegen import Graph, generate
from gatewright.targets.tvm.kernel import Choice, Policy
from gatewright.targets.tvm.machine import Machine
from gatewright.targets.tvm.ops import int8_dot, int8_winograd, winograd
from gatewright.targets.tvm.schedules import int8_winograd as schedules
from gatewright.targets.tvm.schedules.winograd import Plan, plans
from gatewright.targets.tvm.steps import program

CORES = 2
DOTS = ("vpdpbusd512", "vpmaddwd512", "vpmaddwd256")
"""The lesser CPUs that are tried, besides this machine as it is."""


@dataclass(frozen=True)
class Case:
    """Three 3×3 convolutions: the first reads planes and writes blocks of channels, the last one the reverse."""

    channels: tuple[int, int, int, int] = (16, 32, 16, 32)
    size: tuple[int, int] = (9, 10)
    batch: int = 1
    pads: tuple[int, ...] = (1, 1, 1, 1)
    signed: bool = False
    zero: int = 0
    extreme: bool = False
    """Weights and inputs at the ends of their range."""
    gain: float = 1.0

    @property
    def model(self) -> Model:
        random = np.random.default_rng(3)
        kind = np.int8 if self.signed else np.uint8
        name = str(np.dtype(kind))
        init: dict[str, Array] = {"s": scale(1.0), "z": kind(self.zero), "zw": np.int8(0)}
        text, last = "", "x"
        for i, (own, filters) in enumerate(zip(self.channels, self.channels[1:], strict=False)):
            shape = (filters, own, 3, 3)
            weight = random.choice([-128, 127], shape) if self.extreme else random.integers(-128, 128, shape)
            init |= {
                f"w{i}": weight.astype(np.int8), f"b{i}": random.integers(-9000, 9000, filters).astype(np.int32),
                f"s{i}": (random.uniform(0.5, 2, filters) * self.gain / (74 * np.sqrt(9 * own))).astype(np.float32),
                f"z{i}": np.zeros(filters, np.int8), f"zb{i}": np.zeros(filters, np.int32),
            }  # fmt: skip
            to = "y" if i == 2 else f"q{i}"
            text += (
                f"a{i} = DequantizeLinear({last}, s, z) v{i} = DequantizeLinear<axis = 0>(w{i}, s{i}, z{i}) "
                f"u{i} = DequantizeLinear<axis = 0>(b{i}, s{i}, zb{i}) "
                f"c{i} = Conv<pads = {list(self.pads)}>(a{i}, v{i}, u{i}) {to} = QuantizeLinear(c{i}, s, z) "
            )
            last = to
        shape_ = f"{self.batch},{self.channels[0]},{self.size[0]},{self.size[1]}"
        return graph(f"({name}[{shape_}] x) => ({name}[N,{self.channels[3]},H,W] y) {{ {text} }}", **init)

    @property
    def feeds(self) -> dict[str, Array]:
        random = np.random.default_rng(4)
        ends = np.iinfo(np.int8 if self.signed else np.uint8)
        shape = (self.batch, self.channels[0], *self.size)
        x = random.choice([ends.min, ends.max], shape) if self.extreme else random.integers(ends.min, ends.max + 1, shape)
        return {"x": x.astype(ends.dtype)}


@dataclass(eq=False)
class Chooser:
    """Takes ``plan`` where Winograd is offered, else the first; None: always the first."""

    plan: Plan | None = None
    offered: list[tuple[Choice, ...]] = field(default_factory=list)

    def __call__(self, problem: str, candidates: Sequence[Choice]) -> Choice:
        self.offered.append(tuple(candidates))
        if self.plan is not None and any(c.algorithm.startswith("winograd") for c in candidates):
            return self.plan.choice
        return candidates[0]


def right(case: Case, device: Processor, plan: Plan) -> bool:
    """Whether the reference's bits come out, all layers by ``plan``. Strict, since nothing is rounded."""
    found, algorithms = run(case.model, Policy(True, Chooser(plan)), case.feeds, Machine.of(device, CORES), device)
    assert algorithms == {plan.choice.algorithm}
    wanted = Reference(case.model).run(case.feeds)["y"]
    assert len(np.unique(wanted)) > 2, "a result that says something"
    return found.dtype == wanted.dtype and np.array_equal(found, wanted)


def offers(case: Case, device: Processor, cores: int = CORES) -> list[tuple[Choice, ...]]:
    """What each layer may choose from."""
    chooser = Chooser()
    generate(Graph.of(program(case.model), Machine.of(device, cores)), Policy(choose=chooser), lambda text: None)
    return chooser.offered


@pytest.fixture(params=["this machine", *DOTS])
def device(request: pytest.FixtureRequest) -> Processor:
    return host() if request.param == "this machine" else lesser(request.param)


PLANS = [Plan(2, 1, 4, False), Plan(2, 2, 6, True), Plan(2, 3, 5, False)]


@pytest.mark.parametrize("plan", PLANS, ids=lambda plan: f"{plan.choice.algorithm} {plan.rows}x{plan.positions}")
def test_every_plan(device: Processor, plan: Plan) -> None:
    assert right(Case(batch=2, size=(13, 10)), device, plan)


@pytest.mark.parametrize(("signed", "zero"), [(False, 0), (False, 255), (True, -128), (True, 127)])
def test_the_ends_of_all_ranges(device: Processor, signed: bool, zero: int) -> None:
    assert right(Case((64, 16, 64, 16), signed=signed, zero=zero, extreme=True, gain=0.3), device, PLANS[0])


@settings(max_examples=4, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture])
@given(
    plan=st.builds(Plan, st.just(2), st.integers(1, 3), st.integers(1, 6), st.booleans()),
    first=st.integers(8, 37), filters=st.tuples(*[st.sampled_from([8, 16, 24, 32, 48])] * 3),
    size=st.tuples(st.integers(1, 11), st.integers(1, 11)), batch=st.integers(1, 2), pads=st.tuples(*[st.integers(0, 2)] * 4),
    signed=st.booleans(), zero=st.sampled_from([0, 1, 64, 127]), extreme=st.booleans(),
)  # fmt: skip
def test_any_shape(
    device: Processor, plan: Plan, first: int, filters: tuple[int, int, int], size: tuple[int, int], batch: int, pads: tuple[int, ...],
    signed: bool, zero: int, extreme: bool,
) -> None:  # fmt: skip
    # Three layers without enough padding leave nothing of a small image.
    grown = [max(n, 7 - 3 * (pads[i] + pads[i + 2] - 2)) for i, n in enumerate(size)] if min(pads) < 1 else list(size)
    case = Case((first, *filters), (grown[0], grown[1]), batch, pads, signed, zero - 128 * (signed and extreme), extreme)
    got, _ = run(case.model, Policy(True, Chooser(plan)), case.feeds, Machine.of(device, CORES), device)
    assert np.array_equal(got, Reference(case.model).run(case.feeds)["y"])


def test_the_better_one_comes_first_and_both_have_two_blocks() -> None:
    """Without VNNI Winograd for all but the thinnest layers; with it, the plain sum where the channels are few."""
    wide, thin = Case((64,) * 4, (28, 28)), Case((8, 16, 16, 16), (28, 28))
    for name in ("znver3", "skylake-avx512", "sapphire-rapids"):
        processor = load_device(name)
        assert isinstance(processor, Processor)
        for layer in (*offers(wide, processor), *offers(thin, processor)):
            register_blocks = {(c.algorithm.partition(" ")[0], c.blocks[1:]) for c in layer}
            assert sum(a == "direct" for a, _ in register_blocks) >= 2
            assert sum(a == "winograd2" for a, _ in register_blocks) >= 2
        assert len(offers(wide, processor)) == 3
        if name == "znver3":
            assert all(layer[0].algorithm.startswith("winograd2") for layer in offers(wide, processor))
        if name == "sapphire-rapids":
            assert all(layer[0].algorithm == "direct" for layer in offers(thin, processor))


def test_the_estimate_is_that_of_measurements() -> None:
    """64@56 to 256@14 on one core: AVX2 took half of the plain sum's time, AVX-512 with VNNI about as long."""
    for machine, lowest, highest in (
        (Machine(256, 16, 1, 1 << 20, 4.0, frozenset({"avx2", "x86_64"})), 0.4, 0.6),
        (Machine(512, 32, 1, 1 << 20, 4.0, frozenset({"avx512f", "avx512bw", "avx512vl", "avx512vnni", "avx2", "x86_64"})), 0.85, 1.1),
    ):  # fmt: skip
        dot, plain = int8_dot.dot_of(machine, 16, 2), int8_dot.dot_of(machine, 16)
        assert dot is not None
        assert plain is not None
        for channels, extent in ((64, 56), (128, 28), (256, 14)):
            asked = schedules.problem(1, channels, channels, (extent, extent), 16, machine, dot)
            assert lowest < plans(asked, machine)[0].cycles(asked, machine) / schedules.direct_cycles(asked, machine, plain) < highest


def test_who_is_not_offered_it(device: Processor) -> None:
    case = Case()
    assert len(offers(case, device)) == 3
    assert offers(replace(case, channels=(4, 20, 20, 20)), device) == []
    # At the ends of all ranges 731 channels may be summed (see below).
    assert len(offers(replace(case, channels=(1600, 8, 8, 8), size=(4, 4), extreme=True), device)) == 2
    assert len(offers(replace(case, channels=(200, 8, 8, 8), size=(4, 4), extreme=True), device)) == 3


@settings(max_examples=50, deadline=None)
@given(lo=st.integers(-255, 255), width=st.integers(0, 255), seed=st.integers(0, 999))
def test_the_transforms_and_their_bounds(lo: int, width: int, seed: int) -> None:
    """Four times the convolution; no transformed input passes the bound, and the worst of them reach it."""
    random, hi = np.random.default_rng(seed), min(lo + width, 255)
    ends = [min(lo, 0), max(hi, 0)]
    weight, d = random.integers(-128, 128, (2, 5, 3, 3)), random.integers(ends[0], ends[1] + 1, (5, 4, 4))
    b, a = int8_winograd._B, int8_winograd._A
    data = np.einsum("ui,cij,vj->uvc", b, d, b)
    points = np.einsum("uvmc,uvc->uvm", int8_winograd.transformed(weight), data)
    wanted = [[(weight * d[None, :, y : y + 3, x : x + 3]).sum(axis=(1, 2, 3)) for x in range(2)] for y in range(2)]
    assert np.array_equal(np.einsum("yu,uvm,xv->yxm", a, points, a), 4 * np.array(wanted))
    bounds = int8_winograd.reach(lo, hi)
    assert np.all(np.abs(data) <= bounds[:, :, None])
    signs = np.einsum("ui,vj->uvij", b, b)
    worst = [np.where(signs > 0, high, low) * (signs != 0) for low, high in (ends, ends[::-1])]
    assert np.array_equal(np.maximum(*(np.abs((signs * w).sum(axis=(2, 3))) for w in worst)), bounds)


def test_the_limit_of_the_sums() -> None:
    """By hand for filters of -128 and activations up to 255; smaller ones may have more channels."""

    def allowed(value: int, lo: int, hi: int) -> int:
        one = int8_winograd.transformed(np.full((1, 1, 3, 3), value))
        return next(n for n in range(1, 5000) if not int8_winograd.fits(np.repeat(one, n, axis=3), lo, hi)) - 1

    # A result's points are of 2, 3 and 1 times 128 along each axis; at (1, 1) four inputs are added, elsewhere two less two.
    n = allowed(-128, 0, 255)
    assert n == (2**31 - 1) // (128 * (9 * 1020 + (6 * 6 - 9) * 510))
    assert n < allowed(64, 0, 255)
    assert n < allowed(-128, 0, 127)
    assert not int8_winograd.fits(np.full((4, 4, 1, 1), 1 << 15), 0, 1)
    assert not int8_winograd.fits(np.ones((4, 4, 1, 1)), 0, 8192)


def _wrong_inputs(patch: pytest.MonkeyPatch) -> None:
    correct = winograd._inputs
    patch.setattr(winograd, "_inputs", lambda m, d: [*correct(m, d)[:3], d[3] - d[1]])


def _wrong_outputs(patch: pytest.MonkeyPatch) -> None:
    correct = winograd._outputs
    patch.setattr(winograd, "_outputs", lambda m, t: [correct(m, t)[0], t[1] - t[2] + t[3]])


PLANTED = {
    "forgotten quarter": lambda patch: patch.setattr(int8_winograd, "SHIFT", 0),
    "filters of half the size": lambda patch: patch.setattr(int8_winograd, "_G", int8_winograd._G // 2),
    "wrong transform of the inputs": _wrong_inputs,
    "wrong transform of the sums": _wrong_outputs,
    "forgotten zero point": lambda patch: patch.setattr(int8_winograd, "stored", lambda dot, x, zero: int8_dot.stored(dot, x, 0)),
}


@pytest.mark.parametrize("bug", PLANTED)
def test_a_planted_bug_is_caught(bug: str, monkeypatch: pytest.MonkeyPatch) -> None:
    case = Case(zero=7)
    assert right(case, host(), PLANS[0])
    PLANTED[bug](monkeypatch)
    assert not right(case, host(), PLANS[0])
