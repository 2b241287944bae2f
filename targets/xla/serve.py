"""The running process: ``python -m gatewright.targets.xla.serve FOLDER``. It answers samples on its standard input with results.

A request is 16 bytes, two int64: which program (a bucket's number, or −1 for the trace) and 0, then the inputs' bytes in order. The
answer is the outputs' bytes in order. The programs' shapes say how many bytes those are.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any, BinaryIO

import ml_dtypes  # noqa: F401 (numpy learns bfloat16 and int4 from it)
import numpy as np


def load_weights(folder: Path, index: list[dict[str, Any]]) -> dict[str, Any]:
    """By name, mapped from the file."""
    from .worker import WEIGHTS

    file = folder / WEIGHTS
    raw = np.memmap(file, np.uint8, "r") if file.stat().st_size else np.zeros(0, np.uint8)
    found = {}
    for entry in index:
        dtype = np.dtype(entry["dtype"])
        count = int(np.prod(entry["shape"], dtype=np.int64)) * dtype.itemsize
        found[entry["name"]] = raw[entry["offset"] : entry["offset"] + count].view(dtype).reshape(entry["shape"])
    return found


class Session:
    """The artifact's programs, made ready as they are asked for; on several devices where the artifact was compiled for several."""

    def __init__(self, folder: Path) -> None:
        import jax

        self._folder = folder
        self._described = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
        target = self._described["target"]
        self._target, devices = target, jax.devices()
        cores, mesh = int(target["cores"]), str(target["mesh"])
        self._shard = None
        held = load_weights(folder, target["weights"])
        if mesh != "none" and len(devices) >= cores > 1:
            from .worker import placed

            self._shard, of_weight = placed(devices[:cores], mesh, {k: tuple(v) for k, v in target["splits"].items()})
            self._weights = {name: jax.device_put(array, of_weight(name)) for name, array in held.items()}
        else:
            self._weights = {name: jax.device_put(array) for name, array in held.items()}
        self._ready: dict[int, Any] = {}

    def entry(self, which: int) -> dict[str, Any]:
        found: dict[str, Any] = self._target["trace"] if which < 0 else self._target["buckets"][which]
        return found

    def run(self, which: int, inputs: list[Any]) -> list[Any]:
        import jax
        from jax import export

        if which not in self._ready:
            blob = (self._folder / self.entry(which)["program"]).read_bytes()
            self._ready[which] = jax.jit(export.deserialize(bytearray(blob)).call)
        placed = [jax.device_put(x, self._shard(x.shape)) for x in inputs] if self._shard else inputs
        return [np.asarray(array) for array in self._ready[which](self._weights, *placed)]

    def inputs(self, which: int) -> list[tuple[tuple[int, ...], np.dtype[Any]]]:
        """Shapes and types of a program's inputs."""
        batch = 1 if which < 0 else int(self.entry(which)["batch"])
        first = self._target["per_sample"]
        return [((batch, *e["shape"][1:]) if first else tuple(e["shape"]), np.dtype(_held(e["dtype"]))) for e in self._described["inputs"]]


def _held(dtype: str) -> str:
    return {"int4": "int8", "uint4": "uint8"}.get(dtype, dtype)


def serve(folder: Path, source: BinaryIO, sink: BinaryIO) -> None:
    session = Session(folder)
    while header := source.read(16):
        which = int(np.frombuffer(header, np.int64)[0])
        inputs = []
        for shape, dtype in session.inputs(which):
            data = source.read(int(np.prod(shape, dtype=np.int64)) * dtype.itemsize)
            inputs.append(np.frombuffer(data, dtype).reshape(shape))
        for array in session.run(which, inputs):
            sink.write(np.ascontiguousarray(array).tobytes())
        sink.flush()


if __name__ == "__main__":
    # What libraries print must not get between the answers.
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    serve(Path(sys.argv[1]), sys.stdin.buffer, answers)
