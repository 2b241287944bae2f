"""Weights of few bits on the CPU target: packed in memory for products of few rows, float32 for others, the reference's result in both."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from by_kernel import MACHINE
from compiling import Compile
from graphs import graph

from gatewright.frontend.model import Model
from gatewright.frontend.reference import Reference
from gatewright.passes.base import PassContext
from gatewright.passes.pipeline import Pipeline
from gatewright.targets.tvm import codegen
from gatewright.targets.tvm.few_bits import FewBits, Origin
from gatewright.targets.tvm.kernel import Policy
from gatewright.targets.tvm.steps import program

DEPTH, COLUMNS = 256, 264
"""Large enough to stay packed, and columns that no panel divides."""


def product(rows: int, pipeline: str, depth: int = DEPTH) -> Model:
    """A product with bias, its weights rounded by ``pipeline``."""
    rng = np.random.default_rng(3)
    w, b = rng.normal(size=(depth, COLUMNS)).astype(np.float32), rng.normal(size=COLUMNS).astype(np.float32)
    body = f"(float[{rows},{depth}] x) => (float[{rows},{COLUMNS}] y) {{ p = MatMul(x, w) y = Add(p, b) }}"
    return Pipeline.parse(pipeline).run(graph(body, w=w, b=b), PassContext())


def error(model: Model, executor: Any) -> float:
    x = {"x": np.random.default_rng(1).normal(size=model.inputs[0].shape).astype(np.float32)}
    wanted = Reference(model).run(x)["y"]
    return float(np.abs(executor.run(x)["y"] - wanted).max() / np.abs(wanted).max())


def stored(model: Model) -> int:
    """Bytes of the constants that its kernels read."""
    made = codegen.generate(codegen.Graph.of(program(model), MACHINE), Policy(), lambda text: None)
    return sum(array.nbytes for array in made.constants)


WAYS = {
    "rows": "nearest{group=32}", "blocks": "nearest{group=32,store=blocks}", "channel": "nearest", "bytes": "nearest{bits=8,group=64}",
}  # fmt: skip


@pytest.mark.parametrize("way", WAYS)
def test_weights_stay_packed_and_the_product_equals_the_reference(way: str, compiled: Compile) -> None:
    model = product(3 if way == "blocks" else 1, WAYS[way])
    # 4 bits, or 8, an eighth of a scale or less for each, 8 columns that fill the last panel, and the bias.
    assert stored(model) < (1.3 if way == "bytes" else 0.8) * DEPTH * COLUMNS
    assert error(model, compiled(model)) < 1e-5


def test_rows_that_have_to_be_copied_first(compiled: Compile) -> None:
    w = np.random.default_rng(3).normal(size=(DEPTH, COLUMNS)).astype(np.float32)
    text = f"(float[{DEPTH},2] x) => (float[2,{COLUMNS}] y) {{ t = Transpose<perm = [1, 0]>(x) y = MatMul(t, w) }}"
    model = Pipeline.parse(WAYS["rows"]).run(graph(text, w=w), PassContext())
    assert stored(model) < 0.8 * DEPTH * COLUMNS
    assert error(model, compiled(model)) < 1e-5


def test_products_of_many_rows_and_small_ones_read_float_weights(compiled: Compile) -> None:
    for model in (product(8, WAYS["blocks"]), product(1, WAYS["rows"], depth=32)):
        assert stored(model) >= 4 * model.inputs[0].shape[1] * COLUMNS
        assert error(model, compiled(model)) < 1e-5


def test_the_report_says_which() -> None:
    told = program(product(1, WAYS["blocks"])).notes + program(product(8, WAYS["blocks"])).notes
    assert "1 read the integers as stored, 0 (" in told[0]
    assert "0 read the integers as stored, 1 (" in told[1]
    assert program(product(1, "fold")).notes == ()


def test_a_scale_that_changes_too_often_is_no_group() -> None:
    dense, integers = np.ones((64, 8), np.float32), np.ones((64, 8), np.int8)
    often = np.repeat(np.arange(1, 9, dtype=np.float32), 8)[:, None] * dense
    assert FewBits.of(Origin(dense, integers, often)) is None
    seldom = FewBits.of(Origin(dense, integers, np.repeat(np.float32([1, 2]), 32)[:, None] * dense))
    assert seldom is not None
    assert (seldom.group, seldom.bits, seldom.scales.shape) == (32, 4, (2, 8))
    wide = FewBits.of(Origin(dense, integers * 8, dense))
    assert wide is not None
    assert wide.bits == 8


def test_zero_points_and_what_is_not_folded(compiled: Compile) -> None:
    """Unsigned integers around 8 pack as signed ones; of a blocked scale that is no constant the block is looked up."""
    rng = np.random.default_rng(5)
    q, s = rng.integers(0, 16, (DEPTH, COLUMNS)).astype(np.uint8), rng.uniform(0.1, 1, (DEPTH // 64, COLUMNS)).astype(np.float32)
    text = f"(float[1,{DEPTH}] x) => (float[1,{COLUMNS}] y) {{ w = DequantizeLinear<axis = 0, block_size = 64>(q, s, z) y = MatMul(x, w) }}"
    model = graph(text, q=q, s=s, z=np.full(s.shape, 8, np.uint8))
    assert stored(model) < 0.8 * DEPTH * COLUMNS
    assert error(model, compiled(model)) < 1e-5
    moving = graph("(int8[6,5] q, float[2,5] s) => (float[6,5] y) { y = DequantizeLinear<axis = 0, block_size = 3>(q, s) }")
    x = {"q": rng.integers(-128, 128, (6, 5)).astype(np.int8), "s": rng.uniform(0.1, 1, (2, 5)).astype(np.float32)}
    np.testing.assert_array_equal(compiled(moving).run(x)["y"], Reference(moving).run(x)["y"])


def test_a_planted_bug_is_seen(compiled: Compile, monkeypatch: pytest.MonkeyPatch) -> None:
    """Scales of the wrong group, and nibbles in the wrong order."""
    model = product(1, WAYS["rows"])
    real = FewBits.of.__func__  # type: ignore[attr-defined]
    for change in (lambda f: replace(f, scales=f.scales[::-1]), lambda f: replace(f, integers=f.integers[np.arange(DEPTH) ^ 1])):

        def planted(cls: Any, origin: Origin, change: Any = change) -> FewBits | None:
            found = real(cls, origin)
            return None if found is None else change(found)

        monkeypatch.setattr(FewBits, "of", classmethod(planted))
        assert error(model, compiled(model)) > 1e-2
