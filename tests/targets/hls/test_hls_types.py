"""Fixed-point types, ports and reuse factors: small exact arithmetic."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gatewright.targets.hls.builder import channels_last, exact_type, image, periodic
from gatewright.targets.hls.network import Fixed, Layer, Network, Port
from gatewright.targets.hls.sizing import valid_factors


@given(st.integers(-(2**40), 2**40), st.integers(0, 2**40), st.integers(-30, 30))
def test_the_narrowest_type_holds_its_range_and_one_bit_less_does_not(lo: int, reach: int, exponent: int) -> None:
    hi = lo + reach
    type_ = Fixed.holding(lo, hi, exponent)
    assert type_.exponent == exponent
    assert type_.bounds[0] <= lo
    assert hi <= type_.bounds[1]
    if type_.width > 1:
        narrower = Fixed(type_.signed, type_.width - 1, type_.integer - 1)
        assert lo < narrower.bounds[0] or hi > narrower.bounds[1]


@pytest.mark.parametrize(
    ("type_", "text"),
    [
        (Fixed.holding(0, 255, -4).saturated(), "ufixed<8,4,RND_CONV,SAT>"),
        (Fixed.holding(-128, 127, 0), "fixed<8,8>"),
        (Fixed.holding(0, 1, 5), "ufixed<1,6>"),
        (Fixed.holding(-3, 3, -9), "fixed<3,-6>"),
        (Fixed.holding(0, 0, 0), "ufixed<1,1>"),
    ],
)
def test_spelling(type_: Fixed, text: str) -> None:
    assert str(type_) == text


@given(st.lists(st.integers(-(2**24), 2**24), min_size=1, max_size=5), st.integers(-60, 10))
def test_exact_type_represents_every_value(integers: list[int], exponent: int) -> None:
    values = np.ldexp(np.array(integers, np.float64), exponent)
    type_ = exact_type(values)
    steps = np.ldexp(values, -type_.exponent)
    assert np.array_equal(steps, np.rint(steps))
    assert type_.bounds[0] <= steps.min()
    assert steps.max() <= type_.bounds[1]


@given(st.integers(0, 2**16))
def test_a_port_decodes_what_it_encodes(seed: int) -> None:
    rng = np.random.default_rng(seed)
    port = Port("v", "layer", (2, 3, 4), (1, 2, 0), int(rng.integers(-9, 9)), int(rng.integers(-128, 128)), "int8", -128, 127)
    q = rng.integers(-128, 128, (5, 2, 3, 4))
    real = port.encode(q)
    assert real.shape == (5, 24)
    assert np.array_equal(port.decode(real), q)
    assert np.array_equal(np.ldexp(real, -port.exponent)[0], (q[0] - port.zero_point).transpose(1, 2, 0).reshape(-1))


def test_decoding_does_not_hide_a_fraction() -> None:
    port = Port("v", "layer", (2,), (0,), 0, 0, "int8", -128, 127)
    assert port.decode(np.array([[0.25, -0.25]])).tolist() == [[1, -1]]


def test_layouts() -> None:
    assert image((3, 4, 5)) == (4, 5, 3)
    assert image((3, 5)) == (1, 5, 3)
    assert image((3,)) == (1, 1, 3)
    assert channels_last((2, 3)).tolist() == [0, 3, 1, 4, 2, 5]
    assert periodic(np.array([1, 2, 1, 2]), 2).tolist() == [1, 2]
    assert periodic(np.array([7, 7, 7, 7]), 2).tolist() == [7]
    assert periodic(np.array([1, 2, 3, 2]), 2).tolist() == [1, 2, 3, 2]


def test_reuse_factors_stay_where_the_kernels_are_exact() -> None:
    attributes = {"filt_height": 3, "filt_width": 3, "n_chan": 2, "n_filt": 4}
    conv = Layer("c", "Conv2D", (), (4, 4, 4), {}, attributes)
    dense = Layer("d", "Dense", (), (4,), {}, {"n_in": 6, "n_out": 4})
    parallel, stream = Network((conv, dense), (), (), (), io="parallel"), Network((conv, dense), (), (), (), io="stream")
    # Above kh·kw·cin = 18 a convolution in io_parallel is silently wrong in hls4ml 1.3.0.
    assert max(valid_factors(conv, parallel)) == 18
    assert max(valid_factors(conv, stream)) == 72
    assert valid_factors(dense, parallel) == (1, 2, 3, 6, 12, 24)
    depthwise = Layer("w", "DepthwiseConv2D", (), (4, 4, 2), {}, {**attributes, "n_filt": 2})
    assert valid_factors(depthwise, parallel) == (1,)
    wide = Layer("big", "Dense", (), (1024,), {}, {"n_in": 1024, "n_out": 1024})
    assert min(valid_factors(wide, parallel)) == 256  # 4096 multipliers at most
