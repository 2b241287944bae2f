"""Errors of outputs and of inner tensors, and where they begin."""

from __future__ import annotations

import numpy as np
import pytest
from graphs import graph, scale

from gatewright.frontend.data import Dataset
from gatewright.frontend.model import Model
from gatewright.runtime import difference
from gatewright.runtime.difference import (
    EDGE_TOLERANCE,
    FLOAT_TOLERANCE,
    exact_outputs,
    layers,
    output_error,
    reference_trace,
    sqnr_db,
    tolerance,
)
from gatewright.runtime.driver import transform
from gatewright.targets.ref.target import RefExecutor

Y = np.asarray([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]], np.float32)


def test_one_wrong_bit_is_counted_where_the_output_is_exact() -> None:
    other = Y.copy()
    other[1, 0] = np.nextafter(other[1, 0], np.float32(9))
    found = output_error({"y": other}, {"y": Y}, exact={"y"})
    assert found is not None
    assert (found.mismatching_samples, found.top1_changed) == (1, 0)
    assert 0 < found.max_abs < 1e-6
    close = output_error({"y": other}, {"y": Y})
    assert close is not None
    assert close.mismatching_samples == 0, "a float output has a tolerance"


def test_tolerance_is_relative_to_the_largest_value() -> None:
    inside, outside = Y + np.float32(5e-4), Y + np.float32(7e-4)
    assert output_error({"y": inside}, {"y": Y}).mismatching_samples == 0  # type: ignore[union-attr]
    assert output_error({"y": outside}, {"y": Y}).mismatching_samples == 3  # type: ignore[union-attr]


def test_nan_and_infinity() -> None:
    nan, inf = np.float32([[np.nan], [np.inf], [1]]), np.float32([[0], [-np.inf], [1]])
    assert output_error({"y": nan}, {"y": nan}).mismatching_samples == 0  # type: ignore[union-attr]
    found = output_error({"y": inf}, {"y": nan})
    assert found is not None
    assert found.mismatching_samples == 2


def test_outputs_are_matched_by_name_else_the_first_are() -> None:
    assert output_error({"a": Y}, {"b": Y}).mismatching_samples == 0  # type: ignore[union-attr]
    assert output_error({"a": Y}, {"b": Y[:, :1]}) is None
    found = output_error({"y": Y, "z": Y}, {"y": Y, "z": Y + 1})
    assert found is not None
    assert (found.mismatching_samples, found.max_abs) == (3, 1.0)


def test_integers_and_strings() -> None:
    assert output_error({"y": np.asarray([1, 2])}, {"y": np.asarray([1, 3])}).mismatching_samples == 1  # type: ignore[union-attr]
    words = np.asarray(["a", "b"], object)
    assert output_error({"y": words}, {"y": np.asarray(["a", "c"], object)}).mismatching_samples == 1  # type: ignore[union-attr]


def test_sqnr() -> None:
    signal = np.asarray([3.0, 4.0])
    assert sqnr_db(signal, signal) is None
    assert sqnr_db(np.asarray([3.0, 4.5]), signal) == pytest.approx(20.0)
    assert sqnr_db(np.asarray([0.0, 0.0]), signal) == pytest.approx(0.0)
    assert sqnr_db(np.asarray([1.0]), np.asarray([0.0])) < -100  # type: ignore[operator]


QUANTIZED = """(float[1,4] x) => (float[1,4] y, float[1,4] p, int8[1,4] q) {
  q = QuantizeLinear(x, s, z)  d = DequantizeLinear(q, s, z)  y = Reshape(d, to)  p = Softmax(d) }"""


def test_which_outputs_must_be_equal_bit_for_bit() -> None:
    model = graph(QUANTIZED, s=scale(0.25), z=np.int8(0), to=np.asarray([1, 4]))
    assert exact_outputs(model) == {"y", "q"}
    assert tolerance(model) == EDGE_TOLERANCE


def test_a_float_model_has_a_tolerance(mlp: Model) -> None:
    assert exact_outputs(mlp) == set()
    assert tolerance(mlp) == FLOAT_TOLERANCE


def test_layers_of_a_quantized_model_carry_the_float_names(mlp: Model, samples: Dataset) -> None:
    feeds = samples.feeds(mlp.inputs)
    baseline = reference_trace(mlp, feeds)
    eight = layers(reference_trace(transform(mlp, "fuse,quantize{bits=8,grid=pow2}", samples), feeds), baseline)
    four = layers(reference_trace(transform(mlp, "fuse,quantize{bits=4,grid=pow2}", samples), feeds), baseline)
    assert [layer.name for layer in eight] == ["r", "y"]
    for wide, narrow in zip(eight, four, strict=True):
        assert wide.sqnr_db is not None
        assert narrow.sqnr_db is not None
        assert wide.sqnr_db > narrow.sqnr_db + 12, "four bits are 24 dB"
        assert wide.max_abs_error < narrow.max_abs_error


def test_saturations_are_counted_per_layer(mlp: Model, samples: Dataset) -> None:
    small = transform(mlp, "fuse,quantize{bits=8,grid=pow2}", samples.take(1))
    louder = Dataset({"x": np.asarray(samples.inputs["x"]) * 50})
    trace = reference_trace(small, louder.feeds(mlp.inputs))
    found = layers(trace, reference_trace(mlp, louder.feeds(mlp.inputs)))
    assert sum(layer.saturated for layer in found) > 0


def test_the_first_diverging_layer(mlp: Model, samples: Dataset) -> None:
    class Broken(RefExecutor):
        def trace_native(self, feeds):  # type: ignore[no-untyped-def]
            values = super().trace_native(feeds)
            return {name: array + np.float32(1) if name in ("r", "y") else array for name, array in values.items()}

    everything = np.arange(len(samples))
    assert difference.first_diverging(Broken(mlp), mlp, samples, everything) == "r"
    assert difference.first_diverging(RefExecutor(mlp), mlp, samples, everything) is None


def test_a_trace_is_bounded(mlp: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    assert difference.trace_samples(mlp, 64) == 64
    monkeypatch.setattr(difference, "_TRACE_BYTES", 4 * (8 + 8 + 3) * 5)
    assert difference.trace_samples(mlp, 64) == 5
    monkeypatch.setattr(difference, "_TRACE_BYTES", 1)
    assert difference.trace_samples(mlp, 64) == 1
