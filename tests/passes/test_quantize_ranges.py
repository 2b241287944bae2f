"""Ranges by squared error and entropy, widths of single layers, weights that come as integers, bias correction."""

from __future__ import annotations

import numpy as np
import pytest
from graphs import graph
from strategies import build, dataset, feeds

from gatewright.errors import UsageError
from gatewright.frontend.data import Dataset
from gatewright.frontend.integer import Grid, plan
from gatewright.frontend.model import Model
from gatewright.frontend.reference import Reference
from gatewright.passes import bias, calibrate, clipping
from gatewright.passes.base import PassContext
from gatewright.passes.calibrate import Histogram, Observed
from gatewright.passes.clipping import best_grid, divergence, squared_error
from gatewright.passes.grids import activation_grid
from gatewright.passes.pipeline import Pipeline
from gatewright.passes.rewrite import Array


def observed(values: Array) -> Observed:
    seen = Observed(histogram=Histogram())
    seen.add("x", values)
    return seen


def real_error(grid: Grid, values: Array) -> float:
    """Of the values themselves, not of a histogram."""
    q = np.clip(np.rint(values / float(grid.scale)) + int(grid.zero_point), grid.lo, grid.hi)
    return float(np.mean(((q - int(grid.zero_point)) * float(grid.scale) - values) ** 2))


def samples(seed: int, signed: bool) -> Array:
    values = np.random.default_rng(seed).standard_t(4, 60_000).astype(np.float32)
    return values if signed else np.abs(values)


@pytest.mark.parametrize("kind", ["affine", "symmetric", "pow2"])
@pytest.mark.parametrize("signed", [True, False])
@pytest.mark.parametrize("bits", [4, 8])
def test_mse_is_below_minmax_and_percentile(kind: str, signed: bool, bits: int) -> None:
    """With a tail, cutting costs less than it gains; of the values themselves, not only of their histogram."""
    values = samples(3, signed)
    seen = observed(values)
    least = real_error(best_grid("mse", kind, bits, seen, not signed), values)  # type: ignore[arg-type]
    for clip in ((seen.low, seen.high), seen.clipped(99.9), seen.clipped(99.0)):
        other = activation_grid(kind, bits, Observed(seen.low, seen.high), not signed, clip)  # type: ignore[arg-type]
        assert least <= real_error(other, values) * 1.001
    whole = activation_grid(kind, bits, Observed(seen.low, seen.high), not signed, (seen.low, seen.high))  # type: ignore[arg-type]
    assert least < (0.8 if bits == 4 else 1.001) * real_error(whole, values)


def test_without_a_tail_the_whole_range_is_kept() -> None:
    values = np.linspace(-1, 1, 40_001).astype(np.float32)
    for method in ("mse", "entropy"):
        grid = best_grid(method, "affine", 8, observed(values), False)  # type: ignore[arg-type]
        assert 0.97 * 2 / 255 < grid.scale < 1.03 * 2 / 255


@pytest.mark.parametrize("kind", ["affine", "symmetric", "pow2"])
def test_entropy_loses_no_more_information_than_minmax(kind: str) -> None:
    seen = observed(np.concatenate([samples(5, False), [60.0]]).astype(np.float32))
    assert seen.histogram is not None
    found = best_grid("entropy", kind, 6, seen, True)  # type: ignore[arg-type]
    whole = activation_grid(kind, 6, Observed(seen.low, seen.high), True, (seen.low, seen.high))  # type: ignore[arg-type]
    values, counts = seen.histogram.centres()
    assert divergence(found, values, counts) < divergence(whole, values, counts)
    assert found.scale < whole.scale
    assert counts[values > float(found.scale) * (found.hi + 0.5)].sum() <= clipping.MOST_CUT * counts.sum()
    # Sixteen bits are finer than the bins: everything is kept.
    assert best_grid("entropy", kind, 16, seen, True).scale * (2**16) > 50  # type: ignore[arg-type]


def test_a_loss_that_forgets_what_is_cut_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    def careless(grid: Grid, values: Array, counts: Array) -> float:
        inside = np.abs(clipping.levels(grid, values) - int(grid.zero_point)) <= grid.hi
        return squared_error(grid, values[inside], counts[inside])

    monkeypatch.setattr(clipping, "squared_error", careless)
    with pytest.raises(AssertionError):
        test_mse_is_below_minmax_and_percentile("symmetric", True, 8)


