"""The hostile corpus: every file is refused in words, or is a model; in time, in bounded memory, and without leaving its folder.

The files are made by hostile_models.py and hostile_files.py. Each is read as ``load`` reads any file, in a process of its own, where
Python's audit hook sees what is opened (audited.py); the kernel tells of the files that lie outside (watching.py).
"""

from __future__ import annotations

import contextlib
import os
import re
import sys
import time
from pathlib import Path

import pytest
from hostile_files import DATA, FOLDERS, SECRET
from hostile_models import MODELS

from gatewright.errors import GatewrightError, ModelError
from gatewright.frontend import isolate
from gatewright.frontend.data import Dataset
from gatewright.frontend.limits import GIB, Limits
from gatewright.frontend.load import _model_file, load

pytestmark = pytest.mark.skipif(not isolate.AVAILABLE, reason="this system cannot fork")

SECONDS = 10.0
BUSY = 3
"""A test may run beside others, on a busy machine: so many times longer is no hang."""
LIMITS = Limits(memory_bytes=2 * GIB, seconds=4 * SECONDS)
LONG = ("a million empty nodes", "a million empty opsets", "Scans within Scans")
NUMBERED = re.compile(r"(cut at|bits flipped|fields of) ")
"""Made by chance: what becomes of each is not written down."""
HARMLESS = {
    "unknown fields", "two outputs of one name", "nodes of one name", "no inputs", "no opset", "IR version -1",
    "a dimension called 9**9**9**9", "an output that claims 2^40", "a function that takes Relu's place", "Range", "Range of step 0",
    "Reshape to more", "Slice far outside", "Gather outside", "Gather of a constant outside", "Resize to nothing",
    "the least integer by -1", "a shift by 200", "Loop of -5 trips", "products of constants without end",
    "products of integers without end", "an Einsum without end", "a pool of constants without end", "a regular expression without end",
    "MaxPool pads 0", "a reference to nothing", "a Constant of two values", "BatchNormalization of negative variance", "a scale of 1e-45",
    "a scale of 3e+38", "weights of NaN", "weights of infinity", "sparse indices the wrong way round", "sparse indices twice",
    "sparse indices of two axes", "a tree of NaN", "Scans within Scans", "a history that is none", "a history of markup",
}  # fmt: skip
"""Models that make sense after all, or only for their engine: these load, and no others."""
FAILURES = re.compile(r"crashed|takes longer|unforeseen|cannot be read: \w+Error|AssertionError|Traceback")


@pytest.fixture(autouse=True, scope="module")
def started() -> None:
    """The process that forks takes a second to start."""
    isolate.isolated("misbehaving:small", {}, what="starting", limits=LIMITS)


def outcome(folder: Path) -> str | None:
    """None where the model in ``folder`` loads, else why not; a hang, a crash, or a step out of the folder is a failure."""
    start = time.monotonic()
    try:
        path = _model_file(folder)
        isolate.isolated("audited:read", {"path": str(path), "folder": str(folder)}, what=f"reading {path.name}", limits=LIMITS)
        refusal = None
    except GatewrightError as error:
        refusal = str(error)
        assert not FAILURES.search(refusal)
    assert time.monotonic() - start < BUSY * SECONDS
    return refusal


@pytest.mark.parametrize("name", [pytest.param(name, marks=[pytest.mark.slow] if name in LONG else []) for name in MODELS])
def test_model(name: str, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "model.onnx").write_bytes(MODELS[name])
    refusal = outcome(folder)
    assert sorted(item.name for item in tmp_path.rglob("*")) == ["model", "model.onnx"]
    if refusal is not None:
        assert "model.onnx" in refusal
    if not NUMBERED.match(name):
        assert (refusal is None) == (name in HARMLESS or name.startswith("called ")), refusal


@pytest.mark.skipif(sys.platform != "linux", reason="inotify is Linux's")
@pytest.mark.parametrize("name", FOLDERS)
def test_folder(name: str, tmp_path: Path) -> None:
    from watching import watched

    folder = tmp_path / "model"
    folder.mkdir()
    (tmp_path / SECRET).write_bytes(os.urandom(8000))
    FOLDERS[name](folder)
    before = sorted(tmp_path.rglob("*"))
    with watched(tmp_path) as touched:
        refusal = outcome(folder)
    assert touched == []
    assert sorted(tmp_path.rglob("*")) == before
    assert (refusal is None) == (name in ("external data with checksum " + "x" * 20, "two locations")), refusal


@pytest.mark.parametrize("name", DATA)
def test_data(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    monkeypatch.chdir(folder)
    DATA[name](folder)
    before = sorted(tmp_path.rglob("*"))
    start = time.monotonic()
    with contextlib.suppress(GatewrightError):
        assert Dataset.load(next(folder.iterdir())).inputs
    assert time.monotonic() - start < BUSY * SECONDS
    assert sorted(tmp_path.rglob("*")) == before


def test_the_corpus_is_large() -> None:
    assert len(MODELS) + len(FOLDERS) + len(DATA) >= 400


def test_a_step_outside_is_seen(tmp_path: Path) -> None:
    """The audit hook and the kernel's watch catch what they are there for."""
    from watching import watched

    (tmp_path / "model").mkdir()
    (tmp_path / "model.onnx").write_bytes(MODELS["called 'int'"])
    arguments = {"path": str(tmp_path / "model.onnx"), "folder": str(tmp_path / "model")}
    with watched(tmp_path) as touched, pytest.raises(ModelError, match="AssertionError: opened"):
        isolate.isolated("audited:read", arguments, what="reading", limits=LIMITS)
    with watched(tmp_path) as touched, pytest.raises(ModelError, match="AssertionError"):
        isolate.isolated("audited:open_outside", {"path": str(tmp_path / "model.onnx")}, what="reading", limits=LIMITS)
    assert "model.onnx" in touched


def test_in_this_process_nothing_else_happens(tmp_path: Path) -> None:
    """``trust=True`` refuses the same: it leaves out the process, not the checks."""
    (tmp_path / "model.onnx").write_bytes(MODELS["a tree that is a circle"])
    with pytest.raises(ModelError, match="circle"):
        load(tmp_path, trust=True)
