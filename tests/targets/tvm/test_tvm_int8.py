"""8-bit convolutions and matrix products on every dot-product instruction that this machine has: bit for bit the reference's."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import pytest
from compiling import Compile
from graphs import Array, graph, scale
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from lesser_cpus import CPUS, lesser

from gatewright.frontend.integer import Multiplier, plan
from gatewright.frontend.model import Model
from gatewright.frontend.reference import Reference
from gatewright.frontend.rounding import requantize
from gatewright.hw.device import host
from gatewright.targets.tvm import target
from gatewright.targets.tvm.machine import Machine
from gatewright.targets.tvm.ops import int8, int8_dot, rounding


@pytest.fixture(params=CPUS)
def cpu(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """This machine as if it had fewer instructions."""
    described = lesser(request.param)
    monkeypatch.setattr(target, "host", lambda: described)
    dot = int8_dot.dot_of(Machine.of(described, 1), 16)
    assert dot is not None
    assert dot.name == request.param
    return str(request.param)


@dataclass(frozen=True)
class Layer:
    """One convolution of ``channels`` channels, 12 x 11 positions."""

    filters: int
    groups: int
    kernel: tuple[int, int]
    strides: tuple[int, int] = (1, 1)
    pads: tuple[int, int] = (0, 0)
    dilations: tuple[int, int] = (1, 1)
    extreme: bool = False
    """Weights at the ends of their range, so that sums are as large as they can be."""
    multiplier: float = 2e-4


def network(
    layers: list[Layer], channels: int, kind: type[np.int8] | type[np.uint8], zero: int, seed: int = 0
) -> tuple[Model, dict[str, Array]]:
    """x through a 1x1 convolution (so that what follows reads blocks of channels), then every layer beside the others."""
    random = np.random.default_rng(seed)
    name, z = str(np.dtype(kind)), kind(zero)
    init: dict[str, Array] = {"s": scale(1.0), "z": z, "zw": np.int8(0),
                              "first": random.integers(-128, 128, (channels, 5, 1, 1)).astype(np.int8),
                              "sfirst": scale(2e-3)}  # fmt: skip
    text = "a = DequantizeLinear(x, s, z) b = DequantizeLinear(first, sfirst, zw) c = Conv<kernel_shape = [1, 1]>(a, b) "
    text += "d = QuantizeLinear(c, s, z) e = DequantizeLinear(d, s, z) "
    outputs = []
    for i, layer in enumerate(layers):
        shape = (layer.filters, channels // layer.groups, *layer.kernel)
        weight = random.choice([-128, 127], shape) if layer.extreme else random.integers(-128, 128, shape)
        init |= {
            f"w{i}": weight.astype(np.int8),
            f"s{i}": scale(layer.multiplier),
            f"b{i}": random.integers(-4000, 4000, layer.filters).astype(np.int32),
        }
        pads = [*layer.pads, *layer.pads]
        text += (
            f"v{i} = DequantizeLinear(w{i}, s{i}, zw) u{i} = DequantizeLinear(b{i}, s{i}) c{i} = Conv<group = {layer.groups}, "
            f"strides = {list(layer.strides)}, pads = {pads}, dilations = {list(layer.dilations)}>(e, v{i}, u{i}) "
            f"y{i} = QuantizeLinear(c{i}, s, z) "
        )
        outputs.append(f"{name}[1,{layer.filters},h{i},w{i}] y{i}")
    model = graph(f"({name}[1,5,12,11] x) => ({', '.join(outputs)}) {{ {text} }}", **init)
    ends = np.iinfo(kind)
    return model, {"x": random.integers(ends.min, ends.max + 1, (1, 5, 12, 11)).astype(kind)}


def wrong(compiled: Compile, model: Model, inputs: dict[str, Array]) -> list[str]:
    got, wanted = compiled(model).run(inputs), Reference(model).run(inputs)
    return [name for name in wanted if got[name].dtype != wanted[name].dtype or not np.array_equal(got[name], wanted[name])]


KINDS = [
    Layer(32, 1, (3, 3), pads=(1, 1)), Layer(64, 1, (1, 1)), Layer(16, 1, (3, 3), (2, 2), (1, 1)), Layer(24, 1, (1, 1), (2, 2)),
    Layer(20, 1, (3, 2)),
    Layer(3, 1, (3, 3), pads=(1, 1)), Layer(2, 1, (1, 1)), Layer(48, 48, (3, 3), pads=(1, 1)), Layer(48, 48, (5, 5), (2, 2), (2, 2)),
    Layer(48, 48, (3, 3), dilations=(2, 2)), Layer(48, 4, (3, 3), pads=(1, 1)), Layer(12, 4, (1, 1)), Layer(28, 4, (1, 1)),
    Layer(96, 2, (1, 3), pads=(0, 1)),
]  # fmt: skip


def test_every_kind_of_convolution(compiled: Compile, cpu: str) -> None:
    model, inputs = network(KINDS, 48, *((np.uint8, 117) if cpu.endswith(("512", "128")) else (np.int8, -5)))
    assert wrong(compiled, model, inputs) == []


@st.composite
def layers(draw: st.DrawFn) -> tuple[list[Layer], int]:
    channels = draw(st.sampled_from([1, 2, 3, 6, 8, 16, 20, 24, 32]))
    groups = st.sampled_from([g for g in (1, 2, channels) if channels % g == 0])
    found = []
    for _ in range(4):
        g = draw(groups)
        found.append(Layer(
            g * draw(st.sampled_from([1, 2, 4, 5, 8, 16])), g, draw(st.tuples(st.integers(1, 4), st.integers(1, 4))),
            draw(st.tuples(st.integers(1, 2), st.integers(1, 2))), draw(st.tuples(st.integers(0, 2), st.integers(0, 2))),
            draw(st.tuples(st.integers(1, 2), st.integers(1, 2))), draw(st.booleans()), draw(st.sampled_from([1e-2, 2e-4, 1e-6, 2.0**-8])),
        ))  # fmt: skip
    return found, channels


@settings(max_examples=2, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(drawn=layers(), signed=st.booleans(), zero=st.sampled_from([0, 1, 100, 127]), seed=st.integers(0, 99))
def test_random_convolutions(compiled: Compile, cpu: str, drawn: tuple[list[Layer], int], signed: bool, zero: int, seed: int) -> None:
    found, channels = drawn
    model, inputs = network(found, channels, np.int8 if signed else np.uint8, zero - 128 if signed and seed % 2 else zero, seed)
    assert wrong(compiled, model, inputs) == []


def products(
    kind: type[np.int8] | type[np.uint8], zero: int, cases: list[tuple[int | tuple[int, ...], int, int]], extreme: bool
) -> tuple[Model, dict[str, Array]]:
    """Matrix products of (rows, or several axes of them, depth, columns) beside one another."""
    random = np.random.default_rng(len(cases))
    name, ends = str(np.dtype(kind)), np.iinfo(kind)
    init: dict[str, Array] = {"s": scale(1.0), "z": kind(zero), "zw": np.int8(0)}
    text, given_, made, inputs = "", [], [], {}
    for i, (rows, depth, columns) in enumerate(cases):
        shape = (depth, columns)
        init[f"w{i}"] = (random.choice([-128, 127], shape) if extreme else random.integers(-128, 128, shape)).astype(np.int8)
        init[f"s{i}"] = (random.uniform(0.5, 2, columns) / (60 * depth)).astype(np.float32)
        init[f"zw{i}"] = np.zeros(columns, np.int8)
        text += f"a{i} = DequantizeLinear(x{i}, s, z) v{i} = DequantizeLinear<axis = 1>(w{i}, s{i}, zw{i}) "
        text += f"m{i} = MatMul(a{i}, v{i}) y{i} = QuantizeLinear(m{i}, s, z) "
        lead = rows if isinstance(rows, tuple) else (rows,)
        before, full = "".join(f"{n}," for n in lead), (*lead, depth)
        given_.append(f"{name}[{before}{depth}] x{i}")
        made.append(f"{name}[{before}{columns}] y{i}")
        inputs[f"x{i}"] = (
            random.choice([ends.min, ends.max], full) if extreme else random.integers(ends.min, ends.max + 1, full)
        ).astype(kind)
    return graph(f"({', '.join(given_)}) => ({', '.join(made)}) {{ {text} }}", **init), inputs


@pytest.mark.parametrize("extreme", [False, True])
def test_matrix_products(compiled: Compile, cpu: str, extreme: bool) -> None:
    cases: list[tuple[int | tuple[int, ...], int, int]] = [
        (1, 64, 96), (1, 30, 17), (1, 257, 1000), (2, 12, 16), (7, 64, 64), (13, 45, 40), (16, 128, 32), (5, 3, 33),
        # Blocks of rows that would end amid an axis.
        ((7, 5), 6, 32), ((3, 2, 17), 16, 24), ((4, 1, 9), 12, 16), ((6, 2), 8, 64),
    ]  # fmt: skip
    for kind, zero in ((np.uint8, 3), (np.int8, 100)):
        model, inputs = products(kind, zero, cases, extreme)
        assert wrong(compiled, model, inputs) == []


def test_dot_products_are_taken(compiled: Compile, monkeypatch: pytest.MonkeyPatch) -> None:
    """All layers of the tests above but the strided rows of one filter run on dot products."""
    used: list[str] = []
    original = int8_dot.Dot.sum
    monkeypatch.setattr(int8_dot.Dot, "sum", lambda self, *rest: used.append(self.name) or original(self, *rest))
    model, _ = network(KINDS, 48, np.uint8, 0)
    compiled(model)
    assert len(used) == len(KINDS) + 1


def test_tables_in_registers(compiled: Compile, cpu: str) -> None:
    """Every entry of a table of 256, signed and unsigned, behind a convolution and alone."""
    for kind, zero in ((np.uint8, 128), (np.int8, 0)):
        name = str(np.dtype(kind))
        model = graph(
            f"({name}[1,16,4,4] x) => ({name}[1,16,4,4] y) {{ a = DequantizeLinear(x, s, z) t = Sigmoid(a) q = QuantizeLinear(t, s2, z2) "
            "b = DequantizeLinear(q, s2, z2) v = DequantizeLinear(w, s2, zw) c = Conv(b, v) "
            "p = QuantizeLinear(c, s, z) d = DequantizeLinear(p, s, z) "
            "u = Tanh(d) y = QuantizeLinear(u, s2, z2) }",
            s=scale(0.04), z=kind(zero), s2=scale(1 / 128), z2=kind(zero), zw=np.int8(0),
            w=np.random.default_rng(0).integers(-128, 128, (16, 16, 1, 1)).astype(np.int8),
        )  # fmt: skip
        ends = np.iinfo(kind)
        inputs = {"x": np.arange(ends.min, ends.max + 1).astype(kind).reshape(1, 16, 4, 4)}
        assert wrong(compiled, model, inputs) == []


def test_concats_of_other_grids_are_requantized_where_they_are_made(compiled: Compile) -> None:
    model = graph(
        "(uint8[1,16,6,6] x) => (uint8[1,48,6,6] y) { a = DequantizeLinear(x, s, z) v = DequantizeLinear(w, s2, zw) c = Conv(a, v) "
        "p = QuantizeLinear(c, s, z) d = DequantizeLinear(p, s, z) e = Conv(a, v) "
        "q = QuantizeLinear(e, s3, z3) f = DequantizeLinear(q, s3, z3) "
        "g = Concat<axis = 1>(d, f, a) y = QuantizeLinear(g, s2, z3) }",
        s=scale(0.04), z=np.uint8(0), s2=scale(1 / 16), s3=scale(0.3), z3=np.uint8(77), zw=np.int8(0),
        w=np.random.default_rng(0).integers(-128, 128, (16, 16, 1, 1)).astype(np.int8),
    )  # fmt: skip
    inputs = {"x": np.random.default_rng(1).integers(0, 256, (1, 16, 6, 6)).astype(np.uint8)}
    assert wrong(compiled, model, inputs) == []


PLANTED: dict[str, Callable[[pytest.MonkeyPatch], None]] = {
    "forgotten correction of the sums": lambda patch: patch.setattr(int8, "stored_zero", lambda dot, dtype, zero: 0),
    "forgotten flip of signed bytes": lambda patch: patch.setattr(int8, "FLIPS", 0),
    "clamped where it shows": lambda patch: patch.setattr(rounding, "clamp_for_float32", lambda op, multiplier, reach: 1 << 9),
}


@pytest.mark.parametrize("bug", PLANTED)
def test_planted_bugs_are_caught(compiled: Compile, monkeypatch: pytest.MonkeyPatch, bug: str) -> None:
    if not {"avx512vnni", "fma"} <= set(host().isa):
        pytest.skip("the bugs are in what vpdpbusd and a fused multiply-add need")
    layers_ = [
        Layer(32, 1, (3, 3), extreme=True, multiplier=2.0**-17),
        Layer(32, 1, (1, 1)),
        Layer(32, 1, (3, 3), extreme=True, multiplier=3e-5),
    ]
    model, inputs = network(layers_, 64, np.int8, 9)
    PLANTED[bug](monkeypatch)
    assert wrong(compiled, model, inputs) != []


def long_sums() -> tuple[Model, dict[str, Array]]:
    """Sums past 2^24 that do not saturate: x·128·128 summed 2,000 times, scaled by 2^-18."""
    random = np.random.default_rng(0)
    model = graph(
        "(uint8[64,2000] x) => (uint8[64,16] y) { a = DequantizeLinear(x, s, z) v = DequantizeLinear(w, sw, zw) m = MatMul(a, v) "
        "y = QuantizeLinear(m, s, z) }",
        w=random.integers(100, 128, (2000, 16)).astype(np.int8), s=scale(1.0), z=np.uint8(0), sw=scale(2.0**-18 * 1.01), zw=np.int8(0),
    )  # fmt: skip
    rows = np.linspace(0, 255, 64)[:, None]
    return model, {"x": np.clip(rows + random.integers(-20, 21, (64, 2000)), 0, 255).astype(np.uint8)}


def test_sums_past_float32(compiled: Compile) -> None:
    model, inputs = long_sums()
    assert wrong(compiled, model, inputs) == []


@settings(deadline=None)
@given(
    st.lists(st.floats(2.0**-40, 2.0**-3, width=32), min_size=1, max_size=4), st.integers(1, 2**31 - 1),
    st.tuples(st.integers(-128, 0), st.integers(1, 255), st.integers(-128, 255)),
)  # fmt: skip
def test_a_clamp_changes_nothing(values: list[float], reach: int, bounds: tuple[int, int, int]) -> None:
    """Whatever limit is chosen: every acc gives what it gives unclamped, and every product that is left is below 2^22."""
    model, _ = long_sums()
    (op,) = plan(model).integer_ops
    lo, hi, zero = bounds
    op = replace(op, lo=lo, hi=hi, grid=replace(op.grid, zero_point=np.asarray(zero)))
    multiplier = Multiplier.of(np.asarray(values, np.float32))
    limit = rounding.clamp_for_float32(op, multiplier, reach)
    if limit is None:
        return
    acc = np.unique(
        np.clip(np.concatenate([np.linspace(-reach, reach, 2001), [limit, -limit, limit + 1, 2**24]]), -reach, reach).astype(np.int64)
    )
    kept = np.clip(acc, -limit, limit) if limit else acc
    assert np.max(np.abs(kept)) <= 2**24
    assert np.max(np.abs(kept)) * np.max(multiplier.value) < 2**22
    for m, k in zip(multiplier.m, multiplier.k, strict=True):
        one = Multiplier(m, k)
        assert np.array_equal(np.clip(requantize(acc, one, zero), lo, hi), np.clip(requantize(kept, one, zero), lo, hi))
