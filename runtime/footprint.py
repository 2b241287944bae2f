"""How much memory an engine takes with one model: the peak of a process that does nothing else.

``python -m gatewright.runtime.footprint JOB.json`` is that process. What it holds before it loads the engine (Python, numpy,
the feeds) is its baseline: the same for every engine, so that the difference is what engine and model take.
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from gatewright.errors import GatewrightError
from gatewright.hw.measurement import Measurement
from gatewright.interpreter import python
from gatewright.targets import toolchain
from gatewright.targets.base import Feeds

RUNS = 3
TIME_LIMIT_S = 300.0


@dataclass(frozen=True)
class Footprint:
    """Bytes of resident memory of one process."""

    peak: Measurement
    baseline: Measurement
    """Before the engine was loaded."""

    @property
    def taken(self) -> Measurement:
        """By the engine, its libraries, the model and its runs."""
        return Measurement(self.peak.value - self.baseline.value, "B", "measured")


def measure(kind: str, path: Path, feeds: Feeds, threads: int) -> Footprint:
    """Of ``kind`` "artifact" (a folder of ours) or an engine's name (a model file). Raises GatewrightError where the process fails."""
    with TemporaryDirectory(prefix="gatewright-memory-") as name:
        folder = Path(name)
        files = []
        for index, array in enumerate(feeds.values()):
            np.save(folder / f"{index}.npy", array, allow_pickle=False)
            files.append(f"{index}.npy")
        job = {"kind": kind, "path": str(path.resolve()), "feeds": dict(zip(feeds, files, strict=True)), "threads": threads}
        (folder / "job.json").write_text(json.dumps(job), encoding="utf-8")
        toolchain.run(
            python("-m", "gatewright.runtime.footprint", folder / "job.json"), cwd=folder, log=folder / "log",
            what="measuring memory", time_limit_s=TIME_LIMIT_S,
        )  # fmt: skip
        try:
            found = json.loads((folder / "found.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            raise GatewrightError("this system does not tell a process how much memory it holds") from None
    return Footprint(Measurement(float(found["peak"]), "B", "measured"), Measurement(float(found["baseline"]), "B", "measured"))


def main(job_file: Path) -> int:
    """In the process of its own: load, run, write what the kernel counted beside the job."""
    job = json.loads(job_file.read_text(encoding="utf-8"))
    feeds = {name: np.load(job_file.parent / file, allow_pickle=False) for name, file in job["feeds"].items()}
    baseline = _status("VmRSS")
    if baseline is None:
        return 0
    if job["kind"] == "artifact":
        from gatewright.targets.base import Artifact, TargetContext

        executor = Artifact.open(job["path"], TargetContext(job_file.parent)).load()
        for _ in range(RUNS):
            executor.run(feeds)
    else:
        from .engines import other

        prepared = other(job["kind"]).open(Path(job["path"]), feeds, int(job["threads"]))
        for _ in range(RUNS):
            prepared.call()
    (job_file.parent / "found.json").write_text(json.dumps({"baseline": baseline, "peak": _status("VmHWM")}), encoding="utf-8")
    return 0


def _status(key: str) -> int | None:
    """Bytes, from /proc/self/status (proc_pid_status(5), in kB there); None where there is no such file."""
    try:
        lines = Path("/proc/self/status").read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{key}:")), None)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
