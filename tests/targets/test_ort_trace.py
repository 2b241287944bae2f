"""Inner tensors of a model in ONNX Runtime, under their ONNX names."""

from __future__ import annotations

import numpy as np
import pytest
from graphs import graph, scale

from gatewright.frontend.reference import Reference
from gatewright.targets.ort.target import OrtExecutor, OrtOptions

QUANTIZED = """(float[1,4] x) => (float[1,3] y) {
  xq = QuantizeLinear(x, s, z)  xd = DequantizeLinear(xq, s, z)  wd = DequantizeLinear(w, ws, wz)
  h = MatMul(xd, wd)  hq = QuantizeLinear(h, s, z)  y = DequantizeLinear(hq, s, z) }"""


@pytest.mark.parametrize("kind", [np.int8, np.int16])
def test_integers_and_floats_have_their_names(kind: type) -> None:
    rng = np.random.default_rng(0)
    weights = rng.integers(-50, 50, (4, 3)).astype(np.int8)
    model = graph(QUANTIZED, s=scale(0.25), z=kind(0), w=weights, ws=scale(0.5), wz=np.int8(0))
    feeds = {"x": rng.uniform(-2, 2, (9, 4)).astype(np.float32)}
    executor = OrtExecutor(model, OrtOptions(exact=True))
    ours, theirs = executor.trace(feeds), Reference(model).run(feeds, trace=True)
    for name in ("xq", "hq", "y"):
        np.testing.assert_array_equal(ours[name], theirs[name])
    np.testing.assert_array_equal(executor.run(feeds)["y"], ours["y"])
