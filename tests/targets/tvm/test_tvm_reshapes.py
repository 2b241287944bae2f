"""Reshapes of unit axes are no kernels, products of one-hot rows are look-ups, and every result is what it was."""

from __future__ import annotations

import numpy as np
import pytest
from compiling import Compile
from graphs import Array, graph
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gatewright.frontend.model import Model
from gatewright.frontend.reference import Reference
from gatewright.targets.tvm import codegen, reshapes
from gatewright.targets.tvm.kernel import Policy
from gatewright.targets.tvm.machine import Machine
from gatewright.targets.tvm.reshapes import _spread, settled
from gatewright.targets.tvm.steps import program

RANDOM = np.random.default_rng(0)


def calls(model: Model) -> list[list[str]]:
    """Operators of every kernel that runs."""
    module = codegen.generate(codegen.Graph.of(program(model), Machine(512, 32, 2)), Policy(), lambda label: None)
    return [[step.operator for step in call.group.steps] for call in module.calls]


def equal(compiled: Compile, model: Model, feeds: dict[str, Array], tolerance: float = 1e-5) -> bool:
    wanted, got = Reference(model).run(feeds), compiled(model).run(feeds)
    return all(got[k].shape == v.shape and np.allclose(got[k], v, rtol=tolerance, atol=tolerance) for k, v in wanted.items())


def tall() -> Model:
    """A convolution over one axis, written with two, and a bias and an activation behind the Reshape that drops the second."""
    return graph(
        "(float[1,16,20,1] x) => (float[1,16,1] y) { a = Conv<kernel_shape = [5, 1]>(x, w) b = Reshape(a, s) c = Add(b, p) d = Tanh(c) "
        "y = GlobalMaxPool(d) }",
        w=(0.02 * RANDOM.standard_normal((16, 16, 5, 1))).astype(np.float32), s=np.asarray([1, 16, 16]),
        p=(0.1 * RANDOM.standard_normal((1, 16, 1))).astype(np.float32),
    )  # fmt: skip


def test_a_dropped_axis_parts_no_kernel(compiled: Compile) -> None:
    assert calls(tall()) == [["conv", "add", "tanh"], ["globalmaxpool"]]
    assert equal(compiled, tall(), {"x": RANDOM.standard_normal((1, 16, 20, 1)).astype(np.float32)})


def test_a_constant_at_the_wrong_axis_is_seen(compiled: Compile, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reshapes, "_spread", lambda *shapes: tuple(np.roll(_spread(*shapes), 1)))
    assert not equal(compiled, tall(), {"x": RANDOM.standard_normal((1, 16, 20, 1)).astype(np.float32)})


def test_a_copy_of_a_reshape_is_not_a_copy_of_what_was_reshaped(compiled: Compile) -> None:
    """Both are outputs; read past the Reshape, the Identity is one."""
    twice = graph("(float[3] x) => (float[3,1] y, float[3,1] z) <int64[2] s={3,1}> { y = Reshape(x, s) z = Identity(y) }")
    assert equal(compiled, twice, {"x": np.array([1, 2, 3], np.float32)}, tolerance=0)


SHIFTED = {
    "wrap": "y = Pad<mode = 'wrap'>(x, p)",
    "slice of tile": "t = Tile(x, r) y = Slice(t, b, e, a)",
    "wrap of reshape": "t = Reshape(x, s) y = Pad<mode = 'wrap'>(t, p)",
    "reflect of tile": "t = Tile(x, r) y = Pad<mode = 'reflect'>(t, q)",
}


@pytest.mark.parametrize("which", SHIFTED)
def test_a_shifted_remainder_shifts_nothing_else(compiled: Compile, which: str) -> None:
    """Where TVM flattens two indices that are made of one loop (lazy.py: remainder)."""
    body = SHIFTED[which].replace("'", '"')
    model = graph(
        f"(float[3,6] x) => (float[M,N] y) {{ {body} }}",
        p=np.array([0, 3, 1, 3]), q=np.array([0, 2, 0, 2]), r=np.array([2, 3]), b=np.array([3]), e=np.array([17]), a=np.array([1]),
        s=np.array([2, 9]),
    )  # fmt: skip
    assert equal(compiled, model, {"x": np.arange(18, dtype=np.float32).reshape(3, 6)}, tolerance=0)


BACKWARDS = {
    "of tile": "t = Tile(x, r) y = Slice(t, b, e, a, d)",
    "of reshape": "t = Reshape(x, s) y = Slice(t, b, e, a, d)",
    "by twos, of reshape": "t = Reshape(x, s) y = Slice(t, b, e, a, dd)",
    "of wrap of reshape": "t = Reshape(x, s) u = Pad<mode = 'wrap'>(t, p) y = Slice(u, b, e, a, d)",
    "of space to depth": "t = Reshape(x, f) u = SpaceToDepth<blocksize = 2>(t) v = Reshape(u, s) y = Slice(v, b, e, a, d)",
    "of blocks": "t = Reshape(x, s) q = Cast<to = 3>(t) u = DequantizeLinear<axis = 1, block_size = 2>(q, k) y = Slice(u, b, e, a, d)",
    "of all axes": "t = Tile(x, r) u = Reshape(t, ss) y = Slice(u, bb, ee, aa, ddd)",
}


