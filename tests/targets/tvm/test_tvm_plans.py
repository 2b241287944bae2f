"""Fusion and the arena: no TVM needed, only who reads whom and who lives when."""

from __future__ import annotations

import numpy as np
from graphs import graph
from hypothesis import given
from hypothesis import strategies as st

from gatewright.frontend.model import Model
from gatewright.targets.tvm import views
from gatewright.targets.tvm.fusion import LIMIT, Group, group
from gatewright.targets.tvm.machine import Machine
from gatewright.targets.tvm.memory import ALIGNMENT, Life, aligned, plan
from gatewright.targets.tvm.placement import layouts
from gatewright.targets.tvm.steps import program


def kernels(model: Model, copies: bool = False) -> list[list[str]]:
    """Operators of each kernel."""
    found: list[Group] = group(program(model).steps, [v.name for v in program(model).outputs], lambda step, name: copies)
    return [[step.operator for step in one.steps] for one in found]


CONV = {"w": np.ones((4, 4, 1, 1), np.float32)}


def test_a_chain_is_one_kernel_and_ends_at_the_next_anchor() -> None:
    model = graph(
        "(float[1,4,6,6] x) => (float[1,4,6,6] y) { a = Conv<kernel_shape = [1, 1]>(x, w) b = Relu(a) c = Sigmoid(b) "
        "d = Conv<kernel_shape = [1, 1]>(c, w) y = Tanh(d) }",
        **CONV,
    )
    assert kernels(model) == [["conv", "relu", "sigmoid"], ["conv", "tanh"]]


def test_what_is_read_twice_inside_one_kernel_is_fused() -> None:
    body = "{ a = Conv<kernel_shape = [1, 1]>(x, w) b = Sigmoid(a) y = Mul(a, b) }"
    model = graph(f"(float[1,4,6,6] x) => (float[1,4,6,6] y) {body}", **CONV)
    assert kernels(model) == [["conv", "sigmoid", "mul"]]


def test_one_anchor_a_kernel() -> None:
    model = graph(
        "(float[1,4,6,6] x) => (float[1,4,6,6] y) { a = Conv<kernel_shape = [1, 1]>(x, w) b = Conv<kernel_shape = [1, 1]>(x, v) "
        "y = Add(a, b) }",
        **CONV, v=np.full((4, 4, 1, 1), 2, np.float32),
    )  # fmt: skip
    assert kernels(model) == [["conv"], ["conv", "add"]]


def test_outputs_are_stored() -> None:
    model = graph("(float[1,4] x) => (float[1,4] a, float[1,4] y) { a = Relu(x) y = Tanh(a) }")
    assert kernels(model) == [["relu"], ["tanh"]]


def test_nothing_is_recomputed_for_a_larger_reader() -> None:
    text = "(float[1,4,1,1] s, float[1,4,6,6] x) => (float[1,4,6,6] y) {{ a = {}(s) y = Mul(x, a) }}"
    assert kernels(graph(text.format("Sigmoid"))) == [["sigmoid"], ["mul"]]


def test_before_an_anchor_only_where_it_copies() -> None:
    model = graph(
        "(float[1,6,6,4] x) => (float[1,4,6,6] y) { t = Transpose<perm = [0, 3, 1, 2]>(x) y = Conv<kernel_shape = [1, 1]>(t, w) }", **CONV
    )
    assert kernels(model) == [["transpose"], ["conv"]]
    assert kernels(model, copies=True) == [["transpose", "conv"]]


def test_behind_the_anchor_rather_than_before_the_next() -> None:
    model = graph(
        "(float[1,4,6,6] x) => (float[1,4,6,6] y) { a = Conv<kernel_shape = [1, 1]>(x, w) b = Relu(a) c = Tanh(b) "
        "y = Conv<kernel_shape = [1, 1]>(c, w) }",
        **CONV,
    )
    assert kernels(model, copies=True) == [["conv", "relu", "tanh"], ["conv"]]


