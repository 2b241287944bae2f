"""The reference against the numeric contract written a second time, slowly, in exact fractions."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from graphs import graph, scale
from hypothesis import given, settings
from hypothesis import strategies as st

from gatewright.errors import ModelError
from gatewright.frontend.integer import FloatStep, Multiplier, plan
from gatewright.frontend.reference import Reference
from gatewright.frontend.rounding import round_shift

RNG = np.random.default_rng(7)


def half_even(value: Fraction) -> int:
    """Python's own round is half to even on exact fractions."""
    return round(value)


def multiplier(*factors: float, over: float) -> Fraction:
    """float32(float64 product / s_y) as an exact fraction."""
    product = np.float64(1)
    for factor in factors:
        product = product * np.float64(np.float32(factor))
    return Fraction(float(np.float32(product / np.float64(np.float32(over)))))


def clamp(value: int, lo: int, hi: int) -> int:
    return min(max(value, lo), hi)


def only_op(model: Any, kind: str) -> None:
    """The graph must have been recognised, else the test would compare float arithmetic."""
    assert [op.kind for op in plan(model).integer_ops] == [kind]


@given(st.integers(-(2**61), 2**61), st.integers(0, 80))
def test_round_shift_is_half_to_even(value: int, shift: int) -> None:
    assert int(round_shift(np.int64(value), shift)) == half_even(Fraction(value, 2**shift))


@given(st.floats(2.0**-60, 2.0**20, width=32))
def test_multiplier_is_the_float32(value: float) -> None:
    m = Multiplier.of(np.float32(value))
    assert 2**23 <= int(m.m) < 2**24
    assert Fraction(int(m.m)) / Fraction(2) ** int(m.k) == Fraction(value)


CONV = """(int8[1,2,5,4] x) => (uint8[1,3,{oh},{ow}] y) {{
  xf = DequantizeLinear(x, sx, zx)
  wf = DequantizeLinear<axis = 0>(w, sw, zw)
  bf = DequantizeLinear<axis = 0>(b, sb, zb)
  c = Conv<pads = [1, 0, 1, 1], strides = [2, 1], dilations = [1, 2], kernel_shape = [3, 2]>(xf, wf, bf)
  r = Relu(c)
  y = QuantizeLinear(r, sy, zy)
}}"""


@pytest.mark.parametrize("zero_x", [0, -7])
@pytest.mark.parametrize("zero_y", [0, 9])
def test_conv_against_fractions(zero_x: int, zero_y: int) -> None:
    x = RNG.integers(-128, 128, (6, 2, 5, 4)).astype(np.int8)
    w = RNG.integers(-127, 128, (3, 2, 3, 2)).astype(np.int8)
    sx, sw, sy = 0.0371, np.array([0.011, 0.02, 0.0007], np.float32), 0.21
    sb = (np.float64(np.float32(sx)) * sw.astype(np.float64)).astype(np.float32)
    b = RNG.integers(-4000, 4000, 3).astype(np.int32)
    model = graph(
        CONV.format(oh=3, ow=3), w=w, b=b, sx=scale(sx), zx=np.int8(zero_x), sw=sw, zw=np.zeros(3, np.int8), sb=sb,
        zb=np.zeros(3, np.int32), sy=scale(sy), zy=np.uint8(zero_y),
    )  # fmt: skip
    only_op(model, "conv")
    got = Reference(model).run({"x": x})["y"]
    for n, m, i, j in np.ndindex(6, 3, 3, 3):
        acc = int(b[m])
        for c, p, q in np.ndindex(2, 3, 2):
            row, column = 2 * i + p - 1, j + 2 * q
            if 0 <= row < 5 and 0 <= column < 4:
                acc += (int(x[n, c, row, column]) - zero_x) * int(w[m, c, p, q])
        # Relu in the real domain, before rounding: the reference clamps after it.
        wanted = clamp(half_even(max(acc, 0) * multiplier(sx, sw[m], over=sy)) + zero_y, 0, 255)
        assert int(got[n, m, i, j]) == wanted


