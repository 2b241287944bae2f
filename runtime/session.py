"""Running an executor over a data set in batches, and measuring it while it runs."""

from __future__ import annotations

import io
import re
import time
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gatewright.errors import DataError
from gatewright.frontend.data import Dataset
from gatewright.hw.measurement import Measurement
from gatewright.progress import Progress, silent
from gatewright.targets.base import Executor, Feeds
from gatewright.targets.parts import PartsExecutor, Share

from .atomic import write_file
from .timing import Blocks, alternate

Array = NDArray[Any]

_BATCH_BYTES = 4 << 20
_BATCH_MOST = 1024


@dataclass(frozen=True)
class Run:
    """What came of running a data set."""

    outputs: dict[str, Array]
    samples: int
    seconds: float
    """Inside the executor, data preparation left out."""
    saturations: dict[str, int]
    """Values clamped at an integer tensor's bounds, all samples together, by ONNX name."""
    peak_memory: Measurement | None
    """The most memory that this process, Python and all libraries included, held while it ran; None where Linux does not tell."""
    is_device: bool
    parts: tuple[Share, ...] = ()
    """Where several engines share the model: what each took."""

    @property
    def rate(self) -> Measurement:
        """Samples per second: of the device, or of the emulator."""
        return Measurement(self.samples / max(self.seconds, 1e-9), "1/s", "measured" if self.is_device else "emulated")


def run(executor: Executor, data: Dataset, *, here: bool = True, progress: Progress = silent, what: str = "running") -> Run:
    """All samples, in order. Raises DataError where they do not fit the model's inputs.

    ``here``: the device is this machine. Where it is another one, running its code on this machine is an emulation.
    """
    pieces: list[dict[str, Array]] = []
    saturations: Counter[str] = Counter()
    samples, seconds = 0, 0.0
    can_reset = _reset_peak_memory()
    for feeds in _batches(executor, data):
        start = time.perf_counter()
        pieces.append(executor.run(feeds))
        seconds += time.perf_counter() - start
        saturations.update(executor.saturations)
        samples += len(next(iter(feeds.values())))
        progress(what, samples, len(data))
    peak = _peak_memory() if can_reset else None
    outputs = {name: _joined([piece[name] for piece in pieces]) for name in pieces[0]}
    parts = executor.shares if isinstance(executor, PartsExecutor) else ()
    return Run(outputs, samples, seconds, dict(saturations), peak, here and executor.mode == "device", parts)


def latencies(
    executors: Sequence[Executor], feeds: Sequence[Feeds], *, rounds: int = 3, block: int = 10, pause_s: float = 0.3, budget_s: float = 10.0
) -> list[Measurement]:
    """The median seconds of one native run of each executor, its ``feeds`` being one batch; in blocks by turns, see ``timing.py``."""
    calls = [native_call(executor, feed) for executor, feed in zip(executors, feeds, strict=True)]
    return [timing.median for timing in alternate(calls, Blocks(block, pause_s=pause_s, rounds=rounds, budget_s=budget_s))]


def native_call(executor: Executor, feeds: Feeds) -> Callable[[], dict[str, Array]]:
    """One native run on ``feeds`` without the checks, which are done now, by a first run."""
    executor.run(feeds)
    contiguous = {name: np.ascontiguousarray(array) for name, array in feeds.items()}
    return lambda: executor.run_native(contiguous)


def one_batch(executor: Executor, data: Dataset) -> Feeds:
    """Feeds of the first samples: one, or as many as the executor's native batch has."""
    return next(_batches(executor, data, executor.batch or 1))


def _batches(executor: Executor, data: Dataset, size: int | None = None) -> Iterator[dict[str, Array]]:
    infos = executor.inputs
    if executor.per_sample:
        if size is None:
            sample_bytes = sum(info.dtype.itemsize * int(np.prod(info.shape[1:], dtype=np.int64)) for info in infos)
            unit = executor.batch or 1
            size = max(unit, min(_BATCH_MOST, _BATCH_BYTES // max(sample_bytes, 1)) // unit * unit)
        yield from data.batches(infos, size)
        return
    # The samples depend on one another: the model takes exactly its own number of them at a time.
    fixed = infos[0].shape[0] if infos and infos[0].shape else 1
    if len(data) % fixed:
        raise DataError(f"the model takes exactly {fixed} samples at a time, the data has {len(data)}", hint=f"take a multiple of {fixed}")
    yield from data.batches(infos, fixed)


def _joined(pieces: list[Array]) -> Array:
    return np.concatenate(pieces) if pieces[0].ndim else np.stack(pieces)


def _reset_peak_memory() -> bool:
    """Have Linux count the peak from now on (proc_pid_clear_refs(5)); False where it does not."""
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    except OSError:
        return False
    return True


def _peak_memory() -> Measurement | None:
    """VmHWM of proc_pid_status(5), in kB there."""
    for line in Path("/proc/self/status").read_text(encoding="ascii", errors="replace").splitlines():
        if line.startswith("VmHWM:"):
            return Measurement(int(line.split()[1]) * 1024, "B", "measured")
    return None


def save_npz(path: Path, outputs: Mapping[str, Array]) -> None:
    """Outputs by name, written whole or not at all. A name's characters that could lead out of a folder become "_"."""
    buffer = io.BytesIO()
    taken: set[str] = set()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        for name, array in outputs.items():
            safe = re.sub(r"[^\w:+-]+", "_", name).strip("_") or "output"
            while safe in taken:
                safe += "_"
            taken.add(safe)
            with archive.open(f"{safe}.npy", "w", force_zip64=True) as file:
                np.lib.format.write_array(file, np.asarray(array, order="C"), allow_pickle=False)
    write_file(path, buffer.getvalue())
