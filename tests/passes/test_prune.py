"""Pruning: zeros where asked, channels gone consistently, and the pruned model equal to the masked one."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from graphs import graph
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from strategies import IMAGE_STEPS, VECTOR_STEPS, build, dataset, feeds, float_models

from gatewright.errors import PassError, UsageError
from gatewright.frontend.model import Model
from gatewright.frontend.reference import Reference
from gatewright.frontend.work import macs
from gatewright.passes.base import PassContext
from gatewright.passes.pipeline import Pipeline
from gatewright.passes.prune import Prune, masked
from gatewright.passes.verify import relative_error, tolerance

relaxed = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much], max_examples=60)


def pruned(model: Model, pruning: Prune) -> Model:
    return Pipeline((pruning,)).run(model)


def weights(model: Model) -> list[np.ndarray]:
    return [n.inputs[1].const_value.numpy() for n in model.graph if n.op_type in ("Conv", "Gemm", "MatMul")]  # type: ignore[union-attr]


def assert_equals_masked(model: Model, pruning: Prune) -> Model:
    smaller, silent = pruned(model, pruning), masked(model, pruning)
    x = feeds(model, 3)
    left, right = Reference(smaller).run(x), Reference(silent).run(x)
    for name in left:
        assert left[name].shape == right[name].shape
        assert relative_error(right[name], left[name]) <= tolerance(model)
    return smaller


@relaxed
@given(
    float_models(), st.sampled_from([0.3, 0.5, 0.75]), st.sampled_from(["layer", "global"]), st.sampled_from(["l1", "l2"]),
)  # fmt: skip
def test_pruned_equals_masked(model: Model, amount: float, scope: str, norm: str) -> None:
    try:
        smaller = assert_equals_masked(model, Prune("channel", amount, scope=scope, norm=norm))  # type: ignore[arg-type]
    except PassError as error:
        # Both are proper refusals, tested below; anything else is not.
        assume("no layer can lose" not in str(error) and "every channel of" not in str(error))
        raise
    assert macs(smaller) <= macs(model)


@pytest.mark.parametrize("step", IMAGE_STEPS)
def test_every_image_step(step: str) -> None:
    """One step between two convolutions: channels go in front of it and behind it, or it is named as the reason why not."""
    model = build(3, ["conv", "conv", step, "conv"])
    smaller = assert_equals_masked(model, Prune("channel", 0.5))
    assert macs(smaller) < macs(model)


@pytest.mark.parametrize("step", VECTOR_STEPS)
def test_every_vector_step(step: str) -> None:
    model = build(3, ["gemm", step, "gemm"], image=False)
    smaller = assert_equals_masked(model, Prune("channel", 0.5))
    assert macs(smaller) < macs(model)


def test_names_and_outputs_survive() -> None:
    model = build(3, ["conv", "batch_norm", "relu", "residual", "join", "conv_depthwise"])
    smaller = pruned(model, Prune("channel", 0.5))
    assert [n.name for n in smaller.graph] == [n.name for n in model.graph]
    assert [v.name for n in smaller.graph for v in n.outputs] == [v.name for n in model.graph for v in n.outputs]
    assert smaller.inputs == model.inputs
    assert smaller.outputs == model.outputs


def test_flatten_into_gemm_takes_blocks_of_rows() -> None:
    random = np.random.default_rng(0)
    w, v = random.normal(size=(4, 3, 3, 3)).astype(np.float32), random.normal(size=(4 * 16, 5)).astype(np.float32)
    w[1] *= 0.01
    model = graph(
        "(float[1,3,6,6] x) => (float[1,5] y) {"
        " s = Constant<value = int64[2] {0, -1}>() c = Conv<kernel_shape=[3,3]>(x, w) f = Reshape(c, s) y = Gemm(f, v) }",
        w=w, v=v,
    )  # fmt: skip
    smaller = assert_equals_masked(model, Prune("channel", 0.25))
    kept_w, kept_v = weights(smaller)
    assert np.array_equal(kept_w, w[[0, 2, 3]])
    assert np.array_equal(kept_v, np.delete(v, np.s_[16:32], axis=0))


def test_residual_channels_are_ranked_together() -> None:
    """Channel 1 is the weakest of the first layer, but the layer that is added to it makes it the strongest of the sum."""
    eye = np.eye(3, dtype=np.float32)
    first, second = eye * np.asarray([2, 1, 3], np.float32), eye * np.asarray([1, 9, 1], np.float32)
    model = graph(
        "(float[1,3] x) => (float[1,3] y) { a = MatMul(x, p) b = Relu(a) c = MatMul(b, q) d = Add(a, c) y = MatMul(d, r) }",
        p=first, q=second, r=eye,
    )  # fmt: skip
    smaller = assert_equals_masked(model, Prune("channel", 1 / 3))
    assert np.array_equal(weights(smaller)[0], np.delete(first, 0, axis=1))


def test_a_grouped_convolution_keeps_its_groups_equal() -> None:
    random = np.random.default_rng(1)
    model = graph(
        "(float[1,4,5,5] x) => (float[1,2,3,3] y) {"
        " a = Conv<kernel_shape=[1,1]>(x, p) b = Conv<kernel_shape=[3,3], group=2>(a, q) y = Conv<kernel_shape=[1,1]>(b, r) }",
        p=random.normal(size=(8, 4, 1, 1)).astype(np.float32), q=random.normal(size=(6, 4, 3, 3)).astype(np.float32),
        r=random.normal(size=(2, 6, 1, 1)).astype(np.float32),
    )  # fmt: skip
    smaller = assert_equals_masked(model, Prune("channel", 0.5))
    assert [w.shape for w in weights(smaller)] == [(4, 4, 1, 1), (4, 2, 3, 3), (2, 4, 1, 1)]


def test_what_cannot_be_pruned_says_why() -> None:
    alone = build(1, ["relu"], image=False)
    with pytest.raises(PassError, match=r"no layer can lose channels.*gemm_\d+: it is the graph output 'y'"):
        pruned(alone, Prune("channel", 0.5))
    normalized = graph(
        "(float[1,4] x) => (float[1,2] y) { a = MatMul(x, p) s = Softmax<axis=-1>(a) y = MatMul(s, q) }",
        p=np.ones((4, 6), np.float32), q=np.ones((6, 2), np.float32),
    )  # fmt: skip
    with pytest.raises(PassError, match="normalizes over it"):
        pruned(normalized, Prune("channel", 0.5))
    unknown = graph(
        "(float[1,4] x) => (float[1,2] y) { a = MatMul(x, p) s = LpNormalization<axis=-1>(a) y = MatMul(s, q) }",
        p=np.ones((4, 6), np.float32), q=np.ones((6, 2), np.float32),
    )  # fmt: skip
    with pytest.raises(PassError, match="LpNormalization"):
        pruned(unknown, Prune("channel", 0.5))


def test_partly_prunable_models_note_what_stays() -> None:
    model = build(2, ["conv", "conv"])
    step = pruned(model, Prune("channel", 0.5)).history[-1]
    assert any("graph output" in note for note in step.notes)
    assert step.details["macs"][1] < step.details["macs"][0]
    assert step.details["weight_bytes"][1] < step.details["weight_bytes"][0]


def test_emptying_a_layer_is_an_error_that_names_it() -> None:
    """Over all layers, a layer of nearly equal channels can lose all of them."""
    model = graph(
        "(float[1,2] x) => (float[1,1] y) { a = MatMul(x, p) b = MatMul(a, q) y = MatMul(b, r) }",
        p=np.asarray([[1, 1]] * 2, np.float32), q=np.asarray([[0.01, 0.01, 0.01, 9]] * 2, np.float32), r=np.ones((4, 1), np.float32),
    )  # fmt: skip
    with pytest.raises(PassError, match=r"every channel of '\w+'"):
        pruned(model, Prune("channel", 0.84, scope="global"))


def test_a_target_in_macs() -> None:
    model = build(4, ["conv", "relu", "conv", "residual", "conv_depthwise"])
    smaller = pruned(model, Prune("channel", 0.3, measure="macs"))
    assert macs(smaller) <= 0.7 * macs(model)
    less = pruned(model, Prune("channel", 0.1, measure="macs"))
    assert macs(smaller) <= macs(less) <= 0.9 * macs(model)


@pytest.mark.parametrize("scope", ["layer", "global"])
@pytest.mark.parametrize("amount", [0.0, 0.3, 0.9])
def test_magnitude_zeroes_exactly_the_smallest(scope: str, amount: float) -> None:
    model = build(5, ["conv", "relu", "conv"])
    smaller = pruned(model, Prune("magnitude", amount, scope=scope))  # type: ignore[arg-type]
    before, after = weights(model), weights(smaller)
    if scope == "global":
        before, after = [np.concatenate([w.ravel() for w in before])], [np.concatenate([w.ravel() for w in after])]
    for whole, kept in zip(before, after, strict=True):
        gone = kept == 0
        assert gone.sum() == int(amount * whole.size + 1e-9)
        assert np.array_equal(kept[~gone.reshape(kept.shape)], whole[~gone.reshape(whole.shape)])
        if gone.any() and not gone.all():
            assert np.abs(whole[gone]).max() <= np.abs(whole[~gone]).min()


def test_magnitude_with_a_threshold_and_exclusions() -> None:
    model = build(5, ["conv", "relu", "conv"])
    first = next(n.name for n in model.graph if n.op_type == "Conv") or ""
    smaller = pruned(model, Prune("magnitude", threshold=0.1, exclude=(first,)))
    before, after = weights(model), weights(smaller)
    assert np.array_equal(before[0], after[0])
    assert np.array_equal(after[1], np.where(np.abs(before[1]) < 0.1, 0, before[1]))
    sparsity = smaller.history[-1].details["sparsity"]
    assert next(iter(sparsity.values())) == round(float(np.mean(after[1] == 0)), 6)


def test_weights_that_are_stored_as_integers_are_pruned_too() -> None:
    model = graph(
        "(float[1,3] x) => (float[1,2] y) { w = DequantizeLinear<axis=1>(q, s, z) a = MatMul(x, w) y = MatMul(a, v) }",
        q=np.asarray([[10, 5], [4, 90], [3, 7]], np.int8), s=np.asarray(0.5, np.float32), z=np.asarray(4, np.int8),
        v=np.eye(2, dtype=np.float32),
    )  # fmt: skip
    smaller = pruned(model, Prune("magnitude", 0.5, exclude=("y",)))
    (q,) = [v.const_value.numpy() for v in smaller.graph.initializers.values() if v.dtype == ir.DataType.INT8 and v.const_value.size == 6]
    assert q.tolist() == [[10, 4], [4, 90], [4, 7]]
    wide = graph(
        "(float[1,3] x) => (float[1,2] y) { w = DequantizeLinear<axis=1>(q, s, z) a = MatMul(x, w) y = MatMul(a, v) }",
        q=np.asarray([[10, 5, 3], [4, 90, 3], [3, 7, 4]], np.int8), s=np.asarray([0.5, 1, 2], np.float32), z=np.asarray([4, 4, 4], np.int8),
        v=np.ones((3, 2), np.float32),
    )  # fmt: skip
    assert_equals_masked(wide, Prune("channel", 0.4))


def test_options() -> None:
    for text, message in [
        ("prune{amount=1}", "amount"), ("prune{amount=-0.1}", "amount"), ("prune{kind=channel,threshold=1}", "does not go with"),
        ("prune{measure=macs}", "does not go with"), ("prune{kind=filter}", "magnitude, nm, block, channel"),
        ("prune{kind=channel,n=1}", "does not go with"),
        ("prune{kind=nm,n=4}", "less than m"), ("prune{kind=block,block=0}", "1 to 4096"), ("prune{pattern=hardware}", "need a device"),
    ]:  # fmt: skip
        with pytest.raises(UsageError, match=message):
            Pipeline.parse(text)
    model = build(5, ["conv"])
    with pytest.raises(UsageError, match="exclude=conv_99"):
        pruned(model, Prune("channel", 0.5, exclude=("conv_99",)))
    with pytest.raises(PassError, match="prune first"):
        Pipeline.parse("fuse,quantize{},prune{}").run(model, PassContext(data=dataset(model)))


def test_pruned_models_quantize() -> None:
    model = build(5, ["conv", "batch_norm", "relu", "residual", "join"])
    pipeline = Pipeline.parse("fuse,prune{kind=channel,amount=0.5},quantize{grid=pow2}")
    q = pipeline.run(model, PassContext(data=dataset(model)), verify="numeric")
    assert [step.text for step in q.history[-3:]] == ["fuse", "prune{kind=channel}", "quantize{grid=pow2}"]
