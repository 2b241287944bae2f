"""Rounding in training is the rounding of the contract, its gradients are the published ones, and what comes out is exact integers."""

from __future__ import annotations

from itertools import takewhile

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from graphs import Array, graph, scale  # noqa: E402
from hypothesis import given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402
from strategies import QUANTIZED_IMAGE_STEPS, VECTOR_STEPS, build, dataset, feeds  # noqa: E402
from tasks import accuracy, bars, clusters, cnn, mlp, weights  # noqa: E402

from gatewright.errors import PassError, UsageError  # noqa: E402
from gatewright.frontend.integer import plan  # noqa: E402
from gatewright.frontend.model import Model  # noqa: E402
from gatewright.frontend.reference import Reference  # noqa: E402
from gatewright.passes.base import PassContext  # noqa: E402
from gatewright.passes.pipeline import Pipeline  # noqa: E402
from gatewright.passes.training import fakequant  # noqa: E402
from gatewright.passes.training.executor import Executor  # noqa: E402
from gatewright.passes.training.fakequant import Grids, WeightGrid, best_scales, octaves, quantize, round_through, sign_through  # noqa: E402
from gatewright.passes.training.prepare import separate_scales  # noqa: E402


def run(model: Model, text: str, data: object, **context: object) -> Model:
    return Pipeline.parse(text).run(model, PassContext(data=data, **context))  # type: ignore[arg-type]


def forward(model: Model, arrays: dict[str, Array]) -> Array:
    net = Executor(model)
    with torch.no_grad():
        return net.run(net.feeds(arrays))[model.outputs[0].name].numpy()  # type: ignore[no-any-return]


# ---- the rounding --------------------------------------------------------------------------------------------------


def test_gradients_are_those_of_lsq() -> None:
    """x̂ = s·clamp(rne(x/s), lo, hi): ∂x̂/∂x is 1 inside, 0 outside; ∂x̂/∂s is q − x/s inside, lo or hi outside (Esser et al. 2020, eq. 3)."""
    x = torch.tensor([-9.6, -2.2, -0.5, 0.5, 1.5, 2.6, 6.9, 50.0], dtype=torch.float64, requires_grad=True)
    s = torch.tensor(2.0, dtype=torch.float64, requires_grad=True)
    zero = torch.zeros((), dtype=torch.float64)
    y = quantize(x, s, zero, -4, 3) * s
    assert y.tolist() == [-8, -2, 0, 0, 2, 2, 6, 6]  # 0.25, 0.75, 1.3, 3.45 and 25 steps: rounded, then clamped
    inside = torch.tensor([0, 1, 1, 1, 1, 1, 1, 0.0], dtype=torch.float64)
    each = [torch.autograd.grad(y[i], (x, s), retain_graph=True) for i in range(8)]
    assert [float(g[0][i]) for i, g in enumerate(each)] == inside.tolist()
    expected = torch.where(inside > 0, torch.round(x / s) - x / s, torch.where(x < 0, -4.0, 3.0))
    np.testing.assert_allclose([float(g[1]) for g in each], expected.detach().numpy())


def test_rounding_is_exact_in_float32() -> None:
    sizes = np.float32(10) ** np.arange(-3, 7).repeat(10_000)
    x = torch.from_numpy(np.random.default_rng(0).normal(0, 1, 100_000).astype(np.float32) * sizes)
    assert torch.equal(round_through(x), torch.round(x))
    halves = torch.tensor([0.5, 1.5, 2.5, -0.5, -1.5])
    assert round_through(halves).tolist() == [0, 2, 2, 0, -2]


def test_scales_stay_on_their_grid() -> None:
    start, t = torch.tensor([0.25, 0.5]), torch.tensor([0.7, -1.49], requires_grad=True)
    assert octaves(start, t, True, 1.0).tolist() == [0.5, 0.25]
    assert octaves(start, t, False, 1.0).tolist() == pytest.approx([0.25 * 2**0.7, 0.5 * 2**-1.49])
    octaves(start, t, True, 0.5).sum().backward()
    assert t.grad.tolist() == pytest.approx([0.5 * 0.25 * 2**0.7 * np.log(2), 0.5 * 0.5 * 2**-1.49 * np.log(2)])


def test_binary_weights_learn_within_reach() -> None:
    w = torch.tensor([-3.0, -0.5, 0.0, 0.5, 3.0], requires_grad=True)
    y = sign_through(w, torch.tensor(2.0))
    assert y.tolist() == [-1, -1, 1, 1, 1]
    y.sum().backward()
    assert w.grad.tolist() == [0, 0.5, 0.5, 0.5, 0]


def test_the_best_scale_has_the_least_error() -> None:
    real = np.random.default_rng(0).normal(size=(3, 50))
    for hi, binary in ((1, False), (7, False), (1, True)):
        grid = WeightGrid("w", "s", None, np.zeros(3, np.int64), 0, -hi, hi, real.shape, real, binary)  # type: ignore[arg-type]
        found = best_scales(real, grid)

        def error(s: Array, hi: int = hi, binary: bool = binary) -> Array:
            q = np.where(real >= 0, 1, -1) if binary else np.clip(np.rint(real / s[:, None]), -hi, hi)
            return ((q * s[:, None] - real) ** 2).sum(1)

        for factor in (0.8, 0.93, 1.07, 1.25):
            assert (error(found) <= 1.02 * error(found * factor)).all()


