"""Predictions: bounded by the CPU's flags, pointing the right way, and nothing where there is nothing to say."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from graphs import graph

import gatewright as gw
from gatewright.frontend.model import Model
from gatewright.hw.device import Processor
from gatewright.targets.tvm.predict import int8_factor, notes, predict

AVX2 = Processor(
    kind="cpu", name="plain", cores=4, clock_hz=3e9, vector_bits=256, isa=("avx2", "fma"), l1d_bytes=32 << 10, l2_bytes=1 << 20,
    l3_bytes=32 << 20, memory_bandwidth_bytes_per_s=40e9, peak_ops_per_s={"float32": 384e9, "int8": 768e9},
)  # fmt: skip
VNNI = replace(AVX2, name="vnni", isa=("avx2", "avxvnni", "fma"), peak_ops_per_s={"float32": 384e9, "int8": 1536e9})


def network(channels: int, size: int, kernel: int = 1) -> Model:
    rng = np.random.default_rng(0)
    shape, pads = f"float[1,{channels},{size},{size}]", [kernel // 2] * 4
    return graph(
        f"({shape} x) => ({shape} y) {{ a = Conv<pads={pads}>(x, w1) b = Relu(a) "
        f"c = Conv<pads={pads}>(b, w2) d = Relu(c) y = Conv<pads={pads}>(d, w3) }}",
        **{f"w{i}": rng.normal(size=(channels, channels, kernel, kernel)).astype(np.float32) for i in (1, 2, 3)},
    )


def speedups(model: Model, device: Processor, **more: object) -> dict[str, float]:
    return {p.name: p.speedup for p in predict(model, device, **more)}  # type: ignore[arg-type]


@pytest.mark.parametrize("shape", [(16, 4, 1), (256, 28, 1), (256, 28, 3), (512, 7, 3)])
def test_int8_is_bounded_by_the_flags(shape: tuple[int, int, int]) -> None:
    model = network(*shape)
    plain, dot = speedups(model, AVX2)["latency_int8"], speedups(model, VNNI)["latency_int8"]
    assert plain <= 2.0
    assert dot <= 4.0
    assert plain <= dot


def test_a_dot_product_pays_where_arithmetic_is_the_limit() -> None:
    model = network(256, 28)
    assert speedups(model, AVX2)["latency_int8"] < 2 < speedups(model, VNNI)["latency_int8"]
    tiny = network(16, 4)
    assert speedups(tiny, VNNI)["latency_int8"] < 1.5


def test_flags() -> None:
    assert int8_factor(AVX2) == 2
    assert int8_factor(VNNI) == 4
    assert int8_factor(replace(AVX2, isa=("dotprod", "neon"))) == 4
    amx = replace(AVX2, isa=("amx-int8", "avx512vnni"), peak_ops_per_s={"float32": 1e12, "int8": 16e12})
    assert int8_factor(amx) == 16


def test_winograd_leaves_less_for_int8_and_strict_has_none() -> None:
    model = network(256, 28, 3)
    assert speedups(model, VNNI)["latency_int8"] < speedups(model, VNNI, strict=True)["latency_int8"]


def test_pruning_and_threads_point_the_right_way() -> None:
    found = speedups(network(256, 28), AVX2)
    assert 1.5 < found["latency_pruned_half"] < 4
    assert 0.4 < found["latency_threads_2"] < 1
    assert "latency_threads_1" in speedups(network(256, 28), AVX2, threads=2)
    assert not any("threads" in name for name in speedups(network(256, 28), AVX2, threads=1))


def test_a_quantized_model_is_not_offered_int8() -> None:
    model = network(16, 8)
    data = gw.Dataset({"x": np.random.default_rng(0).uniform(size=(4, 16, 8, 8)).astype(np.float32)})
    small = gw.transform(model, "fuse,quantize{bits=8,per=channel}", data)
    assert "latency_int8" not in speedups(small, AVX2)
    assert "latency_pruned_half" in speedups(small, AVX2)


def test_nothing_multiplied_nothing_predicted() -> None:
    assert predict(graph("(float[1,4] x) => (float[1,4] y) { y = Relu(x) }"), AVX2) == ()


def test_a_device_that_states_little() -> None:
    bare = Processor(kind="cpu", name="bare", cores=2)
    assert all(p.latency.value > 0 and p.latency.source == "estimated" for p in predict(network(16, 8), bare))


def test_check_says_it() -> None:
    found = gw.check(network(64, 14), "cpu{threads=1}")
    assert "latency_int8" in found.figures
    assert any("int8" in note and "estimated" in note for note in found.notes)
    assert len(notes(predict(network(64, 14), AVX2))) == 3


def test_a_change_that_nobody_would_notice_is_no_line() -> None:
    """A model that takes as long as waking its kernels is not told that it would run at 1 times the speed."""
    predictions = predict(network(1, 2), AVX2)
    hardly = [p for p in predictions if 0.96 < p.speedup < 1.04]
    assert hardly
    assert len(notes(predictions)) == len(predictions) - len(hardly)
    assert not any("at 1 times" in note for note in notes(predictions))
