"""The target ``cuda``, compiled and emulated without a GPU: the emulator runs the very source that NVIDIA's compiler is given."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from graphs import Array, graph, scale

import gatewright as gw
from gatewright.errors import ToolFailed, ToolMissing, UnsupportedError, UsageError
from gatewright.frontend.model import Model
from gatewright.frontend.reference import Reference
from gatewright.runtime.targetspec import resolve
from gatewright.targets.base import Artifact
from gatewright.targets.tvm.cuda import driver
from gatewright.targets.tvm.cuda.machine import occupancy
from gatewright.targets.tvm.cuda.toolkit import Toolkit, resources

needs_compiler = pytest.mark.skipif(Toolkit.installed() is None, reason="NVIDIA's compiler is not installed (the extra cuda)")


def float_network() -> Model:
    """A convolution in tiles, one channel by channel, a mean, a product of one row, a softmax, a product of a few hundred terms."""
    random = np.random.default_rng(0)

    def weight(*shape: int) -> Array:
        return random.normal(0, 0.3, shape).astype(np.float32)

    text = """(float[1,3,17,13] x) => (float[1,24] y, float[1,20,9] z) {
        c = Conv<kernel_shape=[3,3], pads=[1,1,1,1]>(x, w, b)
        r = Relu(c)
        d = Conv<kernel_shape=[3,3], group=20, strides=[2,2]>(r, v)
        g = GlobalAveragePool(d)
        f = Reshape(g, flat)
        p = MatMul(f, m)
        y = Softmax(p)
        t = Reshape(r, rows)
        z = MatMul(t, l)
    }"""
    shapes = {"flat": np.asarray([1, 20]), "rows": np.asarray([1, 20, 221])}
    return graph(text, w=weight(20, 3, 3, 3), b=weight(20), v=weight(20, 1, 3, 3), m=weight(20, 24), l=weight(221, 9), **shapes)


def integer_network() -> Model:
    """uint8 through a convolution on tensor cores, padded, and a sum with unequal scales (float64 factors)."""
    random = np.random.default_rng(1)
    text = """(uint8[1,8,9,7] x) => (uint8[1,24,9,7] y) {
        xf = DequantizeLinear(x, sx, zx)
        wf = DequantizeLinear(w, sw, zw)
        bf = DequantizeLinear(b, sb, zb)
        c = Conv<kernel_shape=[3,3], pads=[1,1,1,1]>(xf, wf, bf)
        q = QuantizeLinear(c, sq, zq)
        qf = DequantizeLinear(q, sq, zq)
        vf = DequantizeLinear(v, sw, zw)
        e = Conv<kernel_shape=[1,1]>(xf, vf)
        eq = QuantizeLinear(e, se, ze)
        ef = DequantizeLinear(eq, se, ze)
        a = Add(qf, ef)
        y = QuantizeLinear(a, sy, zy)
    }"""
    constants: dict[str, Array] = {
        "sx": scale(0.05), "zx": np.asarray(7, np.uint8), "sw": scale(0.01), "zw": np.asarray(0, np.int8), "sb": scale(0.05 * 0.01),
        "zb": np.asarray(0, np.int32), "sq": scale(0.0371), "zq": np.asarray(120, np.uint8), "se": scale(0.0193),
        "ze": np.asarray(90, np.uint8), "sy": scale(0.0533), "zy": np.asarray(128, np.uint8),
        "w": random.integers(-128, 128, (24, 8, 3, 3)).astype(np.int8), "v": random.integers(-128, 128, (24, 8, 1, 1)).astype(np.int8),
        "b": random.integers(-2000, 2000, (24,)).astype(np.int32),
    }  # fmt: skip
    return graph(text, **constants)


@pytest.fixture(scope="module")
def artifacts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Artifact, Model]]:
    folder = tmp_path_factory.mktemp("cuda")
    wanted = {"float": (float_network(), "cuda:sm_90"), "integer": (integer_network(), "cuda:sm_80")}
    return {name: (gw.compile(model, target, out=folder / name), model) for name, (model, target) in wanted.items()}


@needs_compiler
def test_floats_are_the_reference_s(artifacts: dict[str, tuple[Artifact, Model]]) -> None:
    artifact, model = artifacts["float"]
    feeds = {"x": np.random.default_rng(2).normal(0, 1, (1, 3, 17, 13)).astype(np.float32)}
    wanted = Reference(model).run(feeds)
    with artifact.load("emulate") as executor:
        got, traced = executor.run(feeds), executor.trace(feeds)
    for name, array in wanted.items():
        assert float(np.max(np.abs(got[name] - array))) <= 2e-5 * float(np.max(np.abs(array)))
    assert "r" in traced, "the convolution's kernel stores what follows it"


@needs_compiler
def test_integers_are_the_reference_s_bit_for_bit(artifacts: dict[str, tuple[Artifact, Model]]) -> None:
    artifact, model = artifacts["integer"]
    assert "wmma::mma_sync" in (artifact.path / "kernels.cu").read_text(encoding="utf-8"), "bytes go to tensor cores"
    feeds = {"x": np.random.default_rng(3).integers(0, 256, (1, 8, 9, 7)).astype(np.uint8)}
    with artifact.load("emulate") as executor:
        got = executor.run(feeds)
    np.testing.assert_array_equal(got["y"], Reference(model).run(feeds)["y"])


@needs_compiler
def test_copies_of_inputs_and_of_constants_are_kernels_of_their_own(tmp_path: Path) -> None:
    """Equal functions were one, and a launch then asked for an operand that it had not."""
    model = graph("(float[1,2] x, float16[1,2] h) => (float[1,2] y, float[1,2] z, float16[1,2] t) "
                  "{ y = Identity(x) z = Identity(c) t = Tan(h) }", c=np.array([[1, 2]], np.float32))  # fmt: skip
    feeds = {"x": np.array([[3, 4]], np.float32), "h": np.array([[0.5, 1]], np.float16)}
    with gw.compile(model, "cuda:sm_90", out=tmp_path / "copies").load("emulate") as executor:
        got = executor.run(feeds)
    for name, wanted in Reference(model).run(feeds).items():
        np.testing.assert_allclose(got[name], wanted, rtol=1e-3)


@needs_compiler
@pytest.mark.slow
@pytest.mark.parametrize(("precision", "bound"), [("tf32", 5e-3), ("float16", 5e-3), ("bfloat16", 4e-2)])
def test_rounded_operands_on_tensor_cores(tmp_path: Path, precision: str, bound: float) -> None:
    """Operands lose bits, 11 or 8 of which are kept, sums do not: the error is a few of their last places, and not none."""
    model = float_network()
    artifact = gw.compile(model, f"cuda:sm_90{{precision={precision}}}", out=tmp_path / precision)
    assert "wmma::mma_sync" in (artifact.path / "kernels.cu").read_text(encoding="utf-8")
    assert not artifact.manifest["target"]["notes"]
    feeds = {"x": np.random.default_rng(2).normal(0, 1, (1, 3, 17, 13)).astype(np.float32)}
    wanted = Reference(model).run(feeds)["z"]
    with artifact.load("emulate") as executor:
        error = np.max(np.abs(executor.run(feeds)["z"] - wanted)) / np.max(np.abs(wanted))
    assert 1e-6 < error <= bound


@pytest.mark.parametrize("kind", ["float16", "bfloat16", "tf32"])
def test_the_largest_tiles_fit_a_blocks_shared_memory(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whichever a model of another size would choose; one that does not fit is refused where it is lowered."""
    from gatewright.targets.tvm.codegen import generate
    from gatewright.targets.tvm.cuda import products, tiles
    from gatewright.targets.tvm.cuda.codegen import GpuGraph
    from gatewright.targets.tvm.cuda.machine import Gpu
    from gatewright.targets.tvm.cuda.schedules import TensorTile
    from gatewright.targets.tvm.kernel import Policy
    from gatewright.targets.tvm.steps import program

    weight = np.random.default_rng(5).normal(0, 0.1, (96, 160)).astype(np.float32)
    model = graph("(float[1,200,96] x) => (float[1,200,160] y) { y = MatMul(x, w) }", w=weight)
    step = 8 if kind == "tf32" else 16
    for rows, columns, warp_rows, warp_columns in tiles._TENSOR[:3]:
        tile = TensorTile(rows, columns, 2 * step, 1, warp_rows, warp_columns, step)
        monkeypatch.setattr(products, "tensor_tile", lambda *_, tile=tile: tile)
        gpu = GpuGraph.on(program(model), Gpu(32, 255, 132, isa=frozenset({"fma", "cuda"}), capability=90), products.Products(kind))
        module = generate(gpu, Policy(), lambda what: None)
        assert not module.refused
        assert all("wmma::mma_sync" in function.text for function in module.functions.values())


