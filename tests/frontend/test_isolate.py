"""Work in a process of its own: whatever happens in there is an error here, in time, and the next work is done."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import parser

from gatewright.errors import DoesNotFit, GatewrightError, ModelError
from gatewright.frontend import isolate
from gatewright.frontend.isolate import isolated
from gatewright.frontend.limits import GIB, MIB, Limits
from gatewright.frontend.load import load
from gatewright.frontend.mapped import place_of
from gatewright.frontend.model import Model

pytestmark = pytest.mark.skipif(not isolate.AVAILABLE, reason="this system cannot fork")


def misbehave(how: str, limits: Limits | None = None, **arguments: object) -> Model:
    return isolated(f"misbehaving:{how}", arguments, what="reading x", limits=limits or Limits(seconds=60, memory_bytes=GIB))


@pytest.mark.parametrize(
    ("how", "limits", "message"),
    [
        ("segfault", None, r"reading x crashed \(SIGSEGV\) in string_at of ctypes/__init__\.py"),
        ("abort", None, r"reading x crashed \(SIGABRT\) in abort of tests/misbehaving\.py"),
        ("leave", None, "reading x ended with exit code 3"),
        ("hang_in_c", Limits(seconds=0.5), r"reading x takes longer than 0\.5 s in hang_in_c of tests/misbehaving\.py.*--limits seconds="),
        ("sleep", Limits(seconds=0.5), r"takes longer than 0\.5 s in sleep"),
        ("eat", Limits(memory_bytes=300 * MIB), r"reading x needs more than 300 MiB of memory.*--limits memory_bytes="),
        ("eat_in_c", Limits(memory_bytes=300 * MIB), "reading x needs more than 300 MiB of memory"),
        ("stumble", None, r"something unforeseen: AssertionError: never so \(--debug"),
    ],
)
def test_what_goes_wrong_is_an_error(how: str, limits: Limits | None, message: str) -> None:
    start = time.monotonic()
    with pytest.raises(ModelError, match=message):
        misbehave(how, limits)
    assert time.monotonic() - start < 30
    assert misbehave("small").name == "g"


def test_its_own_errors_come_through() -> None:
    with pytest.raises(DoesNotFit) as caught:
        misbehave("fail")
    assert (caught.value.message, caught.value.hint) == ("it is too large", "take a larger one")


def test_what_it_writes_is_bounded(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="File too large"):
        misbehave("write_a_file", Limits(weight_bytes=GIB, file_bytes=GIB), path=str(tmp_path / "file"))
    assert (tmp_path / "file").stat().st_size == 0


def test_what_it_prints_is_not_heard(capfd: pytest.CaptureFixture[str]) -> None:
    assert misbehave("talk").name == "g"
    assert capfd.readouterr() == ("", "")


def test_each_piece_of_work_has_its_own_process() -> None:
    first, second = misbehave("process"), misbehave("process")
    assert len({first.name, second.name, str(os.getpid())}) == 3


def test_threads_take_turns() -> None:
    names: list[str] = []
    threads = [threading.Thread(target=lambda: names.append(misbehave("process").name)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(names)) == 4


def test_a_forked_process_has_its_own() -> None:
    misbehave("small")
    pid = os.fork()
    if pid == 0:
        os._exit(0 if misbehave("small").name == "g" else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert misbehave("small").name == "g"


def test_it_is_started_again_when_it_is_gone() -> None:
    misbehave("small")
    process = isolate._nursery._process
    assert process is not None
    process.kill()
    process.wait()
    assert misbehave("small").name == "g"


def test_nothing_is_imported_from_the_models_folder(tmp_path: Path) -> None:
    """Whoever unpacks a model and goes into its folder must not run the numpy.py that lies there."""
    for name in ("numpy.py", "onnx.py", "json.py", "gatewright.py"):
        (tmp_path / name).write_text("import os; os.makedirs('harm', exist_ok=True)")
    text = '<ir_version: 8, opset_import: ["" : 21]> g (float[1] x) => (float[1] y) { y = Relu(x) }'
    (tmp_path / "m.onnx").write_bytes(parser.parse_model(text).SerializeToString())
    code = "import gatewright as gw; print(gw.load('m.onnx').name)"
    done = subprocess.run([sys.executable, "-P", "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.stdout.strip(), done.stderr) == ("m", "")
    assert not (tmp_path / "harm").exists()


def test_weights_come_back_mapped(tmp_path: Path) -> None:
    """Changed ones (here: transposed), unchanged ones, 4-bit ones; the digest is that of the same model read in this process."""
    weight = np.arange(6400, dtype=np.float32).reshape(80, 80)
    proto = parser.parse_model(
        '<ir_version: 10, opset_import: ["" : 21]> g (float[1,80] x, float[1,160] u) => (float[1,80] y, float[1,80] z) '
        "{ y = Gemm<transB=1>(x, w)  h = DequantizeLinear(q, s)  k = Transpose(h)  z = MatMul(u, k) }"
    )
    proto.graph.initializer.append(onnx.numpy_helper.from_array(weight, "w"))
    four = onnx.helper.make_tensor("q", onnx.TensorProto.INT4, [80, 160], bytes(range(200)) * 32, raw=True)
    proto.graph.initializer.extend([four, onnx.numpy_helper.from_array(np.array(0.5, np.float32), "s")])
    path = tmp_path / "m.onnx"
    path.write_bytes(proto.SerializeToString())
    apart, here = load(path), load(path, trust=True)
    assert apart.digest == here.digest
    assert apart.history == here.history
    places = [place_of(v.const_value.raw) for v in apart.graph.initializers.values() if v.const_value.nbytes > 4096]  # type: ignore[union-attr]
    assert len(places) == 2
    assert all(place is not None for place in places)


def test_where_it_cannot_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(isolate, "_nursery", isolate._Nursery())
    monkeypatch.setattr(isolate, "_BOOT", "raise SystemExit('no such thing')")
    with pytest.raises(GatewrightError, match=r"ends at once: no such thing \(trust=True"):
        misbehave("small")
