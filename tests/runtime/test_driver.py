"""compile, build and check: what they write, when they refuse, and that nothing half-written stays."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

import gatewright as gw
from gatewright.errors import DataError, DoesNotFit, GatewrightError, ToolFailed, UnsupportedError, UnsupportedOp, UsageError
from gatewright.frontend.data import Dataset, Input
from gatewright.frontend.integer import plan
from gatewright.frontend.model import Model
from gatewright.targets.base import Artifact


def test_load_transform_compile_run(mlp: Model, samples: Dataset, tmp_path: Path) -> None:
    mlp.save(tmp_path / "mlp.onnx")
    model = gw.load(tmp_path / "mlp.onnx")
    small = gw.transform(model, "fuse,quantize{bits=8,grid=pow2}", data=samples)
    assert plan(small).is_quantized
    artifact = gw.compile(small, "ref", out=tmp_path / "built")
    with artifact.load() as executor:
        outputs = executor.run({"x": samples.inputs["x"]})
    with gw.compile(model, "ref").load() as executor:
        truth = executor.run({"x": samples.inputs["x"]})
    assert np.abs(outputs["y"] - truth["y"]).max() < 0.2


def test_the_manifest_tells_everything(mlp: Model, samples: Dataset, tmp_path: Path) -> None:
    data = Dataset(samples.arrays, samples.labels, {"x": Input(scale=2.0)}, "noise")
    artifact = gw.compile(mlp, "ref", out=tmp_path / "a", data=data)
    manifest = json.loads((tmp_path / "a" / "manifest.json").read_text(encoding="utf-8"))
    assert manifest == artifact.manifest
    assert (manifest["schema"], manifest["stage"], manifest["target_text"], manifest["target_name"]) == (1, "built", "ref", "ref")
    assert manifest["model"]["digest"] == mlp.digest
    assert manifest["inputs"] == [{"name": "x", "shape": [1, 4], "dtype": "float32"}]
    assert manifest["preparation"] == ["x{scale=2.0}"]
    assert manifest["versions"]["gatewright"] == gw.__version__
    for name, expected in manifest["files"].items():
        assert hashlib.sha256((tmp_path / "a" / name).read_bytes()).hexdigest() == expected
    assert {p.name for p in (tmp_path / "a").iterdir()} == {"manifest.json", *manifest["files"]}


def test_the_same_inputs_give_the_same_bytes(mlp: Model, samples: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folders = []
    for name in ("one", "two"):
        monkeypatch.setenv("GATEWRIGHT_CACHE_DIR", str(tmp_path / f"cache-{name}"))
        small = gw.transform(mlp, "fuse,quantize{bits=8,grid=pow2}", data=samples)
        folders.append(gw.compile(small, "ref", out=tmp_path / name).path)
    one, two = ({p.name: p.read_bytes() for p in folder.iterdir()} for folder in folders)
    assert one == two


def test_compiling_again_comes_from_the_cache(mlp: Model, toys: list[str]) -> None:
    first = gw.compile(mlp, "toy")
    assert gw.compile(mlp, "toy").path == first.path
    assert toys == ["mlp"]
    gw.compile(mlp, "toy{off=1}")
    gw.compile(mlp.renamed("other"), "toy")
    gw.compile(mlp, "toy", seed=1)
    assert toys == ["mlp", "mlp", "other", "mlp"]


def test_other_code_is_another_entry(mlp: Model, toys: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    from gatewright.runtime import artifacts

    assert artifacts._code() == artifacts._code.__wrapped__()
    gw.compile(mlp, "toy")
    monkeypatch.setattr(artifacts, "_code", lambda: "changed")
    gw.compile(mlp, "toy")
    assert toys == ["mlp", "mlp"]


def test_a_damaged_artifact_is_noticed_and_the_cache_is_not_trusted(mlp: Model, toys: list[str], tmp_path: Path) -> None:
    artifact = gw.compile(mlp, "toy", out=tmp_path / "a")
    (tmp_path / "a" / "model.onnx").write_bytes(b"evil")
    with pytest.raises(GatewrightError, match=r"model\.onnx.*changed"):
        Artifact.open(tmp_path / "a", artifact.context)
    cached = gw.compile(mlp, "toy")
    (cached.path / "model.onnx").write_bytes(b"evil")
    with gw.compile(mlp, "toy").load() as executor:
        executor.run({"x": np.zeros((1, 4), np.float32)})
    assert toys == ["mlp", "mlp"]


def test_out_may_be_new_empty_or_an_artifact(mlp: Model, toys: list[str], tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for out in (tmp_path / "deep" / "new", tmp_path / "empty"):
        assert gw.compile(mlp, "toy", out=out).path == out
    first = (tmp_path / "empty" / "manifest.json").read_text()
    gw.compile(mlp.renamed("other"), "toy", out=tmp_path / "empty")
    assert (tmp_path / "empty" / "manifest.json").read_text() != first
    assert sorted(os.listdir(tmp_path)) == ["cache", "deep", "empty"]


def test_out_is_never_something_else(mlp: Model, toys: list[str], tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("years of work")
    (tmp_path / "web").mkdir()
    (tmp_path / "web" / "manifest.json").write_text('{"name": "a web app"}')
    (tmp_path / "file").write_text("x")
    for name in ("mine", "web", "file"):
        with pytest.raises(UsageError):
            gw.compile(mlp, "toy", out=tmp_path / name)
    assert (tmp_path / "mine" / "thesis.tex").read_text() == "years of work"
    assert toys == []


@pytest.mark.parametrize(
    ("does", "error"),
    [("refuse", UnsupportedOp), ("overflow", DoesNotFit), ("crash", ZeroDivisionError), ("interrupt", KeyboardInterrupt)],
)
def test_a_failure_leaves_nothing(mlp: Model, toys: list[str], tmp_path: Path, does: str, error: type[BaseException]) -> None:
    with pytest.raises(error):
        gw.compile(mlp, f"toy{{does={does}}}", out=tmp_path / "deep" / "a")
    assert not (tmp_path / "deep").exists()
    assert not [path for path in (tmp_path / "cache").rglob("*") if path.is_file() and path.suffix != ".lock"]


def test_a_failed_recompilation_leaves_the_old_artifact(mlp: Model, toys: list[str], tmp_path: Path) -> None:
    gw.compile(mlp, "toy", out=tmp_path / "a")
    before = {p.name: p.read_bytes() for p in (tmp_path / "a").iterdir()}
    with pytest.raises(DoesNotFit):
        gw.compile(mlp, "toy{does=overflow}", out=tmp_path / "a")
    assert {p.name: p.read_bytes() for p in (tmp_path / "a").iterdir()} == before


def test_a_failed_tool_s_log_is_kept(mlp: Model, toys: list[str]) -> None:
    with pytest.raises(ToolFailed) as error:
        gw.compile(mlp, "toy{does=break}")
    log = Path(error.value.message.rpartition(" ")[2])
    assert log.read_text() == "the last words"


KILLED = """
import sys
sys.path[:0] = {paths!r}
from gatewright.targets import base
base.TARGETS["toy"] = "toy_target:ToyTarget"
import gatewright as gw
gw.compile(gw.load({model!r}, name="mlp"), "toy{{seconds=2}}", out={out!r})
"""


def test_a_killed_compilation_leaves_no_artifact_and_the_next_one_cleans_up(mlp: Model, toys: list[str], tmp_path: Path) -> None:
    mlp.save(tmp_path / "mlp.onnx")
    script = KILLED.format(paths=[str(Path(__file__).parent)], model=str(tmp_path / "mlp.onnx"), out=str(tmp_path / "a"))
    process = subprocess.Popen([sys.executable, "-c", script], cwd=tmp_path)
    try:
        deadline = time.monotonic() + 60
        while not list((tmp_path / "cache").rglob("first")):
            assert process.poll() is None, "it ended before it was killed"
            assert time.monotonic() < deadline
            time.sleep(0.05)
        process.send_signal(signal.SIGKILL)
    finally:
        process.kill()
        process.wait()
    assert not (tmp_path / "a").exists()
    assert not list((tmp_path / "cache").rglob("manifest.json"))
    assert len(list((tmp_path / "cache").rglob("*.staging"))) == 1

    artifact = gw.compile(gw.load(tmp_path / "mlp.onnx", name="mlp"), "toy{seconds=2}", out=tmp_path / "a")
    assert artifact.stage == "lowered"
    assert not list(tmp_path.rglob("*.staging"))
    assert len(list((tmp_path / "cache").rglob("manifest.json"))) == 1, "it is the killed one's entry that was made"


def test_build_replaces_the_lowered_artifact_whole(mlp: Model, toys: list[str], tmp_path: Path) -> None:
    artifact = gw.compile(mlp, "toy", out=tmp_path / "a")
    assert artifact.stage == "lowered"
    built = gw.build(tmp_path / "a")
    assert (built.stage, built.manifest["target"]) == ("built", {"toy": True, "bits": 4})
    assert "built.bin" in built.manifest["files"]
    assert gw.build(built).stage == "built"
    assert os.listdir(tmp_path) == ["cache", "a"] or sorted(os.listdir(tmp_path)) == ["a", "cache"]


def test_a_failed_build_leaves_the_lowered_artifact(mlp: Model, toys: list[str], tmp_path: Path) -> None:
    gw.compile(mlp, "toy{does=nobuild}", out=tmp_path / "a")
    before = {p.name: p.read_bytes() for p in (tmp_path / "a").iterdir()}
    with pytest.raises(ToolFailed):
        gw.build(tmp_path / "a")
    assert {p.name: p.read_bytes() for p in (tmp_path / "a").iterdir()} == before
    assert sorted(os.listdir(tmp_path)) == ["a", "cache"]


def test_a_float_model_is_refused_by_name_or_quantized_with_data(mlp: Model, samples: Dataset, toys: list[str]) -> None:
    with pytest.raises(UnsupportedError, match=r"qtoy.*'mlp'") as error:
        gw.compile(mlp, "qtoy")
    assert "quantize" in (error.value.hint or "")
    assert toys == []
    artifact = gw.compile(mlp, "qtoy", data=samples)
    texts = [step["text"] for step in artifact.manifest["model"]["history"]]
    assert [text.partition("{")[0] for text in texts][-2:] == ["fuse", "quantize"]
    quantized = gw.transform(mlp, "fuse,quantize{bits=4,grid=pow2}", data=samples)
    assert gw.compile(quantized, "qtoy").manifest["model"]["digest"] == quantized.digest


def test_data_that_does_not_fit_shows_both(mlp: Model, toys: list[str]) -> None:
    wrong = Dataset({"x": np.zeros((5, 7), np.float32)})
    with pytest.raises(DataError, match=r"4.*7"):
        gw.compile(mlp, "qtoy", data=wrong)


def test_check_quantizes_like_compile(mlp: Model, samples: Dataset, toys: list[str]) -> None:
    assert gw.check(mlp, "toy").ok
    assert not gw.check(mlp, "toy{does=shortfall}").ok
    assert gw.check(mlp, "qtoy", data=samples).ok


def test_an_unfinished_manifest_is_no_artifact(tmp_path: Path, mlp: Model, toys: list[str]) -> None:
    (tmp_path / "a").mkdir()
    with pytest.raises(GatewrightError, match="not an artifact"):
        gw.build(tmp_path / "a")
    (tmp_path / "a" / "manifest.json").write_text("{")
    with pytest.raises(GatewrightError, match="cannot be read"):
        gw.build(tmp_path / "a")
