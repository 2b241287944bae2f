"""Quantized transformers, every operation of them in integers: products, tables, averages, the softmax."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from transformer import transformer

import gatewright as gw
from gatewright.frontend.integer import plan
from gatewright.frontend.reference import Reference

pytest.importorskip("jax", reason="the TPU's emulator needs jax")


@pytest.mark.slow
@pytest.mark.parametrize("shape", ["bert", "gpt"])
def test_a_quantized_transformer_is_equal_to_the_reference(shape: str, tmp_path: Path) -> None:
    model, feeds = transformer(shape, samples=4)
    quantized = gw.transform(model, "fuse,quantize{bits=8}", gw.Dataset(feeds))
    assert "softmax" in {op.kind for op in plan(quantized).integer_ops}
    wanted = Reference(quantized).run(feeds)
    with gw.compile(quantized, "tpu:v5e{aot=none}", out=tmp_path / "a").load() as executor:
        got = executor.run(feeds)
    for name, array in wanted.items():
        assert len(np.unique(array)) > 20
        assert np.array_equal(got[name], array)
