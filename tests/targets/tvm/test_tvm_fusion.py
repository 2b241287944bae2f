"""Passes over rows in one kernel: spelled out normalizations against the reference, reductions in vectors, a planted bug."""

from __future__ import annotations

import numpy as np
import pytest
from compiling import Compile
from graphs import Array, graph

from gatewright.frontend.model import Model
from gatewright.frontend.reference import Reference
from gatewright.targets.tvm import codegen
from gatewright.targets.tvm.kernel import Policy
from gatewright.targets.tvm.machine import Machine
from gatewright.targets.tvm.ops import matmul, rows
from gatewright.targets.tvm.schedules.common import vector_length
from gatewright.targets.tvm.steps import program

NORM = (
    "m = ReduceMean(x, a) c = Sub(x, m) p = Pow(c, two) v = ReduceMean(p, a) e = Add(v, eps) q = Sqrt(e) d = Div(c, q) "
    "g = Mul(d, s) y = Add(g, b)"
)


def kernels(model: Model) -> list[list[str]]:
    """Operators of every kernel that runs; none of them refused by TVM."""
    module = codegen.generate(codegen.Graph.of(program(model), Machine(512, 32, 2)), Policy(), lambda label: None)
    assert not module.refused
    return [[step.operator for step in call.group.steps] for call in module.calls]


def difference(compiled: Compile, model: Model) -> float:
    random = np.random.default_rng(1)
    feeds: dict[str, Array] = {i.name: random.standard_normal(i.shape).astype(i.dtype) for i in model.inputs}
    wanted, got = Reference(model).run(feeds), compiled(model).run(feeds)
    return max(float(np.max(np.abs(got[k] - v)) / np.max(np.abs(v))) for k, v in wanted.items())


def norm(shape: str, axis: int, width: tuple[int, ...], body: str = NORM) -> Model:
    random = np.random.default_rng(0)
    return graph(
        f"(float[{shape}] x) => (float[{shape}] y) {{ {body} }}", a=np.asarray([axis]), two=np.float32(2), eps=np.float32(1e-5),
        s=random.standard_normal(width).astype(np.float32), b=random.standard_normal(width).astype(np.float32),
    )  # fmt: skip


SHAPES = {
    "whole vectors": ("2,5,768", -1, (768,)), "a rest": ("1,9,100", -1, (100,)), "short": ("9,7", -1, (7,)), "prime": ("9,37", -1, (37,)),
    "across": ("1,40,48", 1, (1, 40, 1)), "across few": ("2,40,3", 1, (1, 40, 1)), "one row": ("1,200", -1, (200,)),
}  # fmt: skip


@pytest.mark.parametrize("case", SHAPES)
def test_a_spelled_out_normalization_is_one_kernel(compiled: Compile, case: str) -> None:
    shape, axis, width = SHAPES[case]
    model = norm(shape, axis, width)
    assert kernels(model) == [["reducemean", "sub", "pow", "reducemean", "add", "sqrt", "div", "mul", "add"]]
    # A mean and a variance of float32, summed in another order.
    assert difference(compiled, model) < 1e-5


def test_what_comes_before_joins_unless_an_anchor_makes_it(compiled: Compile) -> None:
    body = "{ t = Tanh(x) m = ReduceMax(t, a) c = Sub(t, m) e = Exp(c) n = ReduceSum(e, a) y = Div(e, n) }"
    model = graph(f"(float[9,64] x) => (float[9,64] y) {body}", a=np.asarray([1]))
    assert kernels(model) == [["tanh", "reducemax", "sub", "exp", "reducesum", "div"]]
    assert difference(compiled, model) < 1e-5
    body = body.replace("Tanh(x)", "MatMul(x, w)")
    model = graph(f"(float[9,64] x) => (float[9,64] y) {body}", a=np.asarray([1]), w=np.eye(64, dtype=np.float32))
    assert kernels(model) == [["matmul"], ["reducemax", "sub", "exp", "reducesum", "div"]]
    assert difference(compiled, model) < 1e-5