# ---- against the integer reference ---------------------------------------------------------------------------------


@given(
    seed=st.integers(0, 1000), bits=st.sampled_from([4, 6, 8]), image=st.booleans(), data=st.data(),
)  # fmt: skip
@settings(max_examples=25, deadline=None)
def test_on_power_of_two_grids_training_computes_what_the_reference_does(seed: int, bits: int, image: bool, data: st.DataObject) -> None:
    """Every integer tensor, exactly, as far as every operation is exact in float32: linear layers, sums, movements, maxima; no averages."""
    exact = {"conv", "conv_1x1", "conv_stride", "conv_depthwise", "relu", "relu6", "max_pool", "residual", "join", "gemm", "transposed"}
    known = [s for s in (QUANTIZED_IMAGE_STEPS if image else VECTOR_STEPS) if s in exact]
    steps = data.draw(st.lists(st.sampled_from(known), min_size=1, max_size=4))
    model = build(seed, steps, image=image)
    quantized = run(model, f"fuse,quantize{{bits={bits},grid=pow2}}", dataset(model))
    arrays = feeds(quantized, 8)
    names = [op.output for op in takewhile(lambda op: op.kind != "average", plan(quantized).integer_ops)]
    wanted, net = Reference(quantized).run(arrays, trace=True), Executor(quantized)
    with torch.no_grad():
        got = net.run(net.feeds(arrays), names)
    for name in names:
        np.testing.assert_array_equal(got[name].numpy(), wanted[name].astype(np.float32), err_msg=name)


@pytest.mark.parametrize("wrong", [lambda x: torch.floor(x + 0.5), torch.trunc])
def test_another_rounding_is_noticed(wrong: object, monkeypatch: pytest.MonkeyPatch) -> None:
    model = build(3, ["gemm", "relu", "gemm"], image=False)
    quantized = run(model, "fuse,quantize{bits=4,grid=pow2}", dataset(model))
    arrays = {k: np.round(v * 8) / 8 for k, v in feeds(quantized, 8).items()}
    wanted = Reference(quantized).run(arrays)[quantized.outputs[0].name]
    np.testing.assert_array_equal(forward(quantized, arrays), wanted)
    monkeypatch.setattr(fakequant, "round_through", lambda x: x + (wrong(x) - x).detach())  # type: ignore[operator]
    assert not np.array_equal(forward(quantized, arrays), wanted)


@given(seed=st.integers(0, 1000), grid=st.sampled_from(["affine", "symmetric", "pow2"]), per=st.sampled_from(["tensor", "channel"]))
@settings(max_examples=10, deadline=None)
def test_writing_back_untrained_changes_nothing(seed: int, grid: str, per: str) -> None:
    model = build(seed, ["conv", "relu", "conv_depthwise", "max_pool", "residual", "join"])
    quantized = run(model, f"fuse,quantize{{bits=5,grid={grid},per={per}}}", dataset(model))
    assert Executor(quantized).write_back().digest == quantized.digest
    ready = separate_scales(quantized)
    assert Executor(ready, learn_scales=True).write_back().digest == ready.digest
    arrays = feeds(quantized, 4)
    name = quantized.outputs[0].name
    np.testing.assert_array_equal(Reference(ready).run(arrays)[name], Reference(quantized).run(arrays)[name])


def test_scales_that_coincide_are_separated_and_those_that_belong_together_are_not() -> None:
    """A pooling moves integers from one tensor to the next on one grid; a weight that happens to have the same scale is on its own."""
    model = graph(
        "(float[1,1,4,4] x) => (float[1,1,1,1] y) { xq = QuantizeLinear(x, s, z) xd = DequantizeLinear(xq, s, z) "
        "p = MaxPool<kernel_shape = [2, 2], strides = [2, 2]>(xd) pq = QuantizeLinear(p, s, z) pd = DequantizeLinear(pq, s, z) "
        "wd = DequantizeLinear(w, s, z) c = Conv<kernel_shape = [2, 2]>(pd, wd) cq = QuantizeLinear(c, s, z) "
        "y = DequantizeLinear(cq, s, z) }",
        s=scale(0.25), z=np.int8(0), w=np.ones((1, 1, 2, 2), np.int8),
    )  # fmt: skip
    ready = separate_scales(model)
    held = {n.outputs[0].name: n.inputs[1].name for n in ready.graph if n.op_type in ("QuantizeLinear", "DequantizeLinear") and n.inputs[1]}
    assert held["xq"] == held["xd"] == held["pq"] == held["pd"]
    assert held["cq"] == held["y"]
    assert len({held["xq"], held["cq"], held["wd"]}) == 3
    assert len(Grids.of(ready.graph).scales) == 3


