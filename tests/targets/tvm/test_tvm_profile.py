"""Kernel times: each kernel once, with the model's whole work; and the peaks that they are held against."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from graphs import graph

import gatewright as gw
from gatewright.errors import ToolFailed, UsageError
from gatewright.frontend.model import Model
from gatewright.frontend.work import macs
from gatewright.targets.tvm import peaks
from gatewright.targets.tvm.peaks import Peaks
from gatewright.targets.tvm.profile import KernelTime, profile

PEAKS = Peaks(1, 100e9, 400e9, ((1 << 14, 200e9), (1 << 20, 100e9), (1 << 28, 20e9)))


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GATEWRIGHT_CACHE_DIR", str(tmp_path / "cache"))


def network() -> Model:
    rng = np.random.default_rng(0)
    return graph(
        "(float[1,16,8,8] x) => (float[1,10] y) { a = Conv<pads=[1,1,1,1]>(x, w1) b = Relu(a) c = Conv(b, w2) "
        "d = GlobalAveragePool(c) e = Reshape(d, shape) y = Gemm(e, w3) }",
        w1=rng.normal(size=(32, 16, 3, 3)).astype(np.float32),
        w2=rng.normal(size=(16, 32, 1, 1)).astype(np.float32),
        w3=rng.normal(size=(16, 10)).astype(np.float32),
        shape=np.asarray([1, 16], np.int64),
    )


def feeds(model: Model) -> dict[str, np.ndarray]:
    return {"x": np.random.default_rng(1).uniform(size=(1, 16, 8, 8)).astype(np.float32)}


@pytest.mark.parametrize("quantized", [False, True])
def test_kernels_together_are_the_model(quantized: bool) -> None:
    model = network()
    if quantized:
        model = gw.transform(model, "fuse,quantize{bits=8,per=channel}", gw.Dataset(feeds(model)))
    kernels = profile(gw.compile(model, "cpu{threads=1}"), model, feeds(model), runs=3)
    assert sum(kernel.macs for kernel in kernels) == macs(model)
    assert all(kernel.seconds > 0 and kernel.bytes > 0 for kernel in kernels)
    first = next(kernel for kernel in kernels if kernel.macs)
    assert first.shape == (1, 32, 8, 8)
    assert first.macs == 32 * 64 * 16 * 9
    size = 1 if quantized else 4
    assert first.bytes >= size * (16 * 64 + 32 * 64 + 32 * 16 * 9)
    assert set(first.to_json(PEAKS)) >= {"op", "shape", "seconds", "operations_per_s", "bytes_per_s", "share"}


def test_only_of_target_cpu() -> None:
    model = network()
    with pytest.raises(UsageError, match="ref"):
        profile(gw.compile(model, "ref"), model, feeds(model))


def test_the_share_is_of_the_slower_side() -> None:
    arithmetic = KernelTime("k0_conv", ("c (Conv)",), (1,), "float32", 1e-3, operations=50_000_000, macs=25_000_000, bytes=1000)
    assert arithmetic.share(PEAKS) == pytest.approx(0.5)
    traffic = KernelTime("k1_add", ("a (Add)",), (1,), "float32", 1e-3, operations=1, macs=0, bytes=1 << 23)
    assert traffic.share(PEAKS) == pytest.approx((1 << 23) / 20e9 / 1e-3)
    integers = KernelTime("k2_conv", ("c (integer conv)",), (1,), "uint8", 1e-3, operations=200_000_000, macs=100_000_000, bytes=1000)
    assert integers.share(PEAKS) == pytest.approx(0.5)


def test_peaks_of_this_machine_are_kept_and_a_damaged_file_is_not_trusted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runs = []

    def quick(threads: int, sizes: list[int], folder: Path) -> list[list[str]]:
        runs.append(1)
        folder.mkdir(parents=True, exist_ok=True)
        return [["float32", "1e11"], ["int8", "0"], ["read", "1024", "2e11"]]

    monkeypatch.setattr(peaks, "_run", quick)
    first = peaks.measure(2, tmp_path)
    assert (first.int8_ops_per_s, first.reads) == (None, ((2048, 2e11),))
    assert peaks.measure(2, tmp_path) == first
    assert len(runs) == 1
    kept = next((tmp_path / "peaks").glob("*.json"))
    for damaged in ("", "[]", '[["float32", "x"]]', '{"a": 1}'):
        kept.write_text(damaged)
        assert peaks.measure(2, tmp_path) == first
    assert len(runs) == 5
    assert peaks.measure(2, tmp_path, again=True) == first
    assert len(runs) == 6


def test_the_program_measures(tmp_path: Path) -> None:
    found = peaks._parsed(1, peaks._run(1, [16384, 1 << 20], tmp_path))
    assert found.float32_ops_per_s > 1e8
    assert [size for size, _ in found.reads] == [16384, 1 << 20]
    assert found.bandwidth(1) == found.reads[0][1]
    assert found.bandwidth(1 << 30) == found.reads[1][1]


def test_figures_that_make_no_sense_are_refused() -> None:
    for lines in ([], [["float32", "0"], ["read", "1", "1"]], [["float32", "1"]], [["float32", "1"], ["read", "1", "0"]]):
        with pytest.raises(ToolFailed):
            peaks._parsed(1, lines)
