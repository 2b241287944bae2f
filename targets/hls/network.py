"""What an HLS design is before any file is written: hls4ml layers with a proven fixed-point type for every tensor.

``legalize.py`` makes a Network from a canonical model, ``sizing.py`` chooses how parallel each layer is, ``generate.py``
turns it into an hls4ml project. Nothing here imports hls4ml.

Units: a tensor holds v = q − z (the integers of the numeric contract without their zero point) times 2^exponent, channels
last, without the samples' axis.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
Io = Literal["parallel", "stream"]
Tool = Literal["vitis", "vivado", "vivadoaccelerator", "quartus", "oneapi", "catapult"]
Strategy = Literal["latency", "resource"]
Shell = Literal["none", "dma", "xrt"]
"""What the design is wrapped in: nothing (an IP core), AXI4-Stream for a DMA beside a Zynq's processor, a kernel of an Alveo card."""


@dataclass(frozen=True)
class Fixed:
    """An ap_fixed or ac_fixed type: ``width`` bits, ``integer`` of them before the binary point (either may exceed the other)."""

    signed: bool
    width: int
    integer: int
    saturating: bool = False
    """True: values are rounded half to even and saturated on assignment; False: they are assumed to fit (wrap)."""

    @classmethod
    def holding(cls, lo: int, hi: int, exponent: int) -> Fixed:
        """The narrowest type that holds k·2^exponent for every integer k in lo … hi."""
        signed = lo < 0
        bits = max(max(hi, 0).bit_length(), (-lo - 1).bit_length() if signed else 0)
        width = max(bits + signed, 1)
        return cls(signed, width, width + exponent)

    @property
    def exponent(self) -> int:
        """Of the least significant bit."""
        return self.integer - self.width

    @property
    def bounds(self) -> tuple[int, int]:
        """Least and largest value, in units of the least significant bit."""
        return (-(1 << (self.width - 1)), (1 << (self.width - 1)) - 1) if self.signed else (0, (1 << self.width) - 1)

    def saturated(self) -> Fixed:
        return dataclasses.replace(self, saturating=True)

    def __str__(self) -> str:
        """hls4ml's spelling."""
        modes = ",RND_CONV,SAT" if self.saturating else ""
        return f"{'' if self.signed else 'u'}fixed<{self.width},{self.integer}{modes}>"


@dataclass(frozen=True)
class Layer:
    """One layer of hls4ml's list, or one of ours (templates/nnet_gatewright.h)."""

    name: str
    """A C identifier, made from the kind and a number, never from the model's names."""
    kind: str
    """hls4ml's class name."""
    inputs: tuple[str, ...]
    shape: tuple[int, ...]
    """Of the output, channels last, without the samples' axis."""
    types: Mapping[str, Fixed]
    """"result", and "weight", "bias", "accum", "scale", "table" … where the layer has such."""
    attributes: Mapping[str, Any] = field(default_factory=dict)
    """JSON values that hls4ml's layer class takes."""
    arrays: Mapping[str, Array] = field(default_factory=dict)
    """float64, exact multiples of their type's least significant bit."""
    node: str = ""
    """Name of the ONNX node it was made for."""
    strategy: Strategy = "latency"
    reuse: int = 1
    """Clock cycles over which the multipliers of one output position are shared."""

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    @property
    def multiplications(self) -> tuple[int, int]:
        """n_in, n_out of the matrix product behind one output position; (0, 0) where there is none."""
        a = self.attributes
        match self.kind:
            case "Dense":
                return a["n_in"], a["n_out"]
            case "Conv2D":
                return a["filt_height"] * a["filt_width"] * a["n_chan"], a["n_filt"]
            case "DepthwiseConv2D":
                return a["filt_height"] * a["filt_width"], a["n_chan"]
            case _:
                return 0, 0

    @property
    def positions(self) -> int:
        """Output positions (pixels) for which the matrix product is computed."""
        return math.prod(self.shape[:-1]) if self.kind in ("Conv2D", "DepthwiseConv2D") else 1