# ---- training ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("grid", ["affine", "symmetric", "pow2"])
@pytest.mark.parametrize(("bits", "expected"), [(4, 0.95), (2, 0.9), (1, 0.85)])
def test_a_float_model_learns_on_few_bits(grid: str, bits: int, expected: float) -> None:
    float_model = run(mlp(), "finetune{epochs=8,lr=0.02}", clusters())
    text = f"qat{{bits=4,weight_bits={bits},grid={grid},per=channel,epochs=12,lr=0.01,batch=32}}"
    trained = run(float_model, text, clusters())
    assert accuracy(trained, clusters(seed=1)) >= expected
    integer = list(plan(trained).integer_ops)
    linear = [op for op in integer if op.weight is not None]
    assert len(linear) == 2
    assert not plan(trained).notes, "every bias is on its accumulator's scale"
    for op in linear:
        assert op.weight is not None
        allowed = {-1, 1} if bits == 1 else set(range(-(2 ** (bits - 1) - 1), 2 ** (bits - 1)))
        assert set(np.unique(op.weight)) <= allowed
        assert op.weight_grid is not None
        if grid == "pow2":
            assert op.weight_grid.is_pow2
            assert op.grid.is_pow2


def test_training_measures_what_the_reference_measures() -> None:
    data = clusters(300)
    trained = run(mlp(), "qat{bits=4,grid=pow2,epochs=6,lr=0.02,validation=0.2}", data)
    held_out = data.split(5)[0][1]
    details = trained.history[-1].details
    assert accuracy(trained, held_out) == pytest.approx(details["epochs"][details["kept_epoch"] - 1]["held_out_accuracy"], abs=1e-6)


def test_training_at_two_bits_beats_rounding_afterwards() -> None:
    fresh = clusters(seed=1)
    float_model = run(mlp(), "finetune{epochs=8,lr=0.02}", clusters())
    assert accuracy(float_model, fresh) > 0.95
    rounded = accuracy(run(float_model, "quantize{bits=2}", clusters()), fresh)
    trained = accuracy(run(float_model, "qat{bits=2,epochs=15,lr=0.01,batch=32}", clusters()), fresh)
    assert trained > max(rounded + 0.1, 0.85)


def test_a_convolution_with_fused_batch_normalization_learns_on_three_bits() -> None:
    float_model = run(cnn(), "finetune{epochs=6,lr=0.02,batchnorm=train},fuse", bars())
    assert accuracy(run(float_model, "qat{bits=3,grid=pow2,epochs=6,lr=0.01}", bars()), bars(seed=1)) > 0.95


def test_a_quantized_model_is_trained_on_its_grids() -> None:
    quantized = run(run(mlp(), "finetune{epochs=4,lr=0.02}", clusters()), "quantize{bits=4}", clusters())
    learned = run(quantized, "qat{epochs=4,lr=0.01}", clusters())
    fixed = run(quantized, "qat{epochs=4,lr=0.01,scales=fixed}", clusters())
    tuned = run(quantized, "finetune{epochs=4,lr=0.01}", clusters())

    def scales(model: Model) -> list[float]:
        return [float(n.inputs[1].const_value.numpy()) for n in model.graph if n.op_type == "QuantizeLinear" and n.inputs[1]]  # type: ignore[union-attr]

    assert scales(learned) != scales(quantized)
    assert scales(fixed) == scales(quantized) == scales(tuned)
    for model in (learned, fixed, tuned):
        assert accuracy(model, clusters(seed=1)) >= accuracy(quantized, clusters(seed=1)) - 0.02
        assert [op.kind for op in plan(model).integer_ops] == [op.kind for op in plan(quantized).integer_ops]


def test_pruned_weights_stay_zero_on_the_grid() -> None:
    pruned = run(mlp(), "finetune{epochs=4,lr=0.02},prune{amount=0.5}", clusters())
    gone = weights(pruned)["w1"] == 0
    trained = run(pruned, "qat{bits=4,epochs=3,lr=0.02}", clusters())
    assert not weights(trained)["w1_q"].astype(int)[gone].any()
    again = run(run(pruned, "quantize{bits=4}", clusters()), "qat{epochs=3,lr=0.02}", clusters())
    assert not weights(again)["w1_q"].astype(int)[gone].any()


WRONG = ["qat{weight_bits=1}", "qat{bits=1}", "qat{bits=4,weight_bits=0}", "qat{bits=4,precision=bf16}", "qat{scale_lr=0}"]


@pytest.mark.parametrize("text", WRONG)
def test_wrong_options(text: str) -> None:
    with pytest.raises(UsageError):
        Pipeline.parse(text)


def test_bits_of_a_quantized_model_and_none_of_a_float_one() -> None:
    with pytest.raises(PassError, match="is not quantized"):
        run(mlp(), "qat", clusters())
    with pytest.raises(PassError, match="is quantized already"):
        run(mlp(), "quantize,qat{bits=4}", clusters())