@pytest.mark.parametrize("method", ["mse", "entropy"])
def test_an_outlier_in_the_data(method: str) -> None:
    model = build(9, ["gemm"], image=False)
    x = np.random.default_rng(0).uniform(-1, 1, (2000, 10)).astype(np.float32)
    x[7, 3] = 1000.0
    data = Dataset({"x": x})
    for grid in ("affine", "symmetric"):
        wide = run(model, f"quantize{{bits=4,grid={grid}}}", data)
        narrow = run(model, f"quantize{{bits=4,grid={grid},range={method}}}", data)
        if method == "mse":
            # One value of 1000 outweighs twenty thousand below 1: its square is kept.
            assert plan(narrow).grids["x_q"].scale <= plan(wide).grids["x_q"].scale
        else:
            assert plan(narrow).grids["x_q"].scale < plan(wide).grids["x_q"].scale / 4
        assert run(model, f"quantize{{bits=4,grid={grid},range={method}}}", data.shuffled(1)).digest == narrow.digest


def run(model: Model, text: str, data: Dataset | None = None) -> Model:
    return Pipeline.parse(text).run(model, PassContext(data=data or dataset(model)))


def test_weights_are_clipped_by_their_squared_error() -> None:
    w = np.random.default_rng(0).standard_t(3, (64, 8)).astype(np.float32)
    model = graph("(float[1,64] x) => (float[1,8] y) { y = Gemm(x, w) }", w=w)
    data = Dataset({"x": np.random.default_rng(1).normal(size=(50, 64)).astype(np.float32)})
    errors = {}
    for method in ("minmax", "mse"):
        (op,) = plan(run(model, f"quantize{{weight_bits=4,per=channel,range={method}}}", data)).integer_ops
        assert op.weight is not None
        assert op.weight_grid is not None
        errors[method] = ((op.weight * op.weight_grid.scale - w) ** 2).sum(axis=0)
    assert np.all(errors["mse"] <= errors["minmax"])
    assert errors["mse"].sum() < 0.93 * errors["minmax"].sum()


def test_bits_of_single_layers() -> None:
    model = build(6, ["gemm", "relu", "gemm", "relu"], image=False)
    names = [n.name or "" for n in model.graph if n.op_type == "Gemm"]
    text = f"quantize{{weight_bits=8,weight_bits_of={names[1]}:3|gemm*:5}}"
    assert str(Pipeline.parse(text)) == f"quantize{{weight_bits=8,weight_bits_of={names[1]}:3|gemm*:5}}"
    largest = {op.name: int(np.abs(op.weight).max()) for op in plan(run(model, text)).integer_ops if op.weight is not None}
    assert [largest[n] for n in names] == [15, 3, 15]
    for bad in ("a", "a:1", "a:17", ":4", "a:x"):
        with pytest.raises(UsageError, match="NAME:BITS"):
            Pipeline.parse(f"quantize{{weight_bits_of={bad}}}")
    with pytest.raises(UsageError, match="weight_bits_of=nowhere names no node"):
        run(model, "quantize{weight_bits_of=nowhere:4}")


def test_weights_that_come_as_integers_are_kept() -> None:
    """Even where nearest rounding to a scale of its own would choose others; unless they don't fit what was asked for."""
    q = np.random.default_rng(2).integers(-3, 4, (6, 4)).astype(np.int8)
    scale = np.asarray([0.5, 0.25, 0.125, 1.0], np.float32)
    text = "(float[1,6] x) => (float[1,4] y) { w = DequantizeLinear<axis=1>(q, s, z) y = MatMul(x, w) }"
    model = graph(text, q=q, s=scale, z=np.zeros(4, np.int8))
    for options in ("", "per=channel", "weight_bits=4", "grid=pow2"):
        (op,) = plan(run(model, f"quantize{{{options}}}")).integer_ops
        assert op.weight is not None
        assert op.weight_grid is not None
        assert np.array_equal(op.weight, q)
        assert np.array_equal(op.weight_grid.scale, scale)
    (op,) = plan(run(model, "quantize{weight_bits=2}")).integer_ops
    assert op.weight is not None
    assert np.abs(op.weight).max() == 1
    odd = graph(text, q=q, s=scale * np.float32(1.1), z=np.zeros(4, np.int8))
    again = run(odd, "quantize{grid=pow2}")
    assert any("no powers of two" in note for note in again.history[-1].notes)
    assert all(op.weight_grid is None or op.weight_grid.is_pow2 for op in plan(again).integer_ops)


def shift(model: Model, q: Model, data: Dataset) -> float:
    x = dict(data.inputs)
    difference = Reference(q).run(x)["y"] - Reference(model).run(x)["y"]
    return float(np.abs(difference.mean(axis=0)).max())


