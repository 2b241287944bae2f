"""Verification vectors: what goes into the integer core and what must come out, and which layer is to blame when it does not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from gatewright.errors import MismatchError
from gatewright.frontend.data import Dataset
from gatewright.frontend.integer import IntegerOp
from gatewright.frontend.reference import Reference
from gatewright.frontend.split import Split

from .network import Array, Network, Port

DATA_SAMPLES = 16
RANDOM_SAMPLES = 12


def make(parts: Split, network: Network, data: Dataset | None, seed: int) -> dict[str, Array]:
    """ "in.<value>" and "out.<value>" → integers [samples, …]: samples of ``data`` if there are any, random ones over each input's
    whole range, and its extremes."""
    rng = np.random.default_rng(seed)
    inputs = {port.value: [_spread(port, rng)] for port in network.inputs}
    if data is not None:
        feeds = data.take(min(DATA_SAMPLES, len(data))).feeds(parts.model.inputs)
        if parts.host_pre is not None:
            feeds = {**feeds, **Reference(parts.host_pre).run(feeds)}
        for name, arrays in inputs.items():
            arrays.insert(0, np.asarray(feeds[name]).astype(np.int64))
    stimuli = {name: np.concatenate(arrays) for name, arrays in inputs.items()}
    expected = reference(parts, network.inputs, stimuli)
    return {
        **{f"in.{name}": array.astype(np.int32) for name, array in stimuli.items()},
        **{f"out.{name}": expected[name].astype(np.int32) for name in (port.value for port in network.outputs)},
    }


def save(vectors: Mapping[str, Array], path: Path) -> None:
    np.savez(path, **vectors)  # type: ignore[arg-type]


def load(path: Path) -> tuple[dict[str, Array], dict[str, Array]]:
    """Stimuli and expected results by value name."""
    with np.load(path) as file:
        arrays = dict(file)
    return {k[3:]: v for k, v in arrays.items() if k.startswith("in.")}, {k[4:]: v for k, v in arrays.items() if k.startswith("out.")}


def reference(parts: Split, inputs: Sequence[Port], stimuli: Mapping[str, Array], *, trace: bool = False) -> dict[str, Array]:
    """What the core must compute: outputs, or with ``trace`` every inner integer, by name (int64)."""
    dtypes = {info.name: info.dtype for info in parts.core_model.inputs}
    feeds = {port.value: stimuli[port.value].astype(dtypes[port.value]) for port in inputs}
    found = Reference(parts.core_model).run(feeds, trace=trace)
    return {name: array.astype(np.int64) for name, array in found.items() if array.dtype.kind != "f"}


def differs(got: Mapping[str, Array], expected: Mapping[str, Array]) -> bool:
    return any(not np.array_equal(got[name], expected[name]) for name in expected)


def blame(parts: Split, got: Mapping[str, Array], expected: Mapping[str, Array], design: str) -> MismatchError:
    """The error for a traced run: the first operation, in execution order, whose result differs."""
    for step in parts.core:
        name = step.output if isinstance(step, IntegerOp) else (step.node.outputs[0].name or "")
        if name not in got or name not in expected or np.array_equal(got[name], expected[name]):
            continue
        wrong = got[name] != expected[name]
        where = tuple(int(i[0]) for i in np.nonzero(wrong))
        node, op = (step.name, step.op) if isinstance(step, IntegerOp) else (step.node.name or "", step.node.op_type)
        samples = int(np.any(wrong.reshape(wrong.shape[0], -1), axis=1).sum())
        return MismatchError(
            f"the hls design of {design} does not compute what ref computes: the first layer that differs is {node!r} ({op}): "
            f"{int(wrong.sum())} of {wrong.size} values of {name!r} in {samples} of {wrong.shape[0]} samples; "
            f"at {list(where)} it gives {int(got[name][where])}, ref gives {int(expected[name][where])}",
            hint="this is a bug of gatewright or of hls4ml, not of the model; another io or tool may avoid it: hls{io=stream}",
        )  # fmt: skip
    return MismatchError(
        f"the hls design of {design} does not compute what ref computes, though every layer that can be looked at agrees",
        hint="this is a bug of gatewright or of hls4ml, not of the model",
    )


def _spread(port: Port, rng: np.random.Generator) -> Array:
    """Random samples over the whole range, all-lowest, all-highest, all-zero-point and alternating ones."""
    lo, hi = port.lo, port.hi
    random = rng.integers(lo, hi + 1, (RANDOM_SAMPLES, *port.shape))
    zero = min(max(port.zero_point, lo), hi)
    flat = [np.full(port.size, lo), np.full(port.size, hi), np.full(port.size, zero), np.resize([lo, hi], port.size)]
    return np.concatenate([random, np.stack(flat).reshape(-1, *port.shape)]).astype(np.int64)
