"""Runs an artifact in a process of its own (``serve.py``): on this machine's CPU as the emulator, or on its TPU."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from gatewright.errors import GatewrightError
from gatewright.frontend.tensors import TensorInfo
from gatewright.targets.base import Array, Executor, Feeds, Mode
from gatewright.targets.worker import Worker

from .environment import LEFT_OUT, command, environment

STALL_LIMIT_S = 1800.0
"""XLA compiles on the first run: for a large model minutes, in silence."""


class XlaExecutor(Executor):
    """Slices any number of samples into the artifact's batch sizes."""

    def __init__(
        self,
        folder: Path,
        name: str,
        described: Mapping[str, Any],
        inputs: tuple[TensorInfo, ...],
        outputs: tuple[TensorInfo, ...],
        mode: Mode,
    ) -> None:
        self.inputs, self.outputs, self.mode = inputs, outputs, mode
        self.per_sample = bool(described["per_sample"])
        self.batch = None
        self._described = described
        where = "TPU" if mode == "device" else "emulator"
        platform = environment("tpu" if mode == "device" else "cpu")
        self._worker = Worker(command("serve", folder.resolve()), folder, f"the {where} of {name}", STALL_LIMIT_S, platform, LEFT_OUT, None)

    def run_native(self, feeds: Feeds) -> dict[str, Array]:
        buckets = self._described["buckets"]
        names = self._described["outputs"]
        if not self.per_sample:
            return self._outputs(dict(zip(names, self._ask(0, buckets[0]["outputs"], feeds), strict=True)))
        samples = len(next(iter(feeds.values())))
        pieces: list[list[Array]] = []
        start = 0
        while start < samples:
            which = _bucket([int(b["batch"]) for b in buckets], samples - start)
            size = int(buckets[which]["batch"])
            part = {name: _padded(array[start : start + size], size) for name, array in feeds.items()}
            found = self._ask(which, buckets[which]["outputs"], part)
            pieces.append([array[: min(size, samples - start)] for array in found])
            start += size
        joined = [np.concatenate(arrays) for arrays in zip(*pieces, strict=True)]
        return self._outputs(dict(zip(names, joined, strict=True)))

    def trace_native(self, feeds: Feeds) -> dict[str, Array]:
        """Sample by sample; an integer tensor also gives what it stands for, under the name of the float value that was quantized."""
        entry = self._described["trace"]
        if entry is None:
            raise GatewrightError("the inner tensors of this model are too large to be shown")
        samples = len(next(iter(feeds.values()))) if self.per_sample else 1
        pieces = []
        for i in range(samples):
            part = {name: array[i : i + 1] for name, array in feeds.items()} if self.per_sample else dict(feeds)
            pieces.append(self._ask(-1, entry["outputs"], part))
        names = [output["name"] for output in entry["outputs"]]
        # A constant has no samples to join.
        joined = [arrays[0] if arrays[0].ndim == 0 or samples == 1 else np.concatenate(arrays) for arrays in zip(*pieces, strict=True)]
        return dict(zip(names, joined, strict=True))

    def _ask(self, which: int, outputs: list[dict[str, Any]], feeds: Feeds) -> list[Array]:
        request = [np.asarray([which, 0], np.int64).tobytes()]
        for info in self.inputs:
            array = feeds[info.name]
            request.append(np.ascontiguousarray(array.astype(_held(info.dtype), copy=False)).tobytes())
        wanted = [math.prod(o["shape"]) * np.dtype(o["dtype"]).itemsize for o in outputs]
        answer = self._worker.exchange(b"".join(request), sum(wanted))
        found, offset = [], 0
        for output, size in zip(outputs, wanted, strict=True):
            found.append(np.frombuffer(answer[offset : offset + size], np.dtype(output["dtype"])).reshape(output["shape"]))
            offset += size
        return found

    def _outputs(self, found: Mapping[str, Array]) -> dict[str, Array]:
        return {info.name: found[info.name].astype(info.dtype) for info in self.outputs}

    def close(self) -> None:
        """End the process."""
        self._worker.close()


def _bucket(sizes: list[int], left: int) -> int:
    """The smallest that takes all that is left; else the largest."""
    enough = [i for i, size in enumerate(sizes) if size >= left]
    return min(enough, key=lambda i: sizes[i]) if enough else max(range(len(sizes)), key=lambda i: sizes[i])


def _padded(array: Array, size: int) -> Array:
    short = size - len(array)
    return np.concatenate([array, np.repeat(array[-1:], short, axis=0)]) if short else array


def _held(dtype: np.dtype[Any]) -> np.dtype[Any]:
    return np.dtype({"int4": "int8", "uint4": "uint8"}.get(dtype.name, dtype.name))
