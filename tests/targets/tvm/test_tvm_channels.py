"""Channels in another order between kernels: shuffles are no work, groups are grown, and every result is what it was."""

from __future__ import annotations

import numpy as np
import pytest
from compiling import Compile
from graphs import Array, graph
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gatewright.frontend.model import Model
from gatewright.frontend.reference import Reference
from gatewright.targets.tvm import channels
from gatewright.targets.tvm.channels import ordered
from gatewright.targets.tvm.fusion import group
from gatewright.targets.tvm.placement import copies_input
from gatewright.targets.tvm.steps import program

SHAPES = {"cut": np.asarray([1, 4, 10, 6, 6]), "whole": np.asarray([1, 40, 6, 6])}


def constants(random: np.random.Generator) -> dict[str, Array]:
    """Of a shuffled unit of 40 channels in 4 groups: grouped, depthwise and grouped convolution, and a normalization."""
    sizes = {"w": (40, 10, 1, 1), "d": (40, 1, 3, 3), "v": (40, 10, 1, 1), "b": (40,), "s": (40,), "m": (40,), "p": (1, 40, 1, 1)}
    found: dict[str, Array] = {name: random.standard_normal(size).astype(np.float32) for name, size in sizes.items()}
    return {**found, **SHAPES, "q": (random.random(40) + 0.5).astype(np.float32)}


UNIT = (
    "a = Conv<group = 4, kernel_shape = [1, 1]>(x, w, b) b1 = Relu(a) c = Reshape(b1, cut) e = Transpose<perm = [0, 2, 1, 3, 4]>(c) "
    "f = Reshape(e, whole) g = Conv<group = 40, kernel_shape = [3, 3], pads = [1, 1, 1, 1]>(f, d) h = BatchNormalization(g, s, b, m, q) "
    "i = Conv<group = 4, kernel_shape = [1, 1]>(h, v, b)"
)


def unit(rest: str, shape: str = "1,40,6,6") -> Model:
    return graph(f"(float[1,40,6,6] x) => (float[{shape}] y) {{ {UNIT} {rest} }}", **constants(np.random.default_rng(0)))


def operators(model: Model) -> list[list[str]]:
    found = ordered(program(model))
    return [[s.operator for s in one.steps] for one in group(found.steps, [v.name for v in found.outputs], copies_input)]


def difference(compiled: Compile, model: Model) -> float:
    x = np.random.default_rng(1).standard_normal(model.inputs[0].shape).astype(np.float32)
    wanted, got = Reference(model).run({"x": x})["y"], compiled(model).run({"x": x})["y"]
    assert got.shape == wanted.shape
    return float(np.max(np.abs(got - wanted)) / np.max(np.abs(wanted)))


def test_a_shuffle_is_no_kernel_and_no_movement() -> None:
    # The second convolution looks up where its channels are; only the result is put back in ONNX's order.
    assert operators(unit("j = Add(i, i) y = Relu(j)")) == [
        ["conv", "relu"], ["conv", "batchnormalization"], ["gather", "conv"], ["add", "relu", "gather"],
    ]  # fmt: skip


ENDS = {
    "residual": "j = Add(i, b1) k = Conv<group = 4, kernel_shape = [1, 1]>(j, w) l = Add(k, j) y = Relu(l)",
    "constant of every channel": "j = Mul(i, p) y = Relu(j)",
    "dense": "y = Conv<kernel_shape = [1, 1]>(i, u)",
    "pool": "y = MaxPool<kernel_shape = [2, 2], strides = [2, 2]>(i)",
    "joined": "j = Concat<axis = 1>(i, x) k = Relu(j) y = Conv<kernel_shape = [1, 1]>(k, uu)",
    "an operator that knows no order": "y = Softmax<axis = 1>(i)",
    "scaled by channel": "j = GlobalAveragePool(i) k = Sigmoid(j) y = Mul(i, k)",
    "infinite where there is no channel": "j = Abs(i) k = Log(j) y = Conv<kernel_shape = [1, 1]>(k, u)",
}


@pytest.mark.parametrize("end", ENDS)
def test_every_reader_gets_its_channels(compiled: Compile, end: str) -> None:
    random = np.random.default_rng(2)
    more = {"u": random.standard_normal((40, 40, 1, 1)).astype(np.float32), "uu": random.standard_normal((40, 80, 1, 1)).astype(np.float32)}
    shape = "1,40,3,3" if end == "pool" else "1,40,6,6"
    text = f"(float[1,40,6,6] x) => (float[{shape}] y) {{ {UNIT} {ENDS[end]} }}"
    used = {name: array for name, array in more.items() if f", {name})" in text}
    assert difference(compiled, graph(text, **constants(np.random.default_rng(0)), **used)) < 2e-5


def test_a_wrong_order_is_seen(compiled: Compile, monkeypatch: pytest.MonkeyPatch) -> None:
    right = channels._taken
    monkeypatch.setattr(channels, "_taken", lambda array, order, *rest: right(array, order[::-1], *rest))
    assert difference(compiled, unit("y = Relu(i)")) > 0.1


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(data=st.data())
def test_random_chains_of_shuffles(compiled: Compile, data: st.DataObject) -> None:
    """Convolutions of any groups with shuffles of any cut between them."""
    channels_, seed = 24, data.draw(st.integers(0, 99))
    random = np.random.default_rng(seed)
    text, name, given_ = "", "x", {}
    for i in range(data.draw(st.integers(1, 4))):
        groups = data.draw(st.sampled_from([1, 2, 3, 4, 24]))
        given_[f"w{i}"] = random.standard_normal((channels_, channels_ // groups, 1, 1)).astype(np.float32)
        text += f"c{i} = Conv<group = {groups}, kernel_shape = [1, 1]>({name}, w{i}) "
        name = f"c{i}"
        if cut := data.draw(st.sampled_from([0, 2, 3, 4, 6, 8])):
            given_ |= {f"cut{i}": np.asarray([1, cut, channels_ // cut, 3, 5]), f"whole{i}": np.asarray([1, channels_, 3, 5])}
            text += f"r{i} = Reshape({name}, cut{i}) t{i} = Transpose<perm = [0, 2, 1, 3, 4]>(r{i}) s{i} = Reshape(t{i}, whole{i}) "
            name = f"s{i}"
    model = graph(f"(float[1,{channels_},3,5] x) => (float[1,{channels_},3,5] y) {{ {text} y = Relu({name}) }}", **given_)
    assert difference(compiled, model) < 2e-5
