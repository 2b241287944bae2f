"""Depthwise strips and transposed convolutions: every candidate, odd shapes, against ONNX Runtime."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from by_kernel import MACHINE, run
from compiling import Compile
from graphs import Array, graph

from gatewright.frontend.model import Model
from gatewright.frontend.ortrun import OrtSession
from gatewright.targets.tvm.kernel import Choice, Policy
from gatewright.targets.tvm.machine import Machine
from gatewright.targets.tvm.ops import convolution
from gatewright.targets.tvm.schedules.convolution import Tile, near_rows
from gatewright.targets.tvm.schedules.depthwise import Strip, strips

TRANSPOSED = [
    # channels, filters, kernel, stride, pads, output padding, groups, size
    (24, 1, 2, 2, (0, 0, 0, 0), 0, 1, 12), (24, 24, 2, 2, (0, 0, 0, 0), 0, 1, 5), (16, 32, 3, 2, (1, 1, 1, 1), 1, 1, 9),
    (8, 12, 4, 2, (1, 1, 1, 1), 0, 2, 7), (16, 8, 3, 1, (1, 1, 1, 1), 0, 1, 8), (4, 6, 5, 3, (2, 1, 2, 1), 0, 2, 6),
    (8, 8, 2, 3, (0, 0, 0, 0), 0, 1, 5), (8, 8, 5, 2, (4, 4, 4, 4), 0, 1, 9), (8, 8, 3, 2, (4, 4, 4, 4), 0, 1, 9),
]  # fmt: skip


def between(body: str, channels: int, filters: int, size: int, weight: Array, bias: Array) -> Model:
    """``body`` computes c from b, between two convolutions, so that blocked layouts come in and go out."""
    random = np.random.default_rng(7)
    return graph(
        f"(float[2,{channels},{size},{size}] x) => (float[N,C,H,W] y) {{ a = Conv<kernel_shape = [1, 1]>(x, u) b = Relu(a) "
        f"{body} d = Sigmoid(c) y = Conv<kernel_shape = [1, 1]>(d, v) }}",
        u=random.standard_normal((channels, channels, 1, 1)).astype(np.float32) / 4, w=weight, bias=bias,
        v=random.standard_normal((3, filters, 1, 1)).astype(np.float32) / 4,
    )  # fmt: skip


def error(compiled: Compile, model: Model) -> float:
    """Largest difference to ONNX Runtime, relative to the largest value."""
    random = np.random.default_rng(8)
    feeds = {i.name: random.standard_normal(i.shape).astype(np.float32) for i in model.inputs}
    wanted, got = OrtSession(model).run(feeds)["y"], compiled(model).run(feeds)["y"]
    assert got.shape == wanted.shape
    return float(np.abs(got - wanted).max() / np.abs(wanted).max())


def transposed(channels: int, filters: int, kernel: int, stride: int, pads: Sequence[int], extra: int, groups: int, size: int) -> Model:
    random = np.random.default_rng(9)
    body = (
        f"c = ConvTranspose<kernel_shape = [{kernel}, {kernel}], strides = [{stride}, {stride}], pads = {list(pads)}, group = {groups}, "
        f"output_padding = [{extra}, {extra}]>(b, w, bias)"
    )
    weight = random.standard_normal((channels, filters // groups, kernel, kernel)).astype(np.float32)
    return between(body, channels, filters, size, weight, random.standard_normal(filters).astype(np.float32))


@pytest.mark.parametrize("case", TRANSPOSED, ids=str)
def test_transposed(compiled: Compile, case: tuple[int, int, int, int, tuple[int, ...], int, int, int]) -> None:
    assert error(compiled, transposed(*case)) < 1e-5


def test_a_planted_bug_in_the_phases_is_caught(compiled: Compile, monkeypatch: pytest.MonkeyPatch) -> None:
    right = convolution._phases
    monkeypatch.setattr(convolution, "_phases", lambda *arguments: np.ascontiguousarray(right(*arguments)[::-1]))
    assert error(compiled, transposed(*TRANSPOSED[1])) > 1e-2


def depthwise(channels: int, size: int, kernel: int, stride: int) -> Model:
    random = np.random.default_rng(10)
    pad = kernel // 2
    body = (
        f"c = Conv<kernel_shape = [{kernel}, {kernel}], strides = [{stride}, {stride}], pads = {[pad] * 4}, group = {channels}>(b, w, bias)"
    )
    weight = random.standard_normal((channels, 1, kernel, kernel)).astype(np.float32)
    return between(body, channels, channels, size, weight, random.standard_normal(channels).astype(np.float32))


FEW = [(1, 32, 11, 3, 1), (2, 8, 16, 5, 1), (3, 24, 13, 3, 2), (1, 16, 8, 1, 1), (1, 16, 9, 7, 2)]


@pytest.mark.parametrize(("filters", "channels", "size", "kernel", "stride"), FEW)
def test_few_filters(compiled: Compile, filters: int, channels: int, size: int, kernel: int, stride: int) -> None:
    random = np.random.default_rng(11)
    pad = kernel // 2
    body = f"c = Conv<kernel_shape = [{kernel}, {kernel}], strides = [{stride}, {stride}], pads = {[pad] * 4}>(b, w, bias)"
    weight = random.standard_normal((filters, channels, kernel, kernel)).astype(np.float32)
    assert error(compiled, between(body, channels, filters, size, weight, random.standard_normal(filters).astype(np.float32))) < 1e-5


STRIPS = [(1, 1, 1), (3, 1, 5), (4, 2, 3), (6, 3, 2), (64, 4, 3), (5, 2, 4)]


@pytest.mark.parametrize("blocks", STRIPS, ids=str)
@pytest.mark.parametrize("case", [(16, 13, 3, 1), (24, 11, 5, 2)], ids=str)
def test_depthwise_strips(blocks: tuple[int, ...], case: tuple[int, int, int, int]) -> None:
    """Also those that divide nothing."""
    assert chosen(depthwise(*case), Choice("depthwise", blocks)) < 1e-5


def chosen(model: Model, choice: Choice, machine: Machine = MACHINE) -> float:
    """The error where every problem that offers the choice's algorithm is solved by it."""
    asked: list[str] = []

    def choose(problem: str, candidates: Sequence[Choice]) -> Choice:
        if choice.algorithm not in {c.algorithm for c in candidates}:
            return candidates[0]
        asked.append(problem)
        return choice

    random = np.random.default_rng(8)
    feeds = {i.name: random.standard_normal(i.shape).astype(np.float32) for i in model.inputs}
    wanted, (got, _) = OrtSession(model).run(feeds)["y"], run(model, Policy(strict=True, choose=choose), feeds, machine)
    assert asked
    return float(np.abs(got - wanted).max() / np.abs(wanted).max())


