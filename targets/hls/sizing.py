"""How parallel each layer is: io type, strategy and reuse factor, chosen so that the design compiles, unrolls and fits; and what it costs.

A reuse factor r shares the multipliers of one output position over r cycles; r = 1 keeps every weight as a constant in the
logic (hls4ml's strategy Latency), more needs memories and multipliers (Resource). Which factor each layer takes is a small
integer program over all of them (allocate.py). All figures are estimates (hw/cost.py).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from gatewright.hw.cost import FpgaLayer, FpgaResources, fits, fpga_interval_cycles, fpga_latency_cycles, fpga_resources, signed_digits
from gatewright.hw.device import Part

from .adapt import adapted
from .allocate import FILL, Choice, Objective, allocate, cost_of
from .network import Array, Io, Layer, Network
from .shell import transfer_cycles

UNROLL_LIMIT = 4096
"""Vitis HLS neither unrolls a loop nor splits an array into more pieces than this without giving up on synthesis."""

GENERATED_LINES_LIMIT = 1 << 14
"""io_parallel writes one line of C++ per element of every convolution's window at every position."""

_WEIGHTED = ("Dense", "Conv2D", "DepthwiseConv2D")
SHARING = (*_WEIGHTED, "Requantize")
"""Kinds that have a reuse factor."""


@dataclass(frozen=True)
class Sized:
    """A network with every choice made, and its estimated cost."""

    network: Network
    circuits: tuple[FpgaLayer, ...]
    resources: FpgaResources | None
    """None without a part: a LUT of what size?"""
    shortfalls: tuple[str, ...]
    """Resources of which the part has too little, and limits of the tools that are passed."""
    transfer: int = 0
    """Cycles in which a sample passes the shell around the design."""

    @property
    def interval_cycles(self) -> int:
        return max(self.transfer, fpga_interval_cycles(self.circuits))

    @property
    def latency_cycles(self) -> int:
        return 2 * self.transfer + fpga_latency_cycles(self.circuits)


def size(
    network: Network, part: Part | None, *, io: Io | None, reuse: int | None = None, objective: Objective = "interval",
    interval: int | None = None, fill: float = FILL,
) -> Sized:  # fmt: skip
    """``network`` (tool, part and clock already set) with io and reuse factors; what the user fixed is kept.

    Where io is free and io_parallel does not fit, io_stream is tried. ``interval``: the most cycles between samples.
    """
    wanted = Wanted(reuse, objective, interval, fill)
    chosen = io or choose_io(network)
    sized = _size(adapted(replace(network, io=chosen)), part, wanted)
    if io is None and chosen == "parallel" and sized.shortfalls:
        streamed = _size(adapted(replace(network, io="stream")), part, wanted)
        return sized if streamed.shortfalls else streamed
    return sized


@dataclass(frozen=True)
class Wanted:
    """What the user asks of the factors."""

    reuse: int | None
    objective: Objective
    interval: int | None
    fill: float


def _size(network: Network, part: Part | None, wanted: Wanted) -> Sized:
    by_name = {layer.name: layer for layer in network.layers}
    sharing = [layer for layer in network.layers if layer.kind in SHARING]
    limits = tuple(limit for layer in network.layers if (limit := _limit(layer, network)))
    # A layer that no factor keeps within the limits is estimated all the same: its factor is the one that unrolls least.
    factors = {layer.name: valid_factors(layer, network) or _factors(layer, network)[-1:] for layer in sharing}
    if wanted.reuse is not None:
        taken = {name: _nearest(options, wanted.reuse) for name, options in factors.items()}
        return _sized(network, taken, part, limits)
    choices = {
        layer.name: tuple(_choice(replace(layer, reuse=r), network, by_name, part) for r in factors[layer.name]) for layer in sharing
    }
    fixed = [c for layer in network.layers if layer.kind not in SHARING and (c := _circuit(layer, network, by_name)) is not None]
    taken = allocate(choices, cost_of(fixed, part), part, wanted.objective, wanted.interval, wanted.fill)
    return _sized(network, taken, part, limits)


def _choice(layer: Layer, network: Network, by_name: dict[str, Layer], part: Part | None) -> Choice:
    circuit = _circuit(layer, network, by_name)
    assert circuit is not None
    return Choice(layer.reuse, fpga_interval_cycles([circuit]), fpga_latency_cycles([circuit]), cost_of([circuit], part))


def _limit(layer: Layer, network: Network) -> str:
    """Which limit of the tools the layer passes in this io type, in words; empty where none."""
    if network.io == "parallel" and layer.size > UNROLL_LIMIT:
        registers = f"partition: {layer.node!r} gives {layer.size} values in registers"
        return f"{registers}, the tools split an array into {UNROLL_LIMIT} (io=stream holds them in FIFOs)"
    if layer.kind in SHARING and not valid_factors(layer, network):
        least = math.ceil(_products(layer, network) / _factors(layer, network)[-1])
        products = f"unroll: {layer.node!r} unrolls {least} products however they are shared"
        return f"{products}, the tools unroll {UNROLL_LIMIT} (io=stream shares them)"
    return ""


def choose_io(network: Network) -> Io:
    """io_parallel keeps every tensor in registers: for small ones. Everything else streams pixel by pixel."""
    large = any(layer.size > UNROLL_LIMIT for layer in network.layers)
    lines = any(layer.kind == "Conv2D" and layer.positions * layer.multiplications[0] > GENERATED_LINES_LIMIT for layer in network.layers)
    return "stream" if large or lines else "parallel"


