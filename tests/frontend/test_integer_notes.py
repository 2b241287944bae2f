"""What a plan says of float operators among its integers."""

from __future__ import annotations

import numpy as np
import pytest
from graphs import graph, scale

import gatewright as gw
from gatewright.frontend.integer import plan

_NETWORK = """(float[1,4,8] x) => (float[1,4,8] y) {{
    q = QuantizeLinear(x, sx, z)
    d = DequantizeLinear(q, sx, z)
    {between}
    e = QuantizeLinear({last}, sy, z)
    y = DequantizeLinear(e, sy, z)
}}"""
_ONES = {"w": np.linspace(0.5, 1.5, 8).astype(np.float32)}


@pytest.mark.parametrize(
    ("between", "last", "named"),
    [
        ("n = LayerNormalization(d, w)", "n", 1),
        ("n = LayerNormalization(d, w) m = LayerNormalization(n, w)", "m", 2),
        ("n = LayerNormalization(d, w) a = Mul(n, n) r = Transpose<perm=[0,1,2]>(a)", "r", 1),
        ("r = Relu(d)", "r", 0),
        ("s = Softmax(d)", "s", 0),
    ],
)
def test_float_results_in_front_of_a_quantizer_are_told(between: str, last: str, named: int) -> None:
    """A layer normalization's last digits differ between machines; a Relu's do not, and a softmax of integers has an integer meaning."""
    model = graph(_NETWORK.format(between=between, last=last), sx=scale(0.05), sy=scale(0.03), z=np.asarray(0, np.int8), **_ONES)
    found = plan(model)
    assert len(found.floats_before_integers) == named
    told = [note for note in gw.check(model, "cpu").notes if "in front of a quantizer" in note]
    assert len(told) == (named > 0)
    if named == 2:
        assert "and 1 more" in told[0]


def test_what_is_float_behind_the_integers_is_no_matter() -> None:
    model = graph(
        "(float[1,4,8] x) => (float[1,4,8] y) { q = QuantizeLinear(x, sx, z) d = DequantizeLinear(q, sx, z) y = LayerNormalization(d, w) }",
        sx=scale(0.05), z=np.asarray(0, np.int8), **_ONES,
    )  # fmt: skip
    assert plan(model).floats_before_integers == ()