@pytest.mark.parametrize("which", BACKWARDS)
def test_an_index_may_run_backwards(compiled: Compile, which: str) -> None:
    """TVM forgets where such a remainder starts (lazy.py: remainder)."""
    body, least = BACKWARDS[which].replace("'", '"'), -(2**31)
    model = graph(
        f"(float[4,6] x) => (float[M,N] y) {{ {body} }}",
        p=np.array([0, 2, 0, 3]), r=np.array([1, 2]), b=np.array([9]), e=np.array([least]), a=np.array([1]), d=np.array([-1]),
        dd=np.array([-2]), s=np.array([2, 12]), f=np.array([1, 2, 2, 6]), k=np.linspace(0.5, 6, 12, dtype=np.float32).reshape(2, 6),
        ss=np.array([8, 6]), bb=np.array([7, 5]), ee=np.array([least, least]), aa=np.array([0, 1]), ddd=np.array([-1, -3]),
    )  # fmt: skip
    assert equal(compiled, model, {"x": np.arange(24, dtype=np.float32).reshape(4, 6)}, tolerance=0)


def spread_variance() -> Model:
    """Reductions that drop their axis, arithmetic on what is left, and Reshapes that bring the axis back."""
    return graph(
        "(float[3,40] x) => (float[3,40] y) { m = ReduceMean<keepdims = 0>(x, one) q = Mul(x, x) n = ReduceMean<keepdims = 0>(q, one) "
        "mm = Mul(m, m) v = Sub(n, mm) s = Sqrt(v) t = Reshape(s, up) u = Reshape(m, up) c = Sub(x, u) y = Div(c, t) }",
        one=np.asarray([1]),
        up=np.asarray([3, 1]),
    )


def test_reshapes_of_reductions_cancel(compiled: Compile) -> None:
    assert not any("reshape" in kernel for kernel in calls(spread_variance()))
    assert equal(compiled, spread_variance(), {"x": RANDOM.standard_normal((3, 40)).astype(np.float32)}, 1e-4)


def one_hot(classes: Array) -> Model:
    return graph(
        "(int32[1,9,1] x) => (float[1,9,6] y) { e = Equal(x, c) f = Cast<to = 1>(e) g = MatMul(f, w) y = Add(g, b) }",
        c=classes, w=RANDOM.standard_normal((5, 6)).astype(np.float32), b=np.ones(6, np.float32),
    )  # fmt: skip


def test_a_product_of_one_hot_rows_is_a_look_up(compiled: Compile) -> None:
    model = one_hot(np.arange(5, dtype=np.int32).reshape(1, 1, 5))
    assert all("matmul" not in kernel for kernel in calls(model))
    # Ids of no class take a row of zeros, as the product has it.
    ids = np.asarray([0, 4, 2, 5, -1, 100, -(2**31), 2**31 - 1, 3], np.int32).reshape(1, 9, 1)
    assert equal(compiled, model, {"x": ids})


def test_other_classes_stay_a_product(compiled: Compile) -> None:
    model = one_hot(np.asarray([0, 1, 2, 4, 3], np.int32).reshape(1, 1, 5))
    assert any("matmul" in kernel for kernel in calls(model))
    assert equal(compiled, model, {"x": np.arange(9, dtype=np.int32).reshape(1, 9, 1)})


@settings(max_examples=6, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(data=st.data())
def test_random_chains(compiled: Compile, data: st.DataObject) -> None:
    """Reshapes, transposes and pointwise steps with constants, in any order."""
    shape: tuple[int, ...] = data.draw(st.sampled_from([(2, 3, 4), (1, 12, 2), (4, 1, 6, 1), (24,), (1, 16, 3, 1)]))
    start, text, name, given_ = shape, "", "x", {}
    for i in range(data.draw(st.integers(1, 5))):
        match data.draw(st.sampled_from(["units", "reshape", "transpose", "unary", "constant"])):
            case "units":
                kept = [n for n in shape if n != 1]
                for _ in range(data.draw(st.integers(0, 2))):
                    kept.insert(data.draw(st.integers(0, len(kept))), 1)
                shape = tuple(kept)
                given_[f"s{i}"] = np.asarray(shape)
                text += f"v{i} = Reshape({name}, s{i}) "
            case "reshape":
                size = int(np.prod(shape))
                first = data.draw(st.sampled_from([d for d in range(1, size + 1) if size % d == 0]))
                shape = (first, size // first)
                given_[f"s{i}"] = np.asarray(shape)
                text += f"v{i} = Reshape({name}, s{i}) "
            case "transpose":
                order = data.draw(st.permutations(range(len(shape))))
                shape = tuple(shape[a] for a in order)
                text += f"v{i} = Transpose<perm = {list(order)}>({name}) "
            case "unary":
                text += f"v{i} = Sigmoid({name}) "
            case "constant":
                constant = tuple(n if data.draw(st.booleans()) else 1 for n in shape)
                given_[f"c{i}"] = RANDOM.standard_normal(constant).astype(np.float32)
                text += f"v{i} = Mul({name}, c{i}) "
        name = f"v{i}"
    sizes = (",".join(map(str, s)) for s in (start, shape))
    model = graph("(float[{}] x) => (float[{}] y) {{ {} y = Relu({}) }}".format(*sizes, text, name), **given_)
    assert equal(compiled, model, {"x": RANDOM.standard_normal(start).astype(np.float32)})


def test_settling_twice_changes_nothing_more() -> None:
    once = settled(program(spread_variance()))
    assert [s.operator for s in settled(once).steps] == [s.operator for s in once.steps]