@pytest.mark.parametrize("blocks", [(1, 1), (1, 6), (3, 2), (2, 5)], ids=str)
@pytest.mark.parametrize("l2_bytes", [1 << 20, 1 << 15], ids=["copied beforehand", "copied by tasks"])
@pytest.mark.parametrize(("kernel", "stride"), [(3, 1), (3, 2), (5, 2)])
def test_direct_tiles(blocks: tuple[int, int], l2_bytes: int, kernel: int, stride: int) -> None:
    random = np.random.default_rng(12)
    pads = [kernel // 2] * 4
    size = 41
    small = graph(
        f"(float[2,3,{size},{size}] x) => (float[N,C,H,W] y) {{ c = Conv<kernel_shape = [{kernel}, {kernel}], "
        f"strides = [{stride}, {stride}], pads = {pads}>(x, w, bias) y = Relu(c) }}",
        w=random.standard_normal((8, 3, kernel, kernel)).astype(np.float32), bias=random.standard_normal(8).astype(np.float32),
    )  # fmt: skip
    assert chosen(small, Choice("direct", blocks), Machine(256, 16, 2, l2_bytes)) < 1e-5


def test_large_inputs_are_copied_by_tasks() -> None:
    machine, tile = Machine(512, 32, 2, 1 << 20), Tile(1, 14)
    assert near_rows(machine, tile, 1, 3, (112, 112), (7, 7), (2, 2), 64) > 0
    assert near_rows(machine, tile, 1, 3, (16, 16), (3, 3), (2, 2), 16) == 0
    assert near_rows(machine, tile, 1, 512, (56, 56), (3, 3), (2, 2), 512) == 0


@pytest.mark.parametrize("machine", [Machine(512, 32, 2), Machine(256, 16, 2), Machine(128, 32, 4)], ids=str)
def test_strips_fit_the_registers_and_share_out_the_work(machine: Machine) -> None:
    def fits(strip: Strip) -> bool:
        return strip.rows * strip.columns * max(1, 16 // machine.lanes("float32")) <= machine.vector_registers - 4

    for shape in ((1, 1, 112, 112, 16), (1, 16, 14, 14, 16), (2, 4, 7, 7, 16), (1, 8, 1, 40, 16)):
        found = strips(shape, (3, 3), (1, 1), "float32", machine)
        assert found
        assert all(map(fits, found))
        # One block of channels has to be cut into rows, or one core does it all.
        assert shape[1] > 1 or -(-shape[2] // found[0].task) >= machine.cores