@dataclass(frozen=True)
class Port:
    """An integer tensor of the ONNX graph and where it lies in the design: an input, an output or a traced value."""

    value: str
    """Its ONNX name."""
    layer: str
    shape: tuple[int, ...]
    """In ONNX's layout, without the samples' axis."""
    axes: tuple[int, ...]
    """Transposition of those axes that gives the design's layout: (1, 2, 0) is CHW to HWC."""
    exponent: int
    zero_point: int
    dtype: str
    """numpy or ml_dtypes name of the ONNX integer type."""
    lo: int
    hi: int
    """Bounds of the integers (zero point included)."""

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    def encode(self, q: Array) -> Array:
        """ONNX integers [n, *shape] → real values in the design's layout, float64 [n, size]."""
        real = np.ldexp(q.astype(np.float64) - self.zero_point, self.exponent)
        moved = real.transpose(0, *(axis + 1 for axis in self.axes))
        return np.ascontiguousarray(moved.reshape(q.shape[0], -1))

    def decode(self, real: Array) -> Array:
        """The inverse of ``encode``, int64 [n, *shape]. A value that is no multiple of 2^exponent is kept visible by rounding away."""
        steps = np.ldexp(real, -self.exponent)
        q = (np.sign(steps) * np.ceil(np.abs(steps))).astype(np.int64) + self.zero_point
        laid_out = q.reshape(real.shape[0], *(self.shape[axis] for axis in self.axes))
        inverse = np.argsort(self.axes) if self.axes else ()
        return np.ascontiguousarray(laid_out.transpose(0, *(int(axis) + 1 for axis in inverse)))


@dataclass(frozen=True)
class Network:
    """A whole design."""

    layers: tuple[Layer, ...]
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    traced: tuple[Port, ...]
    """Inner tensors that can be looked at in emulation, in execution order; the outputs are not among them."""
    notes: tuple[str, ...] = ()
    tool: Tool = "vitis"
    io: Io = "parallel"
    part: str = ""
    clock_ns: float = 10.0
    shell: Shell = "none"

    def layer(self, name: str) -> Layer:
        return next(layer for layer in self.layers if layer.name == name)

    def to_json(self) -> dict[str, Any]:
        """Everything but the arrays."""
        return {
            "tool": self.tool, "io": self.io, "part": self.part, "clock_ns": self.clock_ns,
            "shell": self.shell,
            "inputs": [dataclasses.asdict(port) for port in self.inputs],
            "outputs": [dataclasses.asdict(port) for port in self.outputs],
            "traced": [dataclasses.asdict(port) for port in self.traced],
            "notes": list(self.notes),
            "layers": [
                {
                    "name": x.name, "kind": x.kind, "node": x.node, "inputs": list(x.inputs), "shape": list(x.shape),
                    "types": {key: str(t) for key, t in sorted(x.types.items())}, "attributes": dict(sorted(x.attributes.items())),
                    "arrays": sorted(x.arrays), "strategy": x.strategy, "reuse": x.reuse,
                }
                for x in self.layers
            ],
        }  # fmt: skip

    def save(self, folder: Path) -> None:
        """``network.json``, and the arrays as ``network.npz`` under "<layer>.<array>"."""
        (folder / "network.json").write_text(json.dumps(self.to_json(), indent=1) + "\n", encoding="utf-8")
        np.savez(folder / "network.npz", **{f"{x.name}.{key}": array for x in self.layers for key, array in sorted(x.arrays.items())})  # type: ignore[arg-type]


def ports(entries: list[dict[str, Any]]) -> tuple[Port, ...]:
    """Ports from ``network.json``."""
    return tuple(Port(**{**entry, "shape": tuple(entry["shape"]), "axes": tuple(entry["axes"])}) for entry in entries)