@pytest.mark.parametrize("steps", ["gemm relu matmul relu matmul_add", "conv relu conv_depthwise relu6 conv_no_bias"])
def test_bias_correction_takes_the_shift_out(steps: str) -> None:
    model = build(5, steps.split(), image="conv" in steps)
    data = dataset(model, 200)
    for bits in (3, 8, 11):
        text = f"fuse,quantize{{bits={bits},weight_bits=3,grid=symmetric%s}}"
        plain, corrected = run(model, text % "", data), run(model, text % ",bias_correction=true", data)
        before, after = corrected.history[-1].details["output_shift"]
        assert after < 0.05 * before
        # Three bits of the output itself hide the shift.
        assert bits == 3 or shift(model, corrected, data) < 0.2 * shift(model, plain, data) + 1e-3
        assert [op.kind for op in plan(corrected).integer_ops] == [op.kind for op in plan(plain).integer_ops]


def test_a_correction_of_the_wrong_sign_is_seen_and_not_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    real = bias.means
    calls: list[int] = []

    def turned(model: Model, taps: dict[str, tuple[str, int]], *given: object, **options: object) -> tuple[dict[str, Array], object]:
        mean, variance = real(model, taps, *given, **options)  # type: ignore[arg-type]
        calls.append(len(taps))
        # The shift of a single layer is doubled and turned around.
        return ({k: v + 3.0 for k, v in mean.items()} if len(taps) == 1 else mean), variance

    monkeypatch.setattr(bias, "means", turned)
    model = build(5, ["gemm", "relu", "gemm"], image=False)
    data = dataset(model, 60)
    q = run(model, "quantize{bits=4,bias_correction=true}", data)
    assert 1 in calls
    assert any("left as they are" in note for note in q.history[-1].notes)
    assert q.digest == run(model, "quantize{bits=4}", data).digest


def test_simulation_equals_the_reference() -> None:
    """What ONNX Runtime computes for the shift is the quantized model, integer Clips of any width included."""
    from gatewright.frontend.ortrun import OrtSession

    for bits in (3, 5, 8, 11):
        model = build(4, ["gemm", "relu", "gemm"], image=False)
        q = run(model, f"quantize{{bits={bits},weight_bits=4,grid=pow2}}")
        simulated = bias.simulation(q)
        assert not [n for n in simulated.graph if n.op_type == "Clip" and n.outputs[0].dtype != 1]
        x = feeds(model, 1, 3)
        np.testing.assert_array_equal(OrtSession(simulated, optimize=False).run(x)["y"], Reference(q).run(x)["y"])


def masked_attention() -> tuple[Model, Dataset]:
    random = np.random.default_rng(0)
    mask = np.triu(np.full((6, 6), -10000.0, np.float32), 1)[None]
    model = graph(
        "(float[1,6,8] x) => (float[1,6,8] y)"
        " { t = Transpose<perm=[0,2,1]>(x) s = MatMul(x, t) m = Add(s, mask) p = Softmax<axis=-1>(m) y = MatMul(p, x) }",
        mask=mask,
    )  # fmt: skip
    return model, Dataset({"x": random.normal(size=(60, 6, 8)).astype(np.float32)})


@pytest.mark.parametrize("options", ["", "range=mse", "range=percentile,percentile=99", "grid=pow2", "grid=symmetric,range=entropy"])
def test_a_mask_of_minus_ten_thousand_is_no_range(options: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What no Softmax would tell from −∞ may saturate; else one step would be a hundred."""
    model, data = masked_attention()
    x = {"x": data.inputs["x"][:40]}
    wanted = Reference(model).run(x)["y"]

    def error() -> float:
        q = run(model, f"quantize{{{options}}}", data)
        return float(np.std(Reference(q).run(x)["y"] - wanted) / np.std(wanted))

    assert error() < 0.08
    monkeypatch.setattr(calibrate, "SOFTMAX_REACH", 1e9)
    assert error() > 0.2


@pytest.mark.parametrize("axes", [1, 2, 3])
def test_a_scalar_bias_behind_a_convolution_becomes_one_per_channel(axes: int) -> None:
    random = np.random.default_rng(0)
    size = ",".join(["8"] * axes)
    model = graph(
        f"(float[1,3,{size}] x) => (float[1,4,{size}] y)"
        " { k = Constant<value = float {0.5}>() a = Conv(x, w) b = Add(a, k) r = Relu(b) y = Conv(r, v) }",
        w=random.normal(size=(4, 3, *[1] * axes)).astype(np.float32), v=random.normal(size=(4, 4, *[1] * axes)).astype(np.float32),
    )  # fmt: skip
    data = dataset(model, 20)
    for text in ("quantize{bias_correction=true}", "equalize,quantize{weight_bits=3,bias_correction=true}"):
        q = run(model, text, data)
        x = dict(data.inputs)
        wanted = Reference(model).run(x)["y"]
        error = Reference(q).run(x)["y"] - wanted
        assert np.std(error) < 0.4 * np.std(wanted)
        assert np.abs(np.moveaxis(error, 1, 0).reshape(4, -1).mean(axis=1)).max() < 0.02