def test_ties_go_to_even_on_a_power_of_two_grid() -> None:
    """Three bits are shifted out, so every eighth accumulator lies exactly between two steps."""
    text = """(int8[1,4] x) => (int16[1,3] y) {
      xf = DequantizeLinear(x, sx, zx)  wf = DequantizeLinear(w, sw, zx)  m = MatMul(xf, wf)  y = QuantizeLinear(m, sy, zy) }"""
    w = RNG.integers(-127, 128, (4, 3)).astype(np.int8)
    model = graph(text, w=w, sx=scale(0.5), zx=np.int8(0), sw=scale(0.25), sy=scale(1.0), zy=np.int16(0))
    only_op(model, "matmul")
    x = RNG.integers(-128, 128, (200, 4)).astype(np.int8)
    wanted = [half_even(Fraction(int(acc), 8)) for acc in (x.astype(int) @ w.astype(int)).ravel()]
    assert Reference(model).run({"x": x})["y"].ravel().tolist() == wanted


def test_saturations_count_the_grid_not_the_relu() -> None:
    text = """(int8[1,4] x) => (int8[1,4] y) { xf = DequantizeLinear(x, s, z)  r = Relu(xf)  y = QuantizeLinear(r, t, z) }"""
    model = graph(text, s=scale(1.0), t=scale(0.5), z=np.int8(0))
    reference = Reference(model)
    got = reference.run({"x": np.array([[-100, 63, 64, 100]], np.int8)})["y"]
    assert got.tolist() == [[0, 126, 127, 127]]
    assert reference.saturations == {"y": 2}


@given(st.integers(0, 2**32 - 1))
@settings(max_examples=40, deadline=None)
def test_sum_has_one_rounding(seed: int) -> None:
    rng = np.random.default_rng(seed)
    sa, sb, sy = (float(np.float32(v)) for v in rng.uniform(0.01, 0.2, 3))
    za, zb, zy = (int(v) for v in rng.integers(-20, 20, 3))
    text = """(int8[1,8] a, int8[1,8] b) => (int8[1,8] y) {
      af = DequantizeLinear(a, sa, za)  bf = DequantizeLinear(b, sb, zb)  s = Sub(af, bf)  y = QuantizeLinear(s, sy, zy) }"""
    model = graph(text, sa=scale(sa), za=np.int8(za), sb=scale(sb), zb=np.int8(zb), sy=scale(sy), zy=np.int8(zy))
    only_op(model, "sum")
    a, b = rng.integers(-128, 128, (2, 5, 8)).astype(np.int8)
    got = Reference(model).run({"a": a, "b": b})["y"]
    ma, mb = multiplier(sa, over=sy), multiplier(sb, over=sy)
    for index in np.ndindex(5, 8):
        exact = (int(a[index]) - za) * ma - (int(b[index]) - zb) * mb
        assert int(got[index]) == clamp(half_even(exact) + zy, -128, 127)


def test_average_requantizes_the_sum_with_n_inside_m() -> None:
    text = """(int8[1,3,7,5] x) => (int8[1,3,4,3] y) {
      xf = DequantizeLinear(x, sx, zx)
      p = AveragePool<kernel_shape = [3, 3], strides = [2, 2], pads = [1, 1, 1, 1]>(xf)  y = QuantizeLinear(p, sy, zy) }"""
    model = graph(text, sx=scale(0.03), zx=np.int8(5), sy=scale(0.017), zy=np.int8(-3))
    only_op(model, "average")
    x = RNG.integers(-128, 128, (4, 3, 7, 5)).astype(np.int8)
    got = Reference(model).run({"x": x})["y"]
    for n, c, i, j in np.ndindex(4, 3, 4, 3):
        window = x[n, c, max(2 * i - 1, 0) : 2 * i + 2, max(2 * j - 1, 0) : 2 * j + 2].astype(int) - 5
        m = Fraction(float(np.float32(np.float64(np.float32(0.03)) / (window.size * np.float64(np.float32(0.017))))))
        assert int(got[n, c, i, j]) == clamp(half_even(int(window.sum()) * m) - 3, -128, 127)


def test_table_is_the_function_at_every_input() -> None:
    text = """(int8[1,256] x) => (uint8[1,256] y) {
      xf = DequantizeLinear(x, sx, zx)  t = Sigmoid(xf)  m = Mul(xf, t)  y = QuantizeLinear(m, sy, zy) }"""
    model = graph(text, sx=scale(0.05), zx=np.int8(3), sy=scale(0.02), zy=np.uint8(40))
    only_op(model, "table")
    q = np.arange(-128, 128, dtype=np.int8)[None]
    real = (q.astype(np.float64) - 3) * np.float64(np.float32(0.05))
    wanted = np.clip(np.rint(real / (1 + np.exp(-real)) / np.float64(np.float32(0.02))) + 40, 0, 255)
    assert np.array_equal(Reference(model).run({"x": q})["y"], wanted)


