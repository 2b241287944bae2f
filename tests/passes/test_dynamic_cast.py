"""dynamic: products on ranges of the moment; cast: 16-bit floats, float32 where they don't reach."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from graphs import graph
from strategies import build, dataset, feeds

from gatewright.errors import PassError, UsageError
from gatewright.frontend.data import Dataset
from gatewright.frontend.model import Model
from gatewright.frontend.ortrun import OrtSession
from gatewright.frontend.reference import Reference
from gatewright.passes import cast, dynamic
from gatewright.passes.base import PassContext
from gatewright.passes.pipeline import Pipeline
from gatewright.passes.verify import relative_error


def run(model: Model, text: str, data: Dataset | None = None) -> Model:
    return Pipeline.parse(text).run(model, PassContext(data=data))


def products(seed: int = 0) -> Model:
    random = np.random.default_rng(seed)
    text = (
        "(float[1,6,16] x) => (float[1,6,8] y, float[6,5] z) { a = MatMul(x, w) b = MatMul(x, v) r = Relu(a) y = Add(b, r)"
        " f = Reshape(x, flat) z = Gemm(f, u, c) }"
    )
    w, v, u = (random.normal(size=(16, n)).astype(np.float32) for n in (8, 8, 5))
    return graph(text, w=w, v=v, u=u, c=random.normal(size=5).astype(np.float32), flat=np.asarray([6, 16]))


def outputs(model: Model, x: dict[str, Any]) -> list[Any]:
    return list(Reference(model).run(x).values())


@pytest.mark.parametrize("per", ["tensor", "channel"])
def test_dynamic_products_on_ref_and_ort(per: str) -> None:
    model = products()
    q = run(model, f"dynamic{{per={per}}}")
    ops = [n.op_type for n in q.graph]
    # Two products read x, and share its range; the Gemm reads another value.
    assert ops.count("DynamicQuantizeLinear") == 2
    assert ops.count("MatMulInteger") == 3
    assert not {"MatMul", "Gemm"} & set(ops)
    assert [o.name for o in q.outputs] == ["y", "z"]
    for seed in range(5):
        x = {"x": (np.random.default_rng(seed).normal(size=(1, 6, 16)) * 10.0**seed).astype(np.float32)}
        for got, wanted in zip(outputs(q, x), outputs(model, x), strict=True):
            assert relative_error(wanted, got) < 0.02
        for optimize in (True, False):
            session = OrtSession(q, optimize=optimize).run(x)
            for name, got in Reference(q).run(x).items():
                np.testing.assert_allclose(session[name], got, rtol=1e-5, atol=1e-5 * np.abs(got).max())


def test_nothing_saturates_at_the_ends_of_the_range() -> None:
    """All activations at 255 and weights at their largest: pairs of int8 products would leave 16 bits."""
    model = graph("(float[1,64] x) => (float[1,32] y) { y = MatMul(x, w) }", w=np.ones((64, 32), np.float32))
    x = {"x": np.full((1, 64), 3.0, np.float32)}
    q = run(model, "dynamic")
    for y in (Reference(q).run(x)["y"], OrtSession(q).run(x)["y"]):
        np.testing.assert_allclose(y, 192.0, rtol=1e-4)


def test_a_forgotten_zero_point_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dynamic, "ZERO", 127)
    real = np.asarray
    monkeypatch.setattr(dynamic.np, "asarray", lambda a, *rest: real(128 if isinstance(a, int) else a, *rest))
    with pytest.raises(AssertionError):
        test_dynamic_products_on_ref_and_ort("tensor")


def test_dynamic_exclude_and_refusals(tmp_path: Path) -> None:
    model = products()
    first = next(n.name for n in model.graph if n.op_type == "MatMul")
    assert [n.op_type for n in run(model, f"dynamic{{exclude={first}}}").graph].count("MatMul") == 1
    with pytest.raises(UsageError, match="exclude=nothing"):
        run(model, "dynamic{exclude=nothing}")
    with pytest.raises(PassError, match="no MatMul or Gemm"):
        run(graph("(float[1,4] x) => (float[1,4] y) { y = Relu(x) }"), "dynamic")
    with pytest.raises(PassError, match="float model"):
        run(model, "quantize,dynamic", dataset(model))
    pytest.importorskip("tvm")
    import gatewright as gw

    small = run(model, "dynamic")
    x = feeds(small, 2, 3)
    with gw.compile(small, "cpu{fallback=none}", out=tmp_path / "built").load() as executor:
        one = {key: value[:1] for key, value in x.items()}
        assert relative_error(Reference(small).run(one)["y"], executor.run(one)["y"]) < 1e-5


@pytest.mark.parametrize("steps", ["conv relu conv_depthwise max_pool residual hard_swish", "gemm gelu matmul_add join tanh"])
@pytest.mark.parametrize("to", ["float16", "bfloat16"])
def test_cast_is_near_and_its_edges_are_float32(steps: str, to: str) -> None:
    model = run(build(3, steps.split(), image="conv" in steps, softmax=True), "fuse")
    small = run(model, f"cast{{to={to}}}", dataset(model))
    assert [(i.name, i.dtype) for i in (*small.inputs, *small.outputs)] == [(i.name, i.dtype) for i in (*model.inputs, *model.outputs)]
    narrow = ir.DataType[to.upper()]
    assert any(v.dtype == narrow for node in small.graph for v in node.outputs)
    x = feeds(model, 8, 2)
    assert relative_error(Reference(model).run(x)["y"], Reference(small).run(x)["y"]) < (5e-3 if to == "float16" else 5e-2)
    if to == "float16":
        one = {k: v[:1] for k, v in x.items()}
        assert relative_error(Reference(small).run(one)["y"], OrtSession(small).run(one)["y"]) < 5e-3
        stored = {v.dtype for v in small.graph.initializers.values() if v.dtype in (narrow, ir.DataType.FLOAT)}
        assert stored == {narrow}


def test_what_would_overflow_stays_float32() -> None:
    model = graph(
        "(float[1,4] x) => (float[1,4] y) { a = MatMul(x, w) r = Relu(a) b = MatMul(r, small) y = Tanh(b) }",
        w=np.eye(4, dtype=np.float32) * 3000, small=np.eye(4, dtype=np.float32) * 1e-4,
    )  # fmt: skip
    data = Dataset({"x": np.random.default_rng(0).normal(size=(40, 4)).astype(np.float32) * 30})
    careful, blind = run(model, "cast", data), run(model, "cast")
    kept = {n.op_type for n in careful.graph if n.op_type != "Cast" and n.outputs[0].dtype == ir.DataType.FLOAT}
    assert kept == {"MatMul", "Relu"}
    assert any("reaches" in note for note in careful.history[-1].notes)
    assert any("overflow unseen" in note for note in blind.history[-1].notes)
    x = {"x": data.inputs["x"][:20]}
    assert relative_error(Reference(model).run(x)["y"], Reference(careful).run(x)["y"]) < 5e-3
    with np.errstate(over="ignore", invalid="ignore"):
        assert not relative_error(Reference(model).run(x)["y"], Reference(blind).run(x)["y"]) < 5e-3
    constant = graph("(float[1,4] x) => (float[1,4] y) { a = Mul(x, c) y = Relu(a) }", c=np.asarray([1, 1e6, 1, 1], np.float32))
    assert any("its constant 'c' reaches 1e+06" in note for note in run(constant, "cast").history[-1].notes)
    assert not any("constant" in note for note in run(constant, "cast{to=bfloat16}").history[-1].notes)


def test_float32_neighbours_get_casts_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """An excluded node in the middle: one cast in, one out, whoever else reads."""
    model = graph(
        "(float[1,4] x) => (float[1,4] y, float[1,4] r)"
        " { a = MatMul(x, w) r = Relu(a) s = Sigmoid(r) t = Tanh(r) u = Mul(s, t) y = Add(u, r) }",
        w=np.eye(4, dtype=np.float32),
    )  # fmt: skip
    mixed = run(model, "cast{exclude=s|t}", dataset(model))
    casts = [n for n in mixed.graph if n.op_type == "Cast"]
    # x in; r out (read by s and t, and an output); s and t in; y out.
    assert len(casts) == 5
    x = feeds(model, 4)
    for name, got in Reference(mixed).run(x).items():
        assert got.dtype == np.float32
        assert relative_error(Reference(model).run(x)[name], got) < 5e-3
    monkeypatch.setitem(cast.LARGEST, "float16", 1e-3)
    with pytest.raises(PassError, match="nothing to compute in float16"):
        run(model, "cast", dataset(model))


def test_cast_refusals(tmp_path: Path) -> None:
    model = products()
    with pytest.raises(UsageError, match="exclude=nothing"):
        run(model, "cast{exclude=nothing}")
    with pytest.raises(UsageError, match="float16, bfloat16"):
        Pipeline.parse("cast{to=float8}")
    with pytest.raises(PassError, match="float models"):
        run(model, "quantize,cast", dataset(model))
    from gatewright.targets.ort.target import OrtOptions, OrtTarget

    refused = OrtTarget(None, OrtOptions()).check(run(model, "cast{to=bfloat16}")).problems
    assert refused
    assert "ort does not support" in str(refused[0])