@needs_compiler
def test_a_missing_barrier_shows(artifacts: dict[str, tuple[Artifact, Model]], tmp_path: Path) -> None:
    """Else the emulator would prove nothing of what the threads of a block do together."""
    artifact, model = artifacts["float"]
    folder = tmp_path / "planted"
    shutil.copytree(artifact.path, folder)
    source = (folder / "kernels.cu").read_text(encoding="utf-8")
    (folder / "kernels.cu").write_text(source.replace("__syncthreads();", "__syncwarp();"), encoding="utf-8")
    feeds = {"x": np.random.default_rng(2).normal(0, 1, (1, 3, 17, 13)).astype(np.float32)}
    wanted = Reference(model).run(feeds)["z"]
    broken = Artifact(folder, artifact.manifest, artifact.context)
    with broken.load("emulate") as executor:
        try:
            got = executor.run(feeds)["z"]
        except ToolFailed:
            return
    assert float(np.max(np.abs(got - wanted))) > 1e-3


@needs_compiler
def test_the_manifest_says_what_each_kernel_takes(artifacts: dict[str, tuple[Artifact, Model]]) -> None:
    for artifact, _ in artifacts.values():
        found = artifact.manifest["target"]["resources"]
        assert found
        for kernel, own in found.items():
            assert 0 < own["registers"] <= 255, kernel
            assert own["spilled_bytes"] == 0, kernel
            assert 0 < own["occupancy"] <= 1, kernel
        assert (artifact.path / "kernels.cubin").read_bytes()[:4] == b"\x7fELF"


