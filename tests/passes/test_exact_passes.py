"""Exact passes leave what a model computes as it is: random graphs, before and after, on the reference."""

from __future__ import annotations

import numpy as np
import pytest
from graphs import graph
from hypothesis import HealthCheck, example, given, settings
from strategies import IMAGE_STEPS, VECTOR_STEPS, build, feeds, float_models, quantized_models

from gatewright.frontend.model import Model
from gatewright.frontend.reference import Reference
from gatewright.passes.pipeline import Pipeline
from gatewright.passes.verify import relative_error, tolerance

relaxed = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow], max_examples=40)


def assert_equal(before: Model, after: Model, allowed: float) -> None:
    given_ = feeds(before, 4, seed=3)
    left, right = Reference(before).run(given_), Reference(after).run(given_)
    assert left.keys() == right.keys()
    for name in left:
        assert left[name].shape == right[name].shape
        assert relative_error(left[name], right[name]) <= allowed


@relaxed
@given(float_models())
@example(build(0, ["conv", "batch_norm", "relu6"]))
@example(build(1, ["pad_conv", "add_channels", "mul_number", "sub_from", "div_number"]))
def test_fuse_keeps_the_outputs(model: Model) -> None:
    assert_equal(model, Pipeline.parse("fuse").run(model), tolerance(model))


@relaxed
@given(float_models())
def test_fold_keeps_the_outputs(model: Model) -> None:
    assert_equal(model, Pipeline.parse("fold").run(model), 0.0 if not _adds_zero(model) else tolerance(model))


@relaxed
@given(float_models(max_steps=4))
def test_fused_and_folded_in_any_order(model: Model) -> None:
    for text in ("fold,fuse", "fuse,fold", "fuse,fuse"):
        assert_equal(model, Pipeline.parse(text).run(model), tolerance(model))


@relaxed
@given(quantized_models())
@pytest.mark.parametrize("text", ["fuse", "fold", "fold,fuse"])
def test_exact_passes_keep_the_integers(text: str, model: Model) -> None:
    assert_equal(model, Pipeline.parse(text).run(model), 0.0)


@pytest.mark.parametrize("step", IMAGE_STEPS)
def test_every_image_step_alone(step: str) -> None:
    model = build(5, ["conv", step, "conv"])
    assert_equal(model, Pipeline.parse("fold,fuse").run(model, verify="numeric"), tolerance(model))


@pytest.mark.parametrize("step", VECTOR_STEPS)
def test_every_vector_step_alone(step: str) -> None:
    model = build(5, ["gemm", step, "gemm"], image=False)
    assert_equal(model, Pipeline.parse("fold,fuse").run(model, verify="numeric"), tolerance(model))


@pytest.mark.parametrize("op", ["Mul", "Add"])
@pytest.mark.parametrize(
    ("x", "weight", "constant"),
    [
        ((2, 4, 4), (4,), (4,)),
        ((2, 3, 4), (4,), (3,)),
        ((4,), (3, 4, 5), (5,)),
        ((4,), (4, 5), (5,)),
        ((2, 4), (4,), (2,)),
        ((4,), (4,), ()),
    ],
)
def test_products_whose_result_has_two_axes_are_not_all_of_matrices(
    op: str, x: tuple[int, ...], weight: tuple[int, ...], constant: tuple[int, ...]
) -> None:
    """Of a vector, the constant behind it belongs to rows: where both are equally long, nothing but the values tells."""
    rng = np.random.default_rng(0)
    arrays = {name: rng.standard_normal(shape).astype(np.float32) for name, shape in (("w", weight), ("c", constant))}
    made = np.broadcast_shapes((np.zeros(x) @ arrays["w"]).shape, constant)
    sizes = [str(list(shape)) if shape else "" for shape in (x, made)]
    model = graph(f"(float{sizes[0]} x) => (float{sizes[1]} y) {{ m = MatMul(x, w) y = {op}(m, c) }}", **arrays)
    given = {"x": rng.standard_normal(x).astype(np.float32)}
    before, after = (Reference(each).run(given)["y"] for each in (model, Pipeline.parse("fuse").run(model)))
    np.testing.assert_allclose(after, before, rtol=1e-5, atol=1e-6)  # a factor moved into the weight rounds once more


def test_values_that_survive_keep_their_names() -> None:
    model = build(2, ["conv", "batch_norm", "relu", "conv", "add_channels", "relu"])
    fused = Pipeline.parse("fuse").run(model)
    before, after = Reference(model).run(feeds(model, 2), trace=True), Reference(fused).run(feeds(model, 2), trace=True)
    shared = set(before) & set(after)
    assert len(shared) >= fused.graph.num_nodes()
    for name in shared:
        assert relative_error(before[name], after[name]) < 1e-5


def _adds_zero(model: Model) -> bool:
    return any(np.any(v.const_value.numpy() == 0) for v in model.graph.initializers.values() if v.const_value is not None)