def test_softmax_is_within_its_bound() -> None:
    text = """(int8[1,10] x) => (int8[1,10] y) {
      xf = DequantizeLinear(x, sx, zx)  t = Softmax<axis = -1>(xf)  y = QuantizeLinear(t, sy, zy) }"""
    model = graph(text, sx=scale(0.1), zx=np.int8(0), sy=scale(1 / 256), zy=np.int8(-128))
    only_op(model, "softmax")
    q = RNG.integers(-128, 128, (500, 10)).astype(np.int8)
    real = q.astype(np.longdouble) * np.float32(0.1)
    e = np.exp(real - real.max(axis=1, keepdims=True))
    exact = e / e.sum(axis=1, keepdims=True) * 256
    got = Reference(model).run({"x": q})["y"].astype(np.float64) + 128
    # Half a step of rounding, and the bound that the docstring states: (n + 1)·2^-31 of full scale.
    inside = exact < 255
    assert np.all(np.abs(got - exact)[inside] <= 0.5 + 256 * 11 * 2.0**-31)


def test_float_softmax_of_a_dequantized_tensor_is_computed_from_the_integers() -> None:
    """So that a classifier's last layer has the same bits everywhere; still a softmax, to float32's own rounding."""
    text = """(int8[1,10] x) => (float[1,10] y) { xf = DequantizeLinear(x, sx, zx)  y = Softmax<axis = -1>(xf) }"""
    model = graph(text, sx=scale(0.1), zx=np.int8(4))
    (found,) = [step.exponentials for step in plan(model).steps if isinstance(step, FloatStep) and step.exponentials is not None]
    assert found.operand.name == "x"
    q = RNG.integers(-128, 128, (500, 10)).astype(np.int8)
    real = (q.astype(np.longdouble) - 4) * np.float32(0.1)
    e = np.exp(real - real.max(axis=1, keepdims=True))
    exact = e / e.sum(axis=1, keepdims=True)
    got = Reference(model).run({"x": q})["y"]
    assert got.dtype == np.float32
    assert np.all(np.abs(got - exact) <= 2.0**-24 * exact + 11 * 2.0**-31)


def test_matmul_of_activations_and_product() -> None:
    text = """(int8[1,3,4] a, uint8[1,4,2] b) => (int16[1,3,2] y) {
      af = DequantizeLinear(a, sa, za)  bf = DequantizeLinear(b, sb, zb)  p = MatMul(af, bf)  y = QuantizeLinear(p, sy, zy) }"""
    model = graph(text, sa=scale(0.1), za=np.int8(-3), sb=scale(0.07), zb=np.uint8(11), sy=scale(0.02), zy=np.int16(100))
    only_op(model, "matmul")
    a = RNG.integers(-128, 128, (5, 3, 4)).astype(np.int8)
    b = RNG.integers(0, 256, (5, 4, 2)).astype(np.uint8)
    got = Reference(model).run({"a": a, "b": b})["y"]
    acc = (a.astype(int) + 3) @ (b.astype(int) - 11)
    m = multiplier(0.1, 0.07, over=0.02)
    wanted = [clamp(half_even(int(v) * m) + 100, -(2**15), 2**15 - 1) for v in acc.flat]
    assert got.ravel().tolist() == wanted


def test_a_bias_on_another_scale_is_rounded_and_reported() -> None:
    text = """(int8[1,4] x) => (int8[1,2] y) {
      xf = DequantizeLinear(x, sx, z)  wf = DequantizeLinear(w, sw, z)  bf = DequantizeLinear(b, sb, zb)
      m = MatMul(xf, wf)  a = Add(m, bf)  y = QuantizeLinear(a, sy, z) }"""
    w = RNG.integers(-127, 128, (4, 2)).astype(np.int8)
    weights = {"w": w, "b": np.array([1001, -999], np.int32), "zb": np.int32(0), "z": np.int8(0)}
    scales = {"sx": scale(0.5), "sw": scale(0.25), "sy": scale(1.0)}
    model = graph(text, **weights, **scales, sb=scale(0.1))
    (op,) = plan(model).integer_ops
    assert op.bias is not None
    assert op.bias.tolist() == [half_even(Fraction(float(np.float32(0.1))) * v * 8) for v in (1001, -999)]
    assert "rounded again" in op.notes[0]
    (near,) = plan(graph(text, **weights, **scales, sb=scale(0.125 * (1 + 5e-7)))).integer_ops
    assert near.bias is not None
    assert near.bias.tolist() == [1001, -999]
    assert near.notes == ()


