"""Memory of a compiled model at run time beside ONNX Runtime's, each in a process of its own: python bench/memory.py [--data ../shared]

Three ways to run a model three times: the artifact from Python, the artifact's C++ example, and onnxruntime.InferenceSession
from Python (its usual options, the same number of threads). Per process: the peak of resident memory (VmHWM), resident and
proportional memory (RSS, PSS: a page that n processes share counts 1/n) after the last run, and the peak less what Python and
numpy took before the engine was loaded. Linux only: the figures are the kernel's, from /proc.
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

RUNS = 3
MIB = 1 << 20
STARTER = """
import os, sys
pid = os.posix_spawn(sys.argv[1], sys.argv[1:], os.environ, file_actions=[(os.POSIX_SPAWN_OPEN, 1, "/dev/null", os.O_WRONLY, 0)])
_, status, usage = os.wait4(pid, 0)
print(usage.ru_maxrss * 1024)
sys.exit(os.waitstatus_to_exitcode(status))
"""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", help="names of models; all of the CPU benchmark by default")
    parser.add_argument("--data", type=Path, default=Path(__file__).resolve().parents[2] / "shared", help="folder with models/ and data/")
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    pair = f"{'ours':>8s} {'ORT':>8s} {'ratio':>8s} "
    print(f"{'MiB':24s} {'peak RSS':>26s} {'PSS':>26s} {'taken by the engine':>26s} {'C++':>8s}")
    print(f"{'':24s} {pair * 3}{'peak':>8s}")
    ratios: list[float] = []
    for name, loaded in _models(arguments.models, arguments.data):
        with tempfile.TemporaryDirectory() as scratch:
            folder = Path(scratch)
            ours, theirs, native = _measured(loaded, folder, arguments.threads)
        cells = [(ours[key], theirs[key]) for key in ("peak", "pss", "taken")]
        ratios.append(ours["peak"] / theirs["peak"])
        row = " ".join(f"{a / MIB:8.1f} {b / MIB:8.1f} {a / b:8.2f}" for a, b in cells)
        print(f"{name:24s} {row} {native / MIB:8.1f}", flush=True)
    if ratios:
        mean = math.exp(sum(map(math.log, ratios)) / len(ratios))
        print(f"peak RSS, ours / ORT's: geometric mean {mean:.2f}, worst {max(ratios):.2f}")
    return 0


def _models(names: list[str], data: Path) -> Any:
    """(name, Model) of the benchmark's models that are there."""
    import models

    from gatewright.errors import GatewrightError

    for subject in models.SUBJECTS:
        if names and subject.name not in names:
            continue
        try:
            yield subject.name, subject.load(data)
        except (GatewrightError, OSError) as error:
            print(f"{subject.name}: left out: {error}", file=sys.stderr)


def _measured(model: Any, folder: Path, threads: int) -> tuple[dict[str, float], dict[str, float], float]:
    """Figures in bytes of our process, of ORT's, and the peak of the C++ program."""
    import numpy as np

    import gatewright as gw
    from gatewright.runtime.bench import random_feeds

    artifact = gw.compile(model, f"cpu{{threads={threads}}}", out=folder / "artifact")
    model.save(folder / "model.onnx")
    feeds = random_feeds(model.inputs, 0)
    np.savez(folder / "feeds.npz", **{str(i): feeds[info.name] for i, info in enumerate(model.inputs)})
    found = []
    for engine, path in (("ours", folder / "artifact"), ("ort", folder / "model.onnx")):
        words = [sys.executable, __file__, "--one", engine, str(path), str(folder / "feeds.npz"), str(threads)]
        done = subprocess.run(words, capture_output=True, text=True, check=True)
        found.append(json.loads(done.stdout))
    program, library = folder / "example", artifact.path / artifact.manifest["target"]["library"]
    compile_words = ["c++", "-std=c++17", "-O1", "-I", artifact.path, artifact.path / "example" / "main.cpp", library, "-o", program]
    subprocess.run([*compile_words, f"-Wl,-rpath,{artifact.path}"], check=True)
    inputs = [folder / f"in{i}" for i in range(len(model.inputs))]
    for path, info in zip(inputs, model.inputs, strict=True):
        path.write_bytes(np.ascontiguousarray(feeds[info.name]).tobytes())
    outputs = [folder / f"out{i}" for i in range(len(model.outputs))]
    words = [program, "--threads", str(threads), "--repeat", str(RUNS), artifact.path / "constants.bin", *inputs, *outputs]
    # The kernel counts a new process's memory from before it becomes its program, so a small one starts it.
    starter = [sys.executable, "-I", "-S", "-c", STARTER, *map(str, words)]
    done = subprocess.run(starter, capture_output=True, text=True, check=True)
    return found[0], found[1], float(done.stdout)


def one(engine: str, path: str, feeds_file: str, threads: int) -> None:
    """In a process of its own: load, run, print what the kernel counted."""
    import numpy as np

    with np.load(feeds_file, allow_pickle=False) as file:
        arrays = [file[str(i)] for i in range(len(file.files))]
    before = _rss("VmRSS")
    if engine == "ours":
        from gatewright.targets.base import Artifact, TargetContext

        executor = Artifact.open(path, TargetContext(Path())).load()
        feeds = {info.name: array for info, array in zip(executor.inputs, arrays, strict=True)}
        for _ in range(RUNS):
            executor.run(feeds)
    else:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        feeds = {info.name: array for info, array in zip(session.get_inputs(), arrays, strict=True)}
        for _ in range(RUNS):
            session.run(None, feeds)
    rollup = Path("/proc/self/smaps_rollup").read_text(encoding="ascii")
    pss = next(int(line.split()[1]) * 1024 for line in rollup.splitlines() if line.startswith("Pss:"))
    print(json.dumps({"peak": _rss("VmHWM"), "pss": pss, "taken": _rss("VmHWM") - before}))


def _rss(key: str) -> int:
    lines = Path("/proc/self/status").read_text(encoding="ascii", errors="replace").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{key}:"))


if __name__ == "__main__":
    if sys.argv[1:2] == ["--one"]:
        one(sys.argv[2], sys.argv[3], sys.argv[4], int(sys.argv[5]))
    else:
        sys.exit(main())
