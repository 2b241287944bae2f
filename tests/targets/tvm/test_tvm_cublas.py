"""cuBLAS in the place of our kernels, and the driver's calls around it: on a stand-in for NVIDIA's libraries that really multiplies."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from graphs import Array, graph

import gatewright as gw
from gatewright.errors import GatewrightError
from gatewright.frontend.model import Model
from gatewright.frontend.reference import Reference
from gatewright.targets.base import Artifact
from gatewright.targets.tvm.cuda import cublas, driver
from gatewright.targets.tvm.cuda.driver import GpuExecutor
from gatewright.targets.tvm.cuda.toolkit import Toolkit

pytestmark = [
    pytest.mark.skipif(Toolkit.installed() is None, reason="NVIDIA's compiler is not installed (the extra cuda)"),
    pytest.mark.skipif(shutil.which("g++") is None, reason="g++ is not installed"),
]


def network() -> Model:
    """Four products and nothing else: by a weight that is grown to a tile, by one that is stored turned (square, so that a wrong turn
    shows in the values alone), by a computed matrix of each batch entry, and of a batch by one matrix; and one with a Relu behind it."""
    random = np.random.default_rng(0)
    text = """(float[1,9,7] x, float[1,3,40] t, float[2,3,8,6] a, float[2,3,6,11] b, float[4,8,6] c) =>
              (float[1,9,13] y, float[1,3,40] u, float[2,3,8,11] v, float[4,8,12] w, float[1,9,13] r) {
        y = MatMul(x, wy)
        u = MatMul(t, wu)
        v = MatMul(a, b)
        w = MatMul(c, ww)
        s = MatMul(x, wr)
        r = Relu(s)
    }"""
    shapes = {"wy": (7, 13), "wu": (40, 40), "ww": (6, 12), "wr": (7, 13)}
    return graph(text, **{name: random.normal(0, 1, shape).astype(np.float32) for name, shape in shapes.items()})


class StandIn:
    def __init__(self, library: ctypes.CDLL) -> None:
        library.stand_in_log.restype = ctypes.c_char_p
        library.stand_in_begin.argtypes = [ctypes.c_double, ctypes.c_double, ctypes.c_int]
        self.library = library

    @property
    def log(self) -> list[str]:
        return str(self.library.stand_in_log().decode()).split()

    def begin(self, kernel: float, gemm: float, status: int = 0) -> None:
        """What a kernel and a product take, in milliseconds; what cublasCreate answers."""
        self.library.stand_in_begin(kernel, gemm, status)


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    made = tmp_path_factory.mktemp("stand-in") / "libgpu.so"
    source = Path(__file__).with_name("gpu_stand_in.cpp")
    subprocess.run(["g++", "-std=c++17", "-O1", "-shared", "-fPIC", str(source), "-o", str(made)], check=True)
    return ctypes.CDLL(str(made))


@pytest.fixture
def gpu(library: ctypes.CDLL, monkeypatch: pytest.MonkeyPatch) -> StandIn:
    monkeypatch.setattr(driver, "driver", lambda: driver.Driver(library))
    monkeypatch.setattr(cublas, "library", lambda: library)
    return StandIn(library)


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return gw.compile(network(), "cuda:sm_90", out=tmp_path_factory.mktemp("cublas") / "a")


def feeds() -> dict[str, Array]:
    random = np.random.default_rng(1)
    return {one.name: random.normal(0, 1, one.shape).astype(np.float32) for one in network().inputs}


@pytest.mark.parametrize("captured", [True, False])
def test_products_are_those_of_the_reference(gpu: StandIn, artifact: Artifact, captured: bool) -> None:
    """Transposes, rows' lengths and strides are right, or the stand-in would compute another product."""
    gpu.begin(kernel=2, gemm=1)
    wanted = Reference(network()).run(feeds())
    inputs, outputs = network().inputs, network().outputs
    with GpuExecutor(artifact, inputs, outputs, graph=captured, cublas="float32") as executor:
        assert len(executor.by_cublas) == 4
        gpu.begin(kernel=2, gemm=1)
        got = executor.run(feeds())
        assert sorted(gpu.log) == ["gemm68"] * 4 + ["kernel"]
        assert executor.time_native(3) == pytest.approx(0.006)
        traced = executor.trace(feeds())
    for name in "yuvw":
        np.testing.assert_allclose(got[name], wanted[name], rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(traced[name], wanted[name], rtol=1e-5, atol=1e-5)
    assert not got["r"].any(), "the stand-in's kernels compute nothing"
    assert gpu.log[-1] == "destroyed"


def test_the_quicker_one_runs_and_what_is_captured_is_that(gpu: StandIn, artifact: Artifact) -> None:
    for kernel, gemm, count in ((1.0, 2.0, 0), (2.0, 1.0, 4)):
        gpu.begin(kernel, gemm)
        with artifact.load("device") as executor:
            assert isinstance(executor, GpuExecutor)
            assert len(executor.by_cublas) == count
            log = gpu.log
            assert log[-2:] == ["capture", "captured"], "nothing runs while the graph is made"
            executor.run(feeds())
            assert gpu.log[len(log) :].count("gemm68") == count


def test_without_it_or_refused_by_it_our_kernels_run(gpu: StandIn, artifact: Artifact, monkeypatch: pytest.MonkeyPatch) -> None:
    gpu.begin(2, 1, status=1)
    with artifact.load("device") as executor:
        assert isinstance(executor, GpuExecutor)
        assert executor.by_cublas == ()
        assert "cublasCreate_v2: status 1" in str(executor.cublas_refused)
    gpu.begin(2, 1)
    inputs, outputs = network().inputs, network().outputs
    with GpuExecutor(artifact, inputs, outputs, graph=True, cublas=None) as executor:
        assert executor.by_cublas == ()
    monkeypatch.setattr(cublas, "library", lambda: None)
    with artifact.load("device") as executor:
        assert isinstance(executor, GpuExecutor)
        assert executor.by_cublas == ()
        assert executor.cublas_refused is None
    assert not any("gemm" in word for word in gpu.log)


def test_the_precision_is_the_target_s(gpu: StandIn, tmp_path: Path) -> None:
    model = graph("(float[32,24] x) => (float[32,16] y) { y = MatMul(x, w) }", w=np.ones((24, 16), np.float32))
    gpu.begin(2, 1)
    with gw.compile(model, "cuda:sm_80{precision=tf32}", out=tmp_path / "a").load("device") as executor:
        executor.run({"x": np.ones((32, 24), np.float32)})
    assert {word for word in gpu.log if word.startswith("gemm")} == {"gemm77"}


def test_a_product_that_it_refuses_names_the_call_and_the_way_out(gpu: StandIn) -> None:
    gpu.begin(2, 1)
    stream = ctypes.c_void_p()
    memory = ctypes.create_string_buffer(cublas.WORKSPACE_BYTES)
    made = cublas.Cublas(gpu.library, stream, ctypes.addressof(memory))
    gemm = {"transposed": False, "rows": 2, "columns": 5, "depth": 3, "row_of_b": 4, "batch": 1}
    with pytest.raises(GatewrightError, match="cublasGemmStridedBatchedEx: status 7") as caught:
        made.multiply(gemm, 0, 0, 0, "float32")
    assert "cublas=never" in str(caught.value)