def valid_factors(layer: Layer, network: Network) -> tuple[int, ...]:
    """Reuse factors that the kernels compute correctly with, ascending, within the unroll limit.

    A Dense or a streamed Conv2D takes divisors of n_in, and n_in times divisors of n_out. A Conv2D in io_parallel is silently
    wrong above n_in (hls4ml 1.3.0), and a DepthwiseConv2D there knows no sharing.
    """
    return tuple(r for r in _factors(layer, network) if math.ceil(_products(layer, network) / r) <= UNROLL_LIMIT)


def _factors(layer: Layer, network: Network) -> list[int]:
    n_in, n_out = layer.multiplications
    if layer.kind == "Requantize":
        return _divisors(_lanes(layer, network))
    parallel_conv = network.io == "parallel" and layer.kind != "Dense"
    if layer.kind == "DepthwiseConv2D":
        return [1] if parallel_conv else [*_divisors(n_out), *(n_out * d for d in _divisors(n_in) if d > 1)]
    return _divisors(n_in) if parallel_conv else [*_divisors(n_in), *(n_in * d for d in _divisors(n_out) if d > 1)]


def circuits(network: Network) -> tuple[FpgaLayer, ...]:
    """Every layer as hw/cost.py counts it."""
    by_name = {layer.name: layer for layer in network.layers}
    return tuple(c for layer in network.layers if (c := _circuit(layer, network, by_name)) is not None)


def _sized(network: Network, factors: Mapping[str, int], part: Part | None, limits: tuple[str, ...]) -> Sized:
    chosen = tuple(
        replace(layer, reuse=factors[layer.name], strategy="latency" if factors[layer.name] == 1 else "resource")
        if layer.name in factors else layer for layer in network.layers
    )  # fmt: skip
    network = replace(network, layers=chosen)
    made = circuits(network)
    resources = fpga_resources(made, part) if part is not None else None
    short = fits(part, resources) if part is not None and resources is not None else ()
    return Sized(network, made, resources, (*limits, *short), transfer_cycles(network))


def _circuit(layer: Layer, network: Network, by_name: dict[str, Layer]) -> FpgaLayer | None:
    stream = network.io == "stream"
    if layer.kind in ("InputLayer", "Reshape", "ZeroPadding2D"):
        return None
    source = by_name[layer.inputs[0]]
    bits, out_bits = source.types["result"].width, layer.types["result"].width
    fifo = layer.size * out_bits if stream else 0
    lanes, passes = _lanes(layer, network), layer.size // _lanes(layer, network)
    if layer.kind in _WEIGHTED:
        weights = _integers(layer, "depthwise" if layer.kind == "DepthwiseConv2D" else "weight")
        height = layer.attributes.get("filt_height", 1)
        lines = (height - 1) * layer.attributes.get("in_width", 0) * layer.attributes.get("n_chan", 0) * bits if stream else 0
        products = int(np.count_nonzero(weights)) if layer.reuse == 1 else _products(layer, network)
        return FpgaLayer(
            layer.name, products, layer.multiplications[1], layer.types["weight"].width, bits, layer.types["accum"].width,
            reuse=layer.reuse, passes=layer.positions, signed_digits=signed_digits(weights), buffer_bits=fifo + lines,
        )  # fmt: skip
    if layer.kind == "Requantize":
        scale = np.resize(_integers(layer, "scale"), lanes)
        return FpgaLayer(
            layer.name, lanes, math.ceil(lanes / layer.reuse), layer.types["scale"].width, bits, bits + layer.types["scale"].width,
            reuse=layer.reuse, passes=passes, signed_digits=signed_digits(scale), buffer_bits=fifo,
        )  # fmt: skip
    if layer.kind == "Gather":
        held = fifo + (source.size * bits if stream else 0)
        passes += source.size // source.shape[-1]
        return FpgaLayer(layer.name, 0, lanes, 1, bits, bits, passes=passes, signed_digits=0, buffer_bits=held)
    if layer.kind == "Lookup":
        held = fifo + (lanes * out_bits << bits)
        return FpgaLayer(layer.name, 0, lanes, out_bits, bits, out_bits, passes=passes, signed_digits=0, buffer_bits=held)
    # Additions and comparisons: one adder per element that enters.
    entering = source.shape[-1] if stream else source.size
    taps = layer.attributes.get("pool_height", 1) * layer.attributes.get("pool_width", 1)
    adders, passes = entering * taps, max(passes, source.size // entering)
    return FpgaLayer(layer.name, adders, lanes, 1, bits, out_bits, passes=passes, signed_digits=adders, buffer_bits=fifo)


def _integers(layer: Layer, array: str) -> Array:
    """An array in units of its type's least significant bit."""
    key = "weight" if array == "depthwise" else array
    return np.rint(np.ldexp(layer.arrays[array], -layer.types[key].exponent)).astype(np.int64)


def _lanes(layer: Layer, network: Network) -> int:
    """Elements that leave a layer side by side: one pixel's streamed, else all."""
    return layer.shape[-1] if network.io == "stream" else layer.size


def _products(layer: Layer, network: Network) -> int:
    """Multiplications of one pass."""
    n_in, n_out = layer.multiplications
    return _lanes(layer, network) if layer.kind == "Requantize" else n_in * n_out


def _divisors(n: int) -> list[int]:
    return [d for d in range(1, n + 1) if n % d == 0]


def _nearest(factors: Sequence[int], wanted: int) -> int:
    return min(factors, key=lambda r: (abs(r - wanted), r)) if factors else 1