def test_without_a_compiler_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Toolkit, "installed", lambda: None)
    before = dict(os.environ)
    with pytest.raises(ToolMissing, match="NVRTC") as caught:
        Toolkit.found("compiling g for cuda:sm_90")
    assert "gatewright[cuda]" in str(caught.value)
    assert caught.value.exit_code == 1
    assert dict(os.environ) == before


def test_a_wrong_architecture_lists_those_that_there_are() -> None:
    with pytest.raises(UsageError, match="sm_90"):
        resolve("cuda:sm_91")
    with pytest.raises(UsageError, match="needs a device"):
        resolve("cuda")


def test_what_tensor_cores_do_not_take_is_refused() -> None:
    for precision in ("bfloat16", "tf32"):
        with pytest.raises(UnsupportedError, match=precision):
            resolve(f"cuda:sm_75{{precision={precision}}}")


def test_a_node_without_a_kernel_falls_back_in_sight_or_is_refused() -> None:
    model = graph("(float[1,8] x) => (float[1,3] v, int64[1,3] i) { v, i = TopK(x, k) }", k=np.asarray([3]))
    checked = gw.check(model, "cuda:sm_90{fallback=none}")
    assert [problem.op for problem in checked.problems] == ["TopK"]
    assert any("ort" in note for note in gw.check(model, "cuda:sm_90").notes)


def test_ptxas_is_read() -> None:
    said = """ptxas info    : Compiling entry function 'k0' for 'sm_90'
ptxas info    : Function properties for k0
    16 bytes stack frame, 8 bytes spill stores, 12 bytes spill loads
ptxas info    : Used 40 registers, used 1 barriers, 264 bytes smem"""
    assert resources(said) == {"k0": {"stack_bytes": 16, "spilled_bytes": 20, "registers": 40, "shared_bytes": 264}}


@pytest.mark.parametrize(
    ("capability", "threads", "registers", "shared", "share"),
    [(80, 256, 32, 0, 1.0), (80, 256, 64, 0, 0.5), (90, 128, 255, 0, 0.125), (75, 256, 32, 32 << 10, 0.5), (999, 32, 16, 0, None)],
)
def test_occupancy(capability: int, threads: int, registers: int, shared: int, share: float | None) -> None:
    assert occupancy(capability, threads, registers, shared) == share


@pytest.mark.gpu
@pytest.mark.skipif(not driver.has_gpu(), reason="there is no NVIDIA GPU here")
@pytest.mark.parametrize("name", ["float", "integer"])
def test_a_gpu_computes_what_the_emulator_does(artifacts: dict[str, tuple[Artifact, Model]], name: str) -> None:
    artifact, model = artifacts[name]
    shape, random = model.inputs[0].shape, np.random.default_rng(4)
    feeds = {"x": random.normal(0, 1, shape).astype(np.float32) if name == "float" else random.integers(0, 256, shape).astype(np.uint8)}
    with artifact.load("emulate") as emulator, artifact.load("device") as gpu:
        wanted, got = emulator.run(feeds), gpu.run(feeds)
    for key, array in wanted.items():
        if name == "integer":
            np.testing.assert_array_equal(got[key], array)
        else:
            assert float(np.max(np.abs(got[key] - array))) <= 2e-5 * float(np.max(np.abs(array)))