def test_odd_width_is_a_clip_between_q_and_dq() -> None:
    text = """(float[1,6] x) => (float[1,6] y) {
      q = QuantizeLinear(x, s, z)  c = Clip(q, lo, hi)  xf = DequantizeLinear(c, s, z)  n = Neg(xf)
      m = QuantizeLinear(n, s, z)  k = Clip(m, lo, hi)  y = DequantizeLinear(k, s, z) }"""
    model = graph(text, s=scale(0.5), z=np.int8(0), lo=np.int8(-16), hi=np.int8(15))
    (op,) = plan(model).integer_ops
    assert (op.grid.bits, op.lo, op.hi, op.output) == (5, -16, 15, "k")
    got = Reference(model).run({"x": np.array([[-9, -8, -0.25, 0.75, 7.5, 8]], np.float32)})["y"]
    assert got.tolist() == [[7.5, 7.5, 0.0, -1.0, -7.5, -7.5]]


def test_bounds_are_reached_and_never_passed() -> None:
    """Interval analysis: the extreme inputs give the proven bounds of the whole sum exactly."""
    text = """(int8[1,4] x) => (int16[1,2] y) {
      xf = DequantizeLinear(x, sx, z)  wf = DequantizeLinear(w, sw, z)  m = MatMul(xf, wf)  y = QuantizeLinear(m, sx, zy) }"""
    w = np.array([[3, -2], [5, 7], [-1, 0], [2, -9]], np.int8)
    model = graph(text, w=w, sx=scale(1.0), sw=scale(1.0), z=np.int8(0), zy=np.int16(0))
    (op,) = plan(model).integer_ops
    extremes = np.array([np.where(column > 0, end, other) for column in w.T for end, other in ((127, -128), (-128, 127))], np.int8)
    got = Reference(model).run({"x": extremes})["y"]
    assert op.output_range == (int(got.min()), int(got.max()))
    assert op.accumulator[0] <= got.min()
    assert op.accumulator[1] >= got.max()


def test_scales_too_far_apart_are_refused_by_name() -> None:
    text = """(int8[1,4] a, int8[1,4] b) => (int8[1,4] y) {
      af = DequantizeLinear(a, sa, z)  bf = DequantizeLinear(b, sb, z)  far = Add(af, bf)  y = QuantizeLinear(far, sa, z) }"""
    model = graph(text, sa=scale(1.0), sb=scale(2.0**-60), z=np.int8(0))
    with pytest.raises(ModelError, match="scales of its operands are too far apart"):
        plan(model)


def test_a_float_value_that_somebody_else_reads_stays_float() -> None:
    text = """(int8[1,4] x) => (int8[1,4] y, float[1,4] r) { xf = DequantizeLinear(x, s, z)  r = Relu(xf)  y = QuantizeLinear(r, s, z) }"""
    model = graph(text, s=scale(0.5), z=np.int8(0))
    assert not plan(model).is_quantized
    got = Reference(model).run({"x": np.array([[-1, 0, 1, 2]], np.int8)})
    assert got["r"].tolist() == [[0, 0, 0.5, 1.0]]
    assert got["y"].tolist() == [[0, 0, 1, 2]]


def test_trace_gives_integers_and_what_they_stand_for() -> None:
    text = """(int8[1,4] x) => (int8[1,4] y) { xf = DequantizeLinear(x, s, z)  r = Relu(xf)  y = QuantizeLinear(r, t, z) }"""
    model = graph(text, s=scale(1.0), t=scale(0.5), z=np.int8(0))
    trace = Reference(model).run({"x": np.array([[-3, 1, 2, 100]], np.int8)}, trace=True)
    assert trace["y"].tolist() == [[0, 2, 4, 127]]
    assert trace["r"].tolist() == [[0.0, 1.0, 2.0, 63.5]]
