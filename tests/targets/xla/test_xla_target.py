"""The target ``tpu`` without its compiler: artifacts of portable programs, the emulator, refusals."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from graphs import Array, graph, scale

import gatewright as gw
from gatewright.errors import DoesNotFit, ToolMissing, UnsupportedOp
from gatewright.frontend.model import Model
from gatewright.frontend.reference import Reference
from gatewright.targets.xla import chips
from gatewright.targets.xla import target as module

pytest.importorskip("jax", reason="the TPU's emulator needs jax")

PLAIN = "tpu:v5e{aot=none}"


def network() -> Model:
    """A float edge, an int8 convolution with a rectifier, and a float head."""
    rng = np.random.default_rng(0)
    return graph(
        """(float[1,3,8,8] x) => (float[1,5] y) {
            q = QuantizeLinear(x, sx, zx) d = DequantizeLinear(q, sx, zx) w = DequantizeLinear(wq, sw, zw)
            c = Conv<kernel_shape = [3, 3], pads = [1, 1, 1, 1]>(d, w) r = Relu(c)
            rq = QuantizeLinear(r, sr, zr) rd = DequantizeLinear(rq, sr, zr)
            g = GlobalAveragePool(rd) s = Constant<value = int64[2] {0, 16}>() f = Reshape(g, s) y = MatMul(f, head)
        }""",
        sx=scale(0.02), zx=np.int8(3), sw=scale(0.01), zw=np.int8(0), sr=scale(0.05), zr=np.uint8(0),
        wq=rng.integers(-127, 128, (16, 3, 3, 3)).astype(np.int8), head=rng.normal(size=(16, 5)).astype(np.float32),
    )  # fmt: skip


def samples(count: int) -> dict[str, Array]:
    return {"x": np.random.default_rng(1).uniform(-2, 2, (count, 3, 8, 8)).astype(np.float32)}


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> gw.Artifact:
    return gw.compile(network(), "tpu:v5e{aot=none,batches=1|4}", out=tmp_path_factory.mktemp("tpu") / "artifact")


def test_any_number_of_samples_in_the_artifacts_batches(artifact: gw.Artifact) -> None:
    feeds = samples(11)
    wanted = Reference(network()).run(feeds)["y"]
    with artifact.load("emulate") as executor:
        for count in (1, 3, 4, 11):
            got = executor.run({"x": feeds["x"][:count]})["y"]
            assert got.shape == (count, 5)
            assert float(np.max(np.abs(got - wanted[:count]))) <= 1e-6 * float(np.max(np.abs(wanted)))


def test_a_trace_goes_by_the_references_names(artifact: gw.Artifact) -> None:
    feeds = samples(2)
    wanted = Reference(network()).run(feeds, trace=True)
    with artifact.load("emulate") as executor:
        got = executor.trace(feeds)
    assert {"q", "rq", "r", "y"} <= set(got)
    assert np.array_equal(got["rq"], wanted["rq"])
    assert np.array_equal(got["r"], wanted["r"])


def test_the_artifact_says_what_was_not_done(artifact: gw.Artifact) -> None:
    described = artifact.manifest["target"]
    assert described["ahead_of_time"] is False
    assert described["not_compiled"] == "aot=none"
    assert [bucket["batch"] for bucket in described["buckets"]] == [1, 4]
    assert "weights.bin" in artifact.manifest["files"]
    assert not any(name.endswith((".onnx", ".json", ".log")) for name in artifact.manifest["files"])


def test_without_libtpu_the_check_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "version_of", lambda package: None if package == "libtpu" else "1")
    assert any("libtpu is not installed" in note for note in gw.check(network(), "tpu:v5e").notes)


def test_without_jax_the_extra_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from gatewright.targets.xla import environment

    monkeypatch.setattr(environment, "version_of", lambda package: None)
    with pytest.raises(ToolMissing, match=r"gatewright\[tpu\]") as caught:
        gw.compile(network().renamed("without"), PLAIN, out=tmp_path / "a")
    assert caught.value.exit_code == 1
    assert not (tmp_path / "a").exists()


def test_a_model_larger_than_the_memory_is_refused_before_anything_is_made(tmp_path: Path) -> None:
    text = (Path(gw.__file__).parents[2] / "hw/processors/v5e.toml").read_text(encoding="utf-8")
    (tmp_path / "v5e.toml").write_text(text.replace("17_179_869_184", "2_000"), encoding="utf-8")
    where = f"tpu:{tmp_path / 'v5e.toml'}"
    check = gw.check(network(), where)
    assert not check.ok
    assert "2,000" in check.shortfalls[0]
    with pytest.raises(DoesNotFit, match="does not fit") as caught:
        gw.compile(network(), where, out=tmp_path / "a")
    assert caught.value.exit_code == 3


def test_an_operator_without_a_lowering_is_named(tmp_path: Path) -> None:
    model = graph("(float[1,4,4] x) => (float[1] y) { r = Relu(x) y = Det(r) }")
    with pytest.raises(UnsupportedOp, match=r"tpu:v5e does not support node .*\(Det\)"):
        gw.compile(model, PLAIN, out=tmp_path / "a")


def test_on_request_another_engine_runs_it(tmp_path: Path) -> None:
    model = graph("(float[1,4,4] x) => (float[1] y) { r = Relu(x) y = Det(r) }")
    feeds = {"x": np.random.default_rng(2).normal(size=(1, 4, 4)).astype(np.float32)}
    made = gw.compile(model, "tpu:v5e{aot=none,fallback=auto}", out=tmp_path / "a")
    assert [part["target"].partition("{")[0] for part in made.parts] == ["tpu:v5e", "ort"]
    with made.load() as executor:
        assert np.allclose(executor.run(feeds)["y"], Reference(model).run(feeds)["y"], rtol=1e-5)


def test_a_device_that_is_not_there_is_said(artifact: gw.Artifact) -> None:
    if chips.present():
        pytest.skip("this machine has a TPU")
    with pytest.raises(ToolMissing, match="no TPU"):
        artifact.load("device")


def test_the_users_process_keeps_its_modules_and_its_environment(tmp_path: Path) -> None:
    """JAX is imported in processes of its own, and what the user set for it neither changes nor reaches them."""
    code = f"""
