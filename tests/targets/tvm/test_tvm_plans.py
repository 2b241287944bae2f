"""Fusion and the arena: no TVM needed, only who reads whom and who lives when."""

from __future__ import annotations

import numpy as np
from graphs import graph
from hypothesis import given
from hypothesis import strategies as st

from gatewright.frontend.model import Model
from gatewright.targets.tvm.fusion import LIMIT, Group, group
from gatewright.targets.tvm.memory import ALIGNMENT, Life, aligned, plan
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


def test_what_the_copy_and_the_result_both_read_is_stored() -> None:
    model = graph("(float[1,4,6,6] x) => (float[1,4,6,6] y) { t = Relu(x) a = Conv<kernel_shape = [1, 1]>(t, w) y = Add(a, t) }", **CONV)
    assert kernels(model, copies=True) == [["relu"], ["conv", "add"]]


def test_long_chains_are_cut() -> None:
    body = " ".join(f"a{i + 1} = {'Relu' if i % 2 else 'Tanh'}(a{i})" for i in range(2 * LIMIT))
    model = graph(f"(float[1,4] a0) => (float[1,4] a{2 * LIMIT}) {{ {body} }}")
    assert max(map(len, kernels(model))) == LIMIT


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
