"""Integer kernels against the reference, bit for bit: random graphs, every arithmetic path, planted bugs."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from compiling import Compile
from graphs import Array, graph, scale
from hypothesis import HealthCheck, given, settings
from strategies import feeds, quantized_models

from gatewright.frontend.integer import plan
from gatewright.frontend.model import Model
from gatewright.frontend.reference import Reference
from gatewright.targets.base import Executor
from gatewright.targets.tvm.machine import Machine
from gatewright.targets.tvm.ops import int8, integer, rounding


def differing(executor: Executor, model: Model, inputs: dict[str, Array]) -> list[str]:
    """Tensors that the kernels store and that are not the reference's: integers bit for bit, a float edge within its rounding."""
    wanted, got = Reference(model).run(inputs, trace=True), executor.trace(inputs)
    return [name for name in got if name in wanted and not _equal(got[name], wanted[name])]


def _equal(ours: Array, theirs: Array) -> bool:
    if theirs.dtype.kind in "iu":
        return ours.dtype == theirs.dtype and np.array_equal(ours, theirs)
    return bool(np.max(np.abs(ours - theirs), initial=0) <= 1e-6 * np.max(np.abs(theirs), initial=0))


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(model=quantized_models(max_steps=4))
def test_random_graphs(compiled: Compile, model: Model) -> None:
    assert differing(compiled(model), model, feeds(model, 4)) == []


def linear(depth: int, bits: int, multiplier: float, seed: int = 0, columns: int = 24) -> tuple[Model, dict[str, Array]]:
    """A MatMul [3, depth]·[depth, columns] of ``bits``-bit integers, requantized by about ``multiplier``."""
    random = np.random.default_rng(seed)
    kind: type[np.int8] | type[np.int16] = np.int8 if bits == 8 else np.int16
    ends = np.iinfo(kind)
    weight = random.integers(ends.min, ends.max + 1, (depth, columns)).astype(kind)
    name = str(np.dtype(kind))
    model = graph(
        f"({name}[3,{depth}] x) => ({name}[3,{columns}] y) {{ a = DequantizeLinear(x, sx, zx) b = DequantizeLinear(w, sw, zw) "
        "m = MatMul(a, b) y = QuantizeLinear(m, sy, zy) }",
        w=weight, sx=scale(1.0), zx=kind(3), sw=scale(multiplier), zw=kind(0), sy=scale(1.0), zy=kind(-2),
    )  # fmt: skip
    return model, {"x": random.integers(ends.min, ends.max + 1, (3, depth)).astype(kind)}


@pytest.mark.parametrize(
    ("depth", "bits", "multiplier", "path"),
    [
        (5, 8, 1e-3, "float32"),  # |acc| < 2^24
        (2000, 8, 1e-5, "int32"),
        (300, 16, 1e-9, "float64"),
        (5, 16, 0.99999994, "float64"),  # acc·m past 53 bits: requantized in int64
        (64, 8, 2.0**-7, "float32"),  # a shift
        (64, 8, 3e-30, "float32"),  # rounds to nothing
    ],
)
def test_every_accumulator(compiled: Compile, depth: int, bits: int, multiplier: float, path: str) -> None:
    model, inputs = linear(depth, bits, multiplier)
    (op,) = plan(model).integer_ops
    assert integer.accumulator_dtype(integer._magnitude(op)) == path
    assert differing(compiled(model), model, inputs) == []