def test_what_is_read_elsewhere_too_is_stored(compiled: Compile) -> None:
    body = "{ m = ReduceMean(x, a) c = Sub(x, m) y = Div(x, m) z = Tanh(c) }"
    model = graph(f"(float[9,64] x) => (float[9,64] y, float[9,64] z) {body}", a=np.asarray([1]))
    assert ["reducemean"] in kernels(model)
    assert difference(compiled, model) < 1e-4


@pytest.mark.parametrize(("op", "axis"), [("Softmax", -1), ("Softmax", 1), ("LogSoftmax", -1), ("LpNormalization", -1)])
@pytest.mark.parametrize("last", [3, 16, 37, 130, 257])
def test_operators_over_rows(compiled: Compile, op: str, axis: int, last: int) -> None:
    assert difference(compiled, graph(f"(float[2,35,{last}] x) => (float[2,35,{last}] y) {{ y = {op}<axis = {axis}>(x) }}")) < 1e-5


def test_a_lost_lane_is_seen(compiled: Compile, monkeypatch: pytest.MonkeyPatch) -> None:
    """Partial results are added up by pairs; without the last pair the sum is wrong, and the test above would say so."""
    add = next(iter(rows._BINARY.values()))
    dropped = iter([True])
    monkeypatch.setitem(rows._BINARY, next(iter(rows._BINARY)), lambda a, b: a if next(dropped, False) else add(a, b))
    assert difference(compiled, norm(*SHAPES["whole vectors"])) > 1e-3


LENGTHS = [(768, 16, 16), (1000, 16, 40), (7, 16, 1), (28, 16, 28), (257, 16, 1), (12, 8, 12)]


@pytest.mark.parametrize(("number", "lanes", "expected"), LENGTHS)
def test_vector_length(number: int, lanes: int, expected: int) -> None:
    found = vector_length(number, lanes)
    assert number % found == 0
    assert found <= 4 * lanes
    full = [n / (-(-n // lanes) * lanes) for n in (found, expected)]
    assert full[0] >= full[1] or found == expected


@pytest.mark.parametrize("rows_", [9, 16])
@pytest.mark.parametrize("candidate", range(6))
def test_every_block_of_a_product_is_right(compiled: Compile, monkeypatch: pytest.MonkeyPatch, candidate: int, rows_: int) -> None:
    found = matmul.blocks(rows_, 192, "float32", Machine(512, 32, 2))
    if candidate >= len(found):
        pytest.skip("there are fewer candidates")
    monkeypatch.setattr(matmul, "blocks", lambda *problem: (found[candidate],))
    random = np.random.default_rng(0)
    model = graph(
        f"(float[2,{rows_},40] x, float[2,40,192] z) => (float[2,{rows_},192] y) {{ a = MatMul(x, w) b = MatMul(x, z) c = Add(a, v) "
        "d = Relu(c) y = Add(b, d) }",
        w=random.standard_normal((40, 192)).astype(np.float32), v=random.standard_normal(192).astype(np.float32),
    )  # fmt: skip
    assert difference(compiled, model) < 1e-5


def test_blocks_fit_the_registers_and_the_first_leaves_no_rest() -> None:
    for bits, registers in ((128, 16), (128, 32), (256, 16), (512, 32)):
        machine = Machine(bits, registers, 2)
        lanes = machine.lanes("float32")
        for size in (1, 2, 3, 5, 64, 128, 197):
            found = matmul.blocks(size, 768, "float32", machine)
            assert len(found) == len(set(found))
            assert all(tile * width // lanes < registers for tile, width in (choice.blocks for choice in found))
            assert size % found[0].blocks[0] == 0 or size in (5, 197)


def test_functions_of_functions_are_kernels_of_two() -> None:
    """Three in one kernel took TVM's generator minutes."""
    model = graph("(float[1,8] x) => (float[1,8] y) { a = Tanh(x) b = Mish(a) c = Neg(b) d = Sigmoid(c) e = Tanh(d) y = Exp(e) }")
    module = codegen.generate(codegen.Graph.of(program(model), Machine(512, 32, 2)), Policy(), lambda label: None)
    kernels = [[step.operator for step in call.group.steps] for call in module.calls]
    assert kernels == [["tanh"], ["mish", "neg", "sigmoid"], ["tanh", "exp"]]
