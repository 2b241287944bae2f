"""How long each kernel of a compiled model takes, and what share of the machine's measured peak that is.

The library's own ``run_watched`` tells when a kernel ends; what lies between two calls is one kernel's time, with about a
microsecond of telling. Work and bytes are the model's (``frontend/work.py``), so a Winograd convolution may exceed the peak.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from gatewright.errors import UsageError
from gatewright.frontend.integer import IntegerOp, plan
from gatewright.frontend.model import Model
from gatewright.frontend.work import layer_costs, value_bytes
from gatewright.targets.base import Artifact, Feeds

from .executor import CpuExecutor
from .peaks import Peaks


@dataclass(frozen=True)
class KernelTime:
    """One kernel's call."""

    function: str
    steps: tuple[str, ...]
    """The nodes that it computes, with their operators: "conv1 (Conv)"."""
    shape: tuple[int, ...]
    """Of what it writes."""
    dtype: str
    seconds: float
    """The median."""
    operations: int
    """Two per multiply-accumulate of a plain computation, and one per other operation."""
    macs: int
    bytes: int
    """Read and written, each tensor once."""

    @property
    def op(self) -> str:
        """The operator that it was made around."""
        return self.function.partition("_")[2]

    def share(self, peaks: Peaks) -> float:
        """Of the roofline: the time of the slower of arithmetic and traffic at the machine's measured best, over the time taken."""
        wide = "int8" if "int8" in self.dtype and self.macs else "float32"
        arithmetic = self.operations / peaks.operations(wide)
        traffic = self.bytes / peaks.bandwidth(self.bytes)
        return max(arithmetic, traffic) / self.seconds

    def to_json(self, peaks: Peaks) -> dict[str, Any]:
        """Seconds, operations and bytes per second, and the share of the roofline."""
        return {
            "function": self.function, "op": self.op, "steps": list(self.steps), "shape": list(self.shape), "dtype": self.dtype,
            "seconds": self.seconds, "macs": self.macs, "bytes": self.bytes, "operations_per_s": self.operations / self.seconds,
            "bytes_per_s": self.bytes / self.seconds, "share": self.share(peaks),
        }  # fmt: skip


def profile(artifact: Artifact, model: Model, feeds: Feeds, *, runs: int = 20) -> tuple[KernelTime, ...]:
    """Kernels in the order of their calls. ``model``: what the artifact was compiled from, in its batch; ``feeds``: one batch.

    Raises UsageError for an artifact of another target.
    """
    if artifact.parts:
        raise UsageError(f"its kernels cannot be timed: {artifact.manifest['name']} runs in {len(artifact.parts)} parts on several engines")
    if artifact.manifest["target_name"] != "cpu":
        raise UsageError(f"only kernels of target cpu can be timed, not those of {artifact.target_text}")
    calls = artifact.manifest["target"]["calls"]
    with artifact.load() as executor:
        assert isinstance(executor, CpuExecutor)
        executor.run(feeds)
        found = [_one_run(executor, feeds, len(calls)) for _ in range(runs)]
    seconds = [statistics.median(times) for times in zip(*found, strict=True)]
    return tuple(
        KernelTime(
            call["function"], tuple(call["steps"]), tuple(call["shape"]), call["dtype"], max(taken, 1e-9), *work
        )
        for call, taken, work in zip(calls, seconds, _work(model, calls), strict=True)
    )  # fmt: skip


def _one_run(executor: CpuExecutor, feeds: Feeds, count: int) -> list[float]:
    """Seconds of each kernel."""
    began, ended = [0.0] * (count + 1), [0.0] * count

    def watch(number: int, address: int, nbytes: int) -> None:
        ended[number] = time.perf_counter()
        began[number + 1] = time.perf_counter()

    began[0] = executor.watch_native(feeds, watch)
    return [end - begin for begin, end in zip(began, ended, strict=False)]


def _work(model: Model, calls: list[Mapping[str, Any]]) -> list[tuple[int, int, int]]:
    """Operations, multiply-accumulates and bytes of each kernel."""
    costs = {cost.name: cost for cost in layer_costs(model)}
    reads, sizes = _flows(model)
    found = []
    for call in calls:
        names = [step.rpartition(" (")[0] for step in call["steps"]]
        mine = [costs[name] for name in names if name in costs]
        made = {output for name in names for output in reads.get(name, ((), ()))[1]}
        outside = {value for name in names for value in reads.get(name, ((), ()))[0]} - made
        written = math.prod(call["shape"]) * np.dtype(call["dtype"]).itemsize
        moved = written + sum(sizes.get(name, 0) for name in outside) + sum(cost.weight_bytes for cost in mine)
        macs = sum(cost.macs for cost in mine)
        found.append((2 * macs + sum(cost.elementwise_ops for cost in mine), macs, moved))
    return found


def _flows(model: Model) -> tuple[dict[str, tuple[tuple[str, ...], tuple[str, ...]]], dict[str, int]]:
    """Of each step, by its name: what it reads and writes; and bytes of every value."""
    flows: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {}
    sizes = {value.name or "": value_bytes(value) for value in model.graph.inputs}
    for step in plan(model).steps:
        if isinstance(step, IntegerOp):
            flows[step.name] = (tuple(o.name for o in step.operands if o.constant is None), (step.output,))
            sizes[step.output] = math.ceil(math.prod(step.shape) * step.grid.dtype.bitwidth / 8)
            continue
        inputs = tuple(v.name or "" for v in step.node.inputs if v is not None and v.const_value is None)
        flows[step.node.name or ""] = (inputs, tuple(v.name or "" for v in step.node.outputs))
        sizes |= {value.name or "": value_bytes(value) for value in step.node.outputs}
    return flows, sizes
