"""Integer arithmetic of the program against the reference's: rounding, digits, divisions. JAX runs in this process, on the CPU."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from graphs import Array, graph, scale

from gatewright.frontend import rounding as reference
from gatewright.frontend.integer import Multiplier, plan
from gatewright.frontend.model import Model
from gatewright.frontend.reference import Reference

jax = pytest.importorskip("jax", reason="the TPU's programs need jax")


@pytest.fixture(autouse=True)
def wide() -> Iterator[None]:
    """int64 for this test alone: other tests of this process keep JAX's default."""
    with jax.enable_x64(True):
        yield


def run(model: Model, feeds: dict[str, Array], **policy: Any) -> dict[str, Array]:
    from gatewright.targets.xla.program import Policy, Program

    program = Program(model, Policy(**policy))
    found = jax.jit(program.__call__)(program.weights, *[feeds[info.name] for info in model.inputs])
    return dict(zip(program.names, map(np.asarray, found), strict=True))


def test_requantization_is_the_references() -> None:
    """Random and tied accumulators, every shift: also to the left, also past the word."""
    from gatewright.targets.xla.ops.rounding import requantize

    rng = np.random.default_rng(0)
    for value in (1.0, 0.5, 3.0, 2.0**-31, 0.1, 1e-9, 12345.678, 2.0**-45, 0.75 * 2.0**-7, 0.0):
        m = Multiplier.of(np.float32(value))
        bound = min(2**31 - 1, (2**61) // max(int(m.m), 1))
        acc = np.concatenate([rng.integers(-bound, bound, 500), np.arange(-40, 41), [-bound, bound]]).astype(np.int64)
        got = np.asarray(requantize(jax.numpy.asarray(acc.astype(np.int32)), (-bound, bound), m))
        assert np.array_equal(got, reference.requantize(acc.astype(np.int32).astype(np.int64), m, 0)), value


def test_ties_go_to_even() -> None:
    from gatewright.targets.xla.ops.rounding import requantize

    half = Multiplier.of(np.float32(0.5))
    got = requantize(jax.numpy.asarray([-5, -3, -1, 1, 3, 5], np.int32), (-5, 5), half)
    assert np.asarray(got).tolist() == [-2, -2, 0, 0, 2, 2]


def test_quotients_are_those_of_ieee_doubles() -> None:
    from gatewright.targets.xla.ops import division

    rng = np.random.default_rng(1)
    e = np.concatenate([rng.integers(0, 2**30, 3000), rng.integers(0, 50, 200), [0, 1, 2**30]]).astype(np.int64)
    total = np.maximum(e + rng.integers(1, 2**34, e.size), 1)
    total[:50] = np.maximum(e[:50], 1)
    mantissa, exponent = map(np.asarray, division.ratio(jax.numpy.asarray(e), jax.numpy.asarray(total)))
    wanted = e.astype(np.float64) / total
    assert np.array_equal(np.where(e == 0, 0.0, np.ldexp(mantissa.astype(np.float64), -exponent)), wanted)
    single = np.asarray(division.as_float32(jax.numpy.asarray(mantissa), jax.numpy.asarray(exponent)))
    assert np.array_equal(single, wanted.astype(np.float32))
    for s in (np.float32(1 / 256), np.float32(0.00391), np.float32(1 / 65535), np.float32(0.3)):
        found = division.rounded(*division.divided(jax.numpy.asarray(mantissa), jax.numpy.asarray(exponent), s))
        assert np.array_equal(np.asarray(found), np.rint(wanted / np.float64(s)).astype(np.int64)), s


PADDED = """(TYPE[2,3,5,5] q) => (int8[2,4,5,5] y) {
    x = DequantizeLinear(q, sx, zx)
    w = DequantizeLinear(wq, sw, zw)
    c = Conv<kernel_shape = [3, 3], pads = [1, 1, 1, 1]>(x, w)
    y = QuantizeLinear(c, sy, zy)
}"""


def padded(kind: type, z: int, *, weight_zero: int = 0, weights: type = np.int8, spread: float = 0.3) -> tuple[Model, dict[str, Array]]:
    rng = np.random.default_rng(2)
    ends, own = np.iinfo(kind), np.iinfo(weights)
    model = graph(
        PADDED.replace("TYPE", np.dtype(kind).name), sx=scale(0.02), zx=np.asarray(z, kind), sw=scale(0.01),
        zw=np.asarray(weight_zero, weights), sy=scale(spread), zy=np.int8(-7),
        wq=rng.integers(own.min, own.max + 1, (4, 3, 3, 3)).astype(weights),
    )  # fmt: skip
    q = rng.integers(ends.min, ends.max + 1, (2, 3, 5, 5)).astype(kind)
    q.reshape(-1)[:2] = ends.min, ends.max
    return model, {"q": q}


@pytest.mark.parametrize(("kind", "z", "more"), [
    (np.int8, 0, {}), (np.int8, 5, {}), (np.int8, -128, {}), (np.uint8, 0, {}), (np.uint8, 128, {}), (np.uint8, 255, {}),
    (np.int16, 0, {"spread": 60.0}), (np.int16, 300, {"spread": 60.0}), (np.uint16, 40000, {"spread": 60.0}),
    (np.uint8, 3, {"weights": np.uint8, "weight_zero": 100}), (np.int8, 1, {"weights": np.int16, "spread": 60.0}),
])  # fmt: skip
def test_padded_convolutions_of_every_type(kind: type, z: int, more: dict[str, Any]) -> None:
    """Zero points, unsigned bytes, 16 bits in two digits, weights of nine bits: all on signed bytes, all exact."""
    model, feeds = padded(kind, z, **more)
    assert [op.kind for op in plan(model).integer_ops] == ["conv"]
    got, wanted = run(model, feeds)["y"], Reference(model).run(feeds)["y"]
    assert len(np.unique(wanted)) > 20, "the case has to be able to fail"
    assert np.array_equal(got, wanted)


def test_products_of_activations_with_zero_points() -> None:
    model = graph(
        """(uint8[2,6,40] a, int8[2,40,5] b) => (int8[2,6,5] y) {
            x = DequantizeLinear(a, s, za) v = DequantizeLinear(b, s, zb) c = MatMul(x, v) y = QuantizeLinear(c, sy, zy)
        }""", s=scale(0.02), za=np.uint8(9), zb=np.int8(-5), sy=scale(0.13), zy=np.int8(3),
    )  # fmt: skip
    rng = np.random.default_rng(3)
    feeds = {"a": rng.integers(0, 256, (2, 6, 40)).astype(np.uint8), "b": rng.integers(-128, 128, (2, 40, 5)).astype(np.int8)}
    assert np.array_equal(run(model, feeds)["y"], Reference(model).run(feeds)["y"])


def test_a_planted_bug_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """Forgetting the zero point's sum of weights has to be seen by the comparison above."""
    from gatewright.targets.xla.ops import dots

    def without(offset: int, sums: Array, bias: Array | None, wide: bool) -> Array:
        return right(0, sums, bias, wide)

    right = dots.constant_term
    monkeypatch.setattr(dots, "constant_term", without)
    model, feeds = padded(np.uint8, 0)
    assert not np.array_equal(run(model, feeds)["y"], Reference(model).run(feeds)["y"])


def test_four_bit_weights_lie_packed_and_mean_the_same() -> None:
    from gatewright.targets.xla.program import Policy, Program

    rng = np.random.default_rng(4)
    model = graph(
        """(int8[3,32] q) => (int8[3,16] y) {
            x = DequantizeLinear(q, s, z) w = DequantizeLinear(wq, s, z) c = MatMul(x, w) y = QuantizeLinear(c, sy, z)
        }""",
        s=scale(0.02), z=np.int8(0), sy=scale(0.01), wq=rng.integers(-8, 8, (32, 16)).astype(np.int8),
    )  # fmt: skip
    feeds = {"q": rng.integers(-128, 128, (3, 32)).astype(np.int8)}
    wanted = Reference(model).run(feeds)["y"]
    assert [w.dtype.name for w in Program(model, Policy(int4=True)).weights.values()] == ["int4"]
    assert [w.dtype.name for w in Program(model, Policy(int4=False)).weights.values()] == ["int8"]
    for packed in (True, False):
        assert np.array_equal(run(model, feeds, int4=packed)["y"], wanted)


def test_bfloat16_rounds_operands_and_no_more() -> None:
    rng = np.random.default_rng(5)
    w = rng.normal(size=(64, 32)).astype(np.float32)
    model = graph("(float[4,64] x) => (float[4,32] y) { y = MatMul(x, w) }", w=w)
    feeds = {"x": rng.normal(size=(4, 64)).astype(np.float32)}
    exact = feeds["x"].astype(np.float64) @ w
    errors = {p: float(np.max(np.abs(run(model, feeds, precision=p)["y"] - exact)) / np.max(np.abs(exact))) for p in ("highest", "bf16")}
    assert errors["highest"] < 1e-6
    assert 1e-4 < errors["bf16"] < 1e-2


@pytest.mark.parametrize("value", [0.1, 0.0173, 3.7e-5, 1 / 256, 123.4])
def test_a_quantizer_divides_as_the_reference_does(value: float) -> None:
    """Samples at ties and beside them, where x·(1/s) is not x/s; infinities, the smallest numbers, not-a-number."""
    s = np.float32(value)
    ties = (np.arange(-140, 140, dtype=np.float32) + np.float32(0.5)) * s
    up, down = (np.nextafter(ties, np.float32(end)) for end in (np.inf, -np.inf))
    rng = np.random.default_rng(6)
    odd = np.asarray([np.inf, -np.inf, np.nan, 0.0, -0.0, 1e-45, -1e-40, 3e38], np.float32)
    x = np.concatenate([ties, up, down, rng.normal(0, 90 * value, 2000).astype(np.float32), odd])
    model = graph(f"(float[{x.size}] x) => (int8[{x.size}] y) {{ y = QuantizeLinear(x, s, z) }}", s=scale(value), z=np.int8(5))
    feeds = {"x": x}
    assert np.array_equal(run(model, feeds)["y"], Reference(model).run(feeds)["y"])
