"""How parallel each layer is: io type, strategy and reuse factor, chosen so that the design compiles, unrolls and fits; and what it costs.

A reuse factor r shares the multipliers of one output position over r cycles. The slowest layer's positions·r is the
interval between samples, so one number, the interval T, decides all: every layer takes the cheapest factor that keeps
within T, and the least T that fits the part is taken. All figures are estimates (hw/cost.py).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from gatewright.errors import UsageError
from gatewright.hw.cost import FpgaLayer, FpgaResources, fits, fpga_interval_cycles, fpga_latency_cycles, fpga_resources, signed_digits
from gatewright.hw.device import Part

from .adapt import adapted
from .network import Array, Io, Layer, Network

UNROLL_LIMIT = 4096
"""Vitis HLS neither unrolls a loop nor splits an array into more pieces than this without giving up on synthesis."""

FILL = 0.8
"""Of a part's resources that a design is made to use: fuller ones route badly. Where none is that small, the smallest is taken."""

GENERATED_LINES_LIMIT = 1 << 14
"""io_parallel writes one line of C++ per element of every convolution's window at every position."""

_WEIGHTED = ("Dense", "Conv2D", "DepthwiseConv2D")
_SHARING = (*_WEIGHTED, "Requantize")
"""Kinds that have a reuse factor."""


@dataclass(frozen=True)
class Sized:
    """A network with every choice made, and its estimated cost."""

    network: Network
    circuits: tuple[FpgaLayer, ...]
    resources: FpgaResources | None
    """None without a part: a LUT of what size?"""
    shortfalls: tuple[str, ...]

    @property
    def interval_cycles(self) -> int:
        return fpga_interval_cycles(self.circuits)

    @property
    def latency_cycles(self) -> int:
        return fpga_latency_cycles(self.circuits)


def size(network: Network, part: Part | None, *, io: Io | None, reuse: int | None) -> Sized:
    """``network`` (tool, part and clock already set) with io and reuse factors; what the user fixed is kept.

    Where io is free and io_parallel does not fit, io_stream is tried. Raises UsageError where the user's io cannot be built.
    """
    chosen = io or choose_io(network)
    sized = _size(adapted(replace(network, io=chosen)), part, reuse)
    if io is None and chosen == "parallel" and sized.shortfalls:
        streamed = _size(adapted(replace(network, io="stream")), part, reuse)
        return sized if streamed.shortfalls else streamed
    return sized


def _size(network: Network, part: Part | None, reuse: int | None) -> Sized:
    if reuse is not None:
        return _sized(network, {layer.name: _nearest(valid_factors(layer, network), reuse) for layer in _sharing(network)}, part)
    choices = {layer.name: valid_factors(layer, network) for layer in _sharing(network)}
    for layer in _sharing(network):
        if not choices[layer.name]:
            products = f"every way to share its {_products(layer, network)} products unrolls more than {UNROLL_LIMIT}"
            raise UsageError(f"io={network.io} cannot build {layer.node!r}: {products}", hint="use io=stream")
    intervals = sorted({_passes(layer, network) * r for layer in _sharing(network) for r in choices[layer.name]}) or [1]
    least = max((_passes(layer, network) * choices[layer.name][0] for layer in _sharing(network)), default=1)
    intervals = [t for t in intervals if t >= least]

    def at(interval: int) -> Sized:
        factors = {layer.name: _cheapest(layer, network, choices[layer.name], interval, part) for layer in _sharing(network)}
        return _sized(network, factors, part)

    # Resources fall as the interval grows, so the first interval that fits is found by bisection.
    low, high = 0, len(intervals) - 1
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if _fits_well(at(intervals[middle]), part) else (middle + 1, high)
    return at(intervals[low])


def _fits_well(sized: Sized, part: Part | None) -> bool:
    """Within ``FILL`` of the part."""
    if part is None or sized.resources is None:
        return True
    r = sized.resources
    pairs = ((r.luts, part.luts), (r.ffs, part.ffs), (r.dsps, part.dsps), (r.brams, part.bram_blocks))
    return all(needed <= FILL * there for needed, there in pairs)


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
    n_in, n_out = layer.multiplications
    if layer.kind == "Requantize":
        return tuple(r for r in _divisors(_lanes(layer, network)) if _lanes(layer, network) // r <= UNROLL_LIMIT)
    parallel_conv = network.io == "parallel" and layer.kind != "Dense"
    if layer.kind == "DepthwiseConv2D":
        found = [1] if parallel_conv else [*_divisors(n_out), *(n_out * d for d in _divisors(n_in) if d > 1)]
    else:
        found = _divisors(n_in) if parallel_conv else [*_divisors(n_in), *(n_in * d for d in _divisors(n_out) if d > 1)]
    return tuple(r for r in found if math.ceil(_products(layer, network) / r) <= UNROLL_LIMIT)


def circuits(network: Network) -> tuple[FpgaLayer, ...]:
    """Every layer as hw/cost.py counts it."""
    by_name = {layer.name: layer for layer in network.layers}
    return tuple(c for layer in network.layers if (c := _circuit(layer, network, by_name)) is not None)


def _sized(network: Network, factors: dict[str, int], part: Part | None) -> Sized:
    chosen = tuple(
        replace(layer, reuse=factors[layer.name], strategy="latency" if factors[layer.name] == 1 else "resource")
        if layer.name in factors else layer for layer in network.layers
    )  # fmt: skip
    network = replace(network, layers=chosen)
    made = circuits(network)
    resources = fpga_resources(made, part) if part is not None else None
    return Sized(network, made, resources, fits(part, resources) if part is not None and resources is not None else ())


def _cheapest(layer: Layer, network: Network, factors: Sequence[int], interval: int, part: Part | None) -> int:
    """The factor that takes the least of the part within the interval: constants in logic can beat shared multipliers."""
    within = [r for r in factors if _passes(layer, network) * r <= interval]
    if part is None:
        return within[0]
    by_name = {x.name: x for x in network.layers}

    def share(r: int) -> float:
        circuit = _circuit(replace(layer, reuse=r), network, by_name)
        assert circuit is not None
        found = fpga_resources([circuit], part)
        return found.luts / part.luts + found.dsps / max(1, part.dsps) + found.brams / max(1, part.bram_blocks)

    return min((1, within[-1]), key=share) if within[0] == 1 else within[-1]


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


def _sharing(network: Network) -> list[Layer]:
    return [layer for layer in network.layers if layer.kind in _SHARING]


def _lanes(layer: Layer, network: Network) -> int:
    """Elements that leave a layer side by side: one pixel's streamed, else all."""
    return layer.shape[-1] if network.io == "stream" else layer.size


def _passes(layer: Layer, network: Network) -> int:
    """How often a sample goes through the layer's multipliers."""
    return layer.size // _lanes(layer, network) if layer.kind == "Requantize" else layer.positions


def _products(layer: Layer, network: Network) -> int:
    """Multiplications of one pass."""
    n_in, n_out = layer.multiplications
    return _lanes(layer, network) if layer.kind == "Requantize" else n_in * n_out


def _divisors(n: int) -> list[int]:
    return [d for d in range(1, n + 1) if n % d == 0]


def _nearest(factors: Sequence[int], wanted: int) -> int:
    return min(factors, key=lambda r: (abs(r - wanted), r)) if factors else 1