def test_the_shift_path_is_reached_and_exact(compiled: Compile, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same models with floats switched off: every rounding is the integer one."""
    monkeypatch.setattr(Machine, "fuses", property(lambda self: False))
    monkeypatch.setattr(rounding, "EXACT_FLOAT64", 0)
    monkeypatch.setattr(integer, "EXACT_FLOAT64", 0)
    used: list[object] = []
    original = rounding.round_shift
    monkeypatch.setattr(rounding, "round_shift", lambda value, k: used.append(k) or original(value, k))
    for multiplier in (0.5, 0.25, 1e-3, 2.0**-7, 1.7, 3e-30):
        model, inputs = linear(5, 8, multiplier, seed=3)
        assert differing(compiled(model), model, inputs) == []
    assert used


def ties() -> tuple[Model, dict[str, Array]]:
    """x/2 for every int8: half of the results lie exactly between two integers; beyond the ends they saturate."""
    model = graph(
        "(int8[1,256] x) => (int8[1,256] y) { a = DequantizeLinear(x, sx, zx) b = Add(a, a) y = QuantizeLinear(b, sy, zy) }",
        sx=scale(0.25), zx=np.int8(0), sy=scale(1.0), zy=np.int8(100),
    )  # fmt: skip
    return model, {"x": np.arange(-128, 128, dtype=np.int8).reshape(1, 256)}


def test_ties_and_ends(compiled: Compile) -> None:
    model, inputs = ties()
    assert differing(compiled(model), model, inputs) == []


def _half_up(value: object) -> object:
    from tvm import tirx

    return tirx.floor(value + tirx.const(0.5, "float64"))


PLANTED: dict[str, Callable[[pytest.MonkeyPatch], None]] = {}


def planted(bug: Callable[[pytest.MonkeyPatch], None]) -> Callable[[pytest.MonkeyPatch], None]:
    PLANTED[bug.__name__] = bug
    return bug


@planted
def rounding_half_up(patch: pytest.MonkeyPatch) -> None:
    from tvm import tirx

    def rounded_before(a: object, b: object, c: object) -> object:
        kind = str(c.ty)  # type: ignore[attr-defined]
        return tirx.floor(tirx.Cast(kind, a) * b + tirx.const(0.5, kind)) + c  # type: ignore[operator]

    patch.setattr(tirx, "round", _half_up)
    patch.setattr(rounding, "fma", rounded_before)
    patch.setattr(integer, "nearest", _half_up)


@planted
def no_saturation(patch: pytest.MonkeyPatch) -> None:
    from tvm import tirx

    def wrap(rounded: object, op: object, dtype: str) -> object:
        return tirx.Cast(dtype, tirx.Cast("int64", rounded + tirx.const(int(op.grid.zero_point), str(rounded.ty))))  # type: ignore[operator,attr-defined]

    patch.setattr(integer, "saturate", wrap)
    patch.setattr(rounding, "saturate", wrap)


@planted
def forgotten_zero_point(patch: pytest.MonkeyPatch) -> None:
    original = integer.centred

    def uncentred(x: object, operand: object, dtype: str) -> object:
        from dataclasses import replace

        return original(x, replace(operand, grid=replace(operand.grid, zero_point=np.int64(0))), dtype)  # type: ignore[type-var,attr-defined,arg-type]

    patch.setattr(integer, "centred", uncentred)
    patch.setattr(int8, "stored_zero", lambda dot, dtype, zero: 0)


@pytest.mark.parametrize("bug", PLANTED)
def test_planted_bugs_are_caught(compiled: Compile, monkeypatch: pytest.MonkeyPatch, bug: str) -> None:
    """The tests above would fail: a bug in one of the three rules of requantization shows in the traced integers."""
    found = []
    for model, inputs in (ties(), linear(64, 8, 2.0**-9)):
        assert differing(compiled(model), model, inputs) == []
        with monkeypatch.context() as patch:
            PLANTED[bug](patch)
            executor = compiled(model)
        found += differing(executor, model, inputs)
    assert found


REAL = [
    "tiny_ic_resnet8_int8", "tiny_kws_dscnn_int8", "tiny_vww_int8", "tiny_ad01_int8", "tiny_sww_int8", "tflm_micro_speech_int8",
]  # fmt: skip


@pytest.mark.parametrize("name", REAL)
def test_real_models(compiled: Compile, shared_model: Callable[[str], object], name: str) -> None:
    from gatewright.frontend.load import load

    model = load(shared_model(f"{name}.onnx"))
    random = np.random.default_rng(0)
    (info,) = model.inputs
    executor = compiled(model)
    for _ in range(3):
        inputs = {info.name: random.integers(-128, 128, info.shape).astype(info.dtype)}
        assert differing(executor, model, inputs) == []
        outputs, wanted = executor.run(inputs), Reference(model).run(inputs)
        assert all(np.array_equal(outputs[name], wanted[name]) for name in wanted)