def test_what_the_copy_and_the_result_both_read_is_stored() -> None:
    model = graph("(float[1,4,6,6] x) => (float[1,4,6,6] y) { t = Relu(x) a = Conv<kernel_shape = [1, 1]>(t, w) y = Add(a, t) }", **CONV)
    assert kernels(model, copies=True) == [["relu"], ["conv", "add"]]


def test_long_chains_are_cut() -> None:
    body = " ".join(f"a{i + 1} = {'Relu' if i % 2 else 'Neg'}(a{i})" for i in range(2 * LIMIT))
    model = graph(f"(float[1,4] a0) => (float[1,4] a{2 * LIMIT}) {{ {body} }}")
    assert max(map(len, kernels(model))) == LIMIT


def values_without_a_kernel(model: Model) -> dict[str, tuple[str, int]]:
    """By name: whose buffer they lie in, and at which byte."""
    steps = program(model)
    groups = group(steps.steps, [v.name for v in steps.outputs], lambda step, name: False, views.may_join_in_place)
    found, idle = views.find(groups, layouts(groups, steps, Machine(512, 32, 1)), steps)
    assert all(len(one.steps) == 1 for one in idle)
    return {name: views.resolve(name, found) for name in found}


JOINED = (
    "(float[{n},16,6,6] x) => (float[{n},48,6,6] y) {{ a = Relu(x) b = Tanh(x) c = Concat<axis = 1>(a, b) d = Abs(a) "
    "e = Concat<axis = 1>(c, d) y = Neg(e) }}"
)


def test_concats_are_written_in_place_and_nest() -> None:
    size = 16 * 6 * 6 * 4
    assert values_without_a_kernel(graph(JOINED.format(n=1))) == {"a": ("e", 0), "b": ("e", size), "c": ("e", 0), "d": ("e", 2 * size)}


def test_with_several_samples_operands_are_not_next_to_one_another() -> None:
    assert values_without_a_kernel(graph(JOINED.format(n=2))) == {}


def test_a_reshape_is_the_same_bytes() -> None:
    model = graph("(float[2,8] x) => (float[4,4] y) { a = Softmax(x) b = Reshape(a, s) y = MatMul(b, w) }",
                  s=np.asarray([4, 4]), w=np.eye(4, dtype=np.float32))  # fmt: skip
    assert values_without_a_kernel(model) == {"b": ("a", 0)}


def test_an_operand_is_written_to_one_place_only() -> None:
    model = graph("(float[1,16] x) => (float[1,32] y, float[1,32] z) { a = Relu(x) b = Tanh(x) c = Concat<axis = 1>(a, b) "
                  "d = Concat<axis = 1>(b, a) y = Neg(c) z = Abs(d) }")  # fmt: skip
    assert values_without_a_kernel(model) == {"a": ("c", 0), "b": ("c", 64)}


@given(st.lists(st.tuples(st.integers(1, 4000), st.integers(0, 30), st.integers(0, 10)), max_size=30))
def test_values_alive_together_never_share_bytes(sizes: list[tuple[int, int, int]]) -> None:
    lives = [Life(f"v{i}", nbytes, first, first + length) for i, (nbytes, first, length) in enumerate(sizes)]
    offsets, size = plan(lives)
    for life in lives:
        assert offsets[life.name] % ALIGNMENT == 0
        assert offsets[life.name] + life.nbytes <= size
        for other in lives:
            together = life.first <= other.last and other.first <= life.last
            if other is not life and together:
                first, second = sorted((life, other), key=lambda one: offsets[one.name])
                assert offsets[first.name] + aligned(first.nbytes) <= offsets[second.name]


def test_the_arena_reuses_bytes() -> None:
    _, size = plan([Life(f"v{i}", 1000, i, i + 1) for i in range(50)])
    assert size == 2 * aligned(1000)
