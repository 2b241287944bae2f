"""Runs an artifact whose model several engines share: one part after the other, each an artifact of its own.

A manifest's entry of a part: {"folder", "target", "inputs", "outputs", "nodes": how many operations, "reasons": {node: why it is
not on the artifact's own target}, "macs", "received_bytes": of values that other parts made, in one run}.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import numpy as np

from gatewright.frontend.tensors import TensorInfo

from .base import Array, Artifact, Executor, Feeds, Mode


@dataclass(frozen=True)
class Share:
    """What one part of a model is and takes."""

    target: str
    nodes: int
    reasons: Mapping[str, str]
    macs: int
    received_bytes: int
    seconds: float | None
    """Of one run, on average; None before the first."""

    def to_json(self) -> dict[str, Any]:
        return {
            "target": self.target,
            "nodes": self.nodes,
            "reasons": dict(self.reasons),
            "macs": self.macs,
            "received_bytes": self.received_bytes,
            "seconds": self.seconds,
        }


class PartsExecutor(Executor):
    """Each part takes its inputs from the model's and from the parts before it."""

    def __init__(self, artifact: Artifact, mode: Mode) -> None:
        self.inputs, self.outputs = (
            tuple(TensorInfo(entry["name"], tuple(entry["shape"]), np.dtype(entry["dtype"])) for entry in artifact.manifest[key])
            for key in ("inputs", "outputs")
        )
        described = artifact.manifest["target"]
        self.mode = mode
        self.per_sample = bool(described["per_sample"])
        self.batch = int(described["batch"]) if self.per_sample else None
        self._entries = artifact.parts
        self._seconds = [0.0] * len(artifact.parts)
        self._runs = 0
        self._open = ExitStack()
        try:
            self._parts = [self._open.enter_context(_loaded(artifact, str(entry["folder"]), mode)) for entry in artifact.parts]
        except BaseException:
            self._open.close()
            raise

    def run_native(self, feeds: Feeds) -> dict[str, Array]:
        values: dict[str, Array] = dict(feeds)
        for index, part in enumerate(self._parts):
            began = time.perf_counter()
            values.update(part.run({info.name: values[info.name] for info in part.inputs}))
            self._seconds[index] += time.perf_counter() - began
        self._runs += 1
        return {info.name: values[info.name] for info in self.outputs}

    def trace_native(self, feeds: Feeds) -> dict[str, Array]:
        values: dict[str, Array] = dict(feeds)
        for part in self._parts:
            values.update(part.trace({info.name: values[info.name] for info in part.inputs}))
        return {name: array for name, array in values.items() if name not in feeds}

    @property
    def shares(self) -> tuple[Share, ...]:
        """The parts, and what each took of the runs so far."""
        return tuple(
            Share(
                str(entry["target"]), int(entry["nodes"]), entry["reasons"], int(entry["macs"]), int(entry["received_bytes"]),
                seconds / self._runs if self._runs else None,
            )
            for entry, seconds in zip(self._entries, self._seconds, strict=True)
        )  # fmt: skip

    @property
    def saturations(self) -> dict[str, int]:
        return {name: count for part in self._parts for name, count in part.saturations.items()}

    def close(self) -> None:
        self._open.close()


def _loaded(artifact: Artifact, folder: str, mode: Mode) -> Executor:
    part = Artifact.open(artifact.path / folder, artifact.context)
    target = part.target()
    # Only a part on the artifact's own target can be emulated; the other engines run on this machine.
    return part.load(mode if target.name == artifact.target().name else None)