import os, sys
before = dict(os.environ)
import numpy as np, gatewright as gw
artifact = gw.compile(gw.load({str(tmp_path / "model.onnx")!r}), {PLAIN!r}, out={str(tmp_path / "artifact")!r})
with artifact.load() as executor:
    executor.run({{"x": np.zeros((1, 3, 8, 8), np.float32)}})
print(dict(os.environ) == before, "jax" in sys.modules)
"""
    network().save(tmp_path / "model.onnx")
    # The first would make every run fail, were it handed on.
    environment = {**os.environ, "JAX_PLATFORMS": "nonsense", "XLA_FLAGS": "--xla_no_such_flag"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, env=environment)
    assert done.stdout.split() == ["True", "False"], done.stderr


def test_compare_shows_the_emulator_beside_the_reference() -> None:
    feeds = samples(6)["x"]
    data = gw.Dataset({"x": feeds}, labels=np.arange(6) % 5)
    report = gw.compare(network(), ["ref", PLAIN], data)
    row = report.rows[1]
    assert row.status == "ok"
    assert row.latency is not None
    assert row.latency.source == "estimated"
    assert row.emulation_rate is not None
    assert row.error_ref is not None
    assert row.error_ref.top1_changed == 0


SHARDED = """
import json, sys
from pathlib import Path
import numpy as np
from gatewright.targets.xla.serve import Session
import jax
session = Session(Path(sys.argv[1]))
x = np.load(sys.argv[2])
shard = {name: str(array.sharding.spec) for name, array in session._weights.items()}
np.save(sys.argv[3], session.run(0, [x])[0])
print(json.dumps([len(jax.devices()), shard]))
"""


@pytest.mark.parametrize("mesh", [pytest.param("data", marks=pytest.mark.slow), "model"])
def test_four_cores_give_what_one_gives(mesh: str, tmp_path: Path) -> None:
    """The artifact's program on four devices (the CPU, split in four): weights lie as the manifest says, results stay."""
    model = network()
    made = gw.compile(model, f"tpu:v5e{{topology=2x2,mesh={mesh},aot=none,batches=4}}", out=tmp_path / "artifact")
    np.save(tmp_path / "x.npy", samples(4)["x"])
    environment = {
        **os.environ, "JAX_PLATFORMS": "cpu", "JAX_ENABLE_X64": "1", "XLA_FLAGS": "--xla_force_host_platform_device_count=4",
    }  # fmt: skip
    command = [sys.executable, "-c", SHARDED, str(made.path), str(tmp_path / "x.npy"), str(tmp_path / "y.npy")]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip().startswith("[4, ")
    assert ("'model'" in done.stdout) == (mesh == "model")
    wanted = Reference(model).run(samples(4))["y"]
    assert float(np.max(np.abs(np.load(tmp_path / "y.npy") - wanted))) <= 1e-6 * float(np.max(np.abs(wanted)))


def test_int8_files_are_equal_to_the_reference(shared_model: Callable[[str], Path], tmp_path: Path) -> None:
    model = gw.load(shared_model("tiny_kws_dscnn_int8.onnx"))
    x = np.random.default_rng(3).integers(-128, 128, (4, *model.inputs[0].shape[1:])).astype(np.int8)
    feeds = {model.inputs[0].name: x}
    with gw.compile(model, PLAIN, out=tmp_path / "a").load() as executor:
        got = executor.run(feeds)
    for name, wanted in Reference(model).run(feeds).items():
        assert np.array_equal(got[name], wanted)
