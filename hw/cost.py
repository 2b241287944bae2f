"""What a model would cost on a device, before anything runs: roofline latency, energy, FPGA resources. All are estimates.

The model comes in as plain numbers per layer (``LayerCost``, ``FpgaLayer``), so that this file knows hardware and no graphs.

Roofline (Williams, Waterman, Patterson: "Roofline", CACM 52(4), 2009): a layer takes as long as the slower of its
arithmetic at the peak rate and its traffic at the memory's bandwidth. It is a lower bound: no engine reaches both.

Energy (Horowitz: "Computing's energy problem", ISSCC 2014, figure 1.1.9, 45 nm, 0.9 V): each operation and each byte
moved has a price. Leakage, clocks and instruction fetch are not in it: it ranks models, it does not predict a meter.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from .device import Dtype, MemoryLevel, Part, Processor
from .measurement import Measurement

_ADD_PJ: dict[Dtype, float] = {"int8": 0.03, "int32": 0.1, "float16": 0.4, "float32": 0.9}
_MULTIPLY_PJ: dict[Dtype, float] = {"int8": 0.2, "int32": 3.1, "float16": 1.1, "float32": 3.7}
"""Horowitz's table as it is printed."""

# Not in the table: integer multipliers grow with the square of the width and adders linearly (so int4 and int16 follow
# from int8; int16 from int32 would be 0.78, the same within 3 %); float64 likewise by its 53-bit significand; bfloat16
# multiplies like float16 at most and adds in float32.
_ADD_PJ |= {"int4": 0.015, "int16": 0.06, "float64": 2.0, "bfloat16": 0.9, "float8": 0.4}
_MULTIPLY_PJ |= {"int4": 0.05, "int16": 0.8, "float64": 18.0, "bfloat16": 1.1, "float8": 1.1}

BYTE_PJ: Mapping[MemoryLevel, float] = {"sram": 100 / 8, "dram": 1300 / 8}
"""A 64-bit access to a 1 MB cache is 100 pJ, to DRAM 1.3 nJ and more (the same table)."""

_WIDER: Mapping[Dtype, tuple[Dtype, ...]] = {
    # bfloat16 has 8 significant bits and adds up in float32: a matrix unit without an integer mode multiplies bytes in it at full rate.
    "int4": ("int8", "int16", "int32", "bfloat16", "float32"),
    "int8": ("int16", "int32", "bfloat16", "float32"),
    "int16": ("int32", "float32"),
    "int32": ("float32",),
    "float8": ("float16", "bfloat16", "float32"),
    "float16": ("bfloat16", "float32"),
    "bfloat16": ("float16", "float32"),
}
"""What a device computes in where it states no rate for a type."""
_BFLOAT16_PRODUCTS_OF_FLOAT32 = 6
"""XLA's precision HIGHEST: a float32 product on a matrix unit is six bfloat16 ones."""


@dataclass(frozen=True)
class LayerCost:
    """The work of one node in one run (all samples of the model's batch)."""

    name: str
    op: str
    """The ONNX op."""
    macs: int
    """Multiply-accumulates as a dense kernel does them: zeros count, the bias does not."""
    elementwise_ops: int
    """Every other arithmetic operation: one per output element of Add, Relu or a requantization, one per element that a pool reads."""
    weight_bytes: int
    """Constants that it reads, as packed as they are stored: an int4 weight is half a byte. Biases count."""
    activation_bytes: int
    """Non-constant inputs read and outputs written, each element once."""
    dtype: Dtype
    """The type in which it multiplies."""


@dataclass(frozen=True)
class LayerEstimate:
    """What one layer costs on one device."""

    cost: LayerCost
    latency: Measurement
    energy: Measurement
    bound: Literal["compute", "memory"]
    """Which side of the roofline is the slower."""
    computed_in: Dtype
    """The type whose peak rate was taken: wider than the layer's where the device states none for it."""


@dataclass(frozen=True)
class CostReport:
    """Per layer and in total, of one run."""

    layers: tuple[LayerEstimate, ...]
    latency: Measurement
    energy: Measurement
    macs: int
    elementwise_ops: int
    weight_bytes: int
    activation_bytes: int
    on_chip: bool
    """All weights and the largest layer's activations fit the last cache: repeated runs touch no DRAM."""

    def to_json(self) -> dict[str, Any]:
        return {
            "latency": self.latency.to_json(),
            "energy": self.energy.to_json(),
            "macs": self.macs,
            "elementwise_ops": self.elementwise_ops,
            "weight_bytes": self.weight_bytes,
            "activation_bytes": self.activation_bytes,
            "layers": [
                {
                    "name": layer.cost.name,
                    "op": layer.cost.op,
                    "macs": layer.cost.macs,
                    "latency": layer.latency.to_json(),
                    "energy": layer.energy.to_json(),
                    "bound": layer.bound,
                }
                for layer in self.layers
            ],
        }


def roofline(layers: Sequence[LayerCost], device: Processor) -> CostReport:
    """Latency and energy of ``layers``, run one after the other on all of ``device``, again and again (caches are warm)."""
    on_chip = _working_set(layers) <= _on_chip_bytes(device)
    bandwidth = _bandwidth(device, on_chip)
    estimates = []
    for layer in layers:
        dtype, peak = _peak(device, layer.dtype)
        compute_s = (2 * layer.macs + layer.elementwise_ops) / peak
        memory_s = (layer.weight_bytes + layer.activation_bytes) / bandwidth
        estimates.append(
            LayerEstimate(
                layer,
                latency=Measurement(max(compute_s, memory_s), "s", "estimated"),
                energy=Measurement(energy_j(layer, device, on_chip=on_chip), "J", "estimated"),
                bound="compute" if compute_s >= memory_s else "memory",
                computed_in=dtype,
            )
        )
    return CostReport(
        tuple(estimates),
        latency=Measurement(math.fsum(e.latency.value for e in estimates), "s", "estimated"),
        energy=Measurement(math.fsum(e.energy.value for e in estimates), "J", "estimated"),
        macs=sum(layer.macs for layer in layers),
        elementwise_ops=sum(layer.elementwise_ops for layer in layers),
        weight_bytes=sum(layer.weight_bytes for layer in layers),
        activation_bytes=sum(layer.activation_bytes for layer in layers),
        on_chip=on_chip,
    )


def energy_j(layer: LayerCost, device: Processor | None = None, *, on_chip: bool = True) -> float:
    """Joules of one layer in one run: operations, every byte once through SRAM, and through DRAM too unless ``on_chip``.

    The device's own figures are taken where it has them; ``device`` None is the cited table alone (an FPGA's logic too).
    """
    per_mac = (device.op_energy_pj if device else {}).get(layer.dtype, mac_energy_pj(layer.dtype))
    per_byte = {**BYTE_PJ, **(device.byte_energy_pj if device else {})}
    moved = layer.weight_bytes + layer.activation_bytes
    picojoules = layer.macs * per_mac + layer.elementwise_ops * _ADD_PJ[layer.dtype] + moved * per_byte["sram"]
    return (picojoules + (0 if on_chip else moved * per_byte["dram"])) * 1e-12


def mac_energy_pj(dtype: Dtype) -> float:
    """One multiplication and one addition into the accumulator: int32 for integers, float32 for bfloat16, else the type itself."""
    return _MULTIPLY_PJ[dtype] + (_ADD_PJ["int32"] if dtype.startswith("int") else _ADD_PJ[dtype])


def _peak(device: Processor, dtype: Dtype) -> tuple[Dtype, float]:
    """The type that ``device`` computes ``dtype`` in, and operations per second in it."""
    for candidate in (dtype, *_WIDER.get(dtype, ())):
        if candidate in device.peak_ops_per_s:
            return candidate, device.peak_ops_per_s[candidate]
    if dtype == "float64" and "float32" in device.peak_ops_per_s:
        return "float64", device.peak_ops_per_s["float32"] / 2
    if "bfloat16" in device.peak_ops_per_s:
        return "bfloat16", device.peak_ops_per_s["bfloat16"] / _BFLOAT16_PRODUCTS_OF_FLOAT32
    # A user's own file may state no rate: two vector multiply-adds per cycle, as most cores have.
    return "float32", device.cores * (device.clock_hz or 1e9) * 2 * max(1, (device.vector_bits or 128) // 32) * 2


def _on_chip_bytes(device: Processor) -> int:
    return device.l3_bytes or (device.l2_bytes or 0) or (device.l1d_bytes or 0)


def _working_set(layers: Sequence[LayerCost]) -> int:
    return sum(layer.weight_bytes for layer in layers) + max((layer.activation_bytes for layer in layers), default=0)


def _bandwidth(device: Processor, on_chip: bool) -> float:
    """Bytes per second of what the layers stream from: DRAM, or one vector load per core and cycle where all is cached."""
    dram = device.memory_bandwidth_bytes_per_s or 10e9
    if on_chip and device.clock_hz and device.vector_bits:
        return max(dram, device.cores * device.clock_hz * device.vector_bits / 8)
    return dram


@dataclass(frozen=True)
class FpgaLayer:
    """One layer as a circuit. ``reuse`` 1: every weight is a constant in the logic; above: multipliers that take turns."""

    name: str
    multiplications: int
    """Products of one pass: the weights that are not zero (all weights, where ``reuse`` is above 1)."""
    outputs: int
    """Sums that one pass makes: neurons, output channels."""
    weight_bits: int
    activation_bits: int
    accumulator_bits: int
    reuse: int = 1
    """Products per multiplier and pass; a pass takes so many cycles."""
    passes: int = 1
    """Passes per sample: 1 for a dense layer, output positions for a streamed convolution."""
    signed_digits: int | None = None
    """Nonzero signed digits of all weights (``signed_digits``); None takes their expectation."""
    buffer_bits: int = 0
    """Activations kept between passes: line buffers, stream FIFOs."""


@dataclass(frozen=True)
class FpgaResources:
    """Estimated use of an FPGA."""

    luts: int
    ffs: int
    dsps: int
    brams: int

    def to_measurements(self) -> dict[str, Measurement]:
        """By the names of a report: LUT, FF, DSP, BRAM."""
        counts = {"LUT": self.luts, "FF": self.ffs, "DSP": self.dsps, "BRAM": self.brams}
        return {name: Measurement(float(count), name, "estimated") for name, count in counts.items()}


def signed_digits(weights: NDArray[Any]) -> int:
    """Nonzero digits of all integer ``weights`` in canonical signed-digit form: shift-and-add terms of multiplying by them.

    The non-adjacent form of w has a nonzero digit wherever w and 3w differ (Reitwieser 1960): 7 = 8 - 1 has two, 6 two, 4 one.
    """
    magnitude = np.abs(weights.astype(np.int64))
    return int(np.bitwise_count(magnitude ^ (3 * magnitude)).sum())


_DSP_FROM_BITS = 10
"""Vitis HLS and Quartus put a product into a DSP block where both operands are this wide; a narrower one goes to LUTs."""


def fpga_resources(layers: Iterable[FpgaLayer], part: Part) -> FpgaResources:
    """First-order resources of ``layers`` side by side on ``part``.

    reuse 1: a product by a constant is one shifted term per signed digit (on average (bits + 1) / 3 of them), all terms of an
    output are summed; n terms take n - 1 adders and one for the bias. Sums grow from activation to accumulator width, so
    an adder has their mean as width, and costs one LUT (with its carry) and one register per bit.

    reuse r: ceil(products / r) multipliers (DSP blocks where both operands have 10 bits or more, else an array of one LUT per
    partial-product bit), an adder each, an accumulator per output, and the weights in block RAM, wide enough to feed all.
    """
    luts = ffs = dsps = brams = 0
    for layer in layers:
        adder_bits = math.ceil((layer.activation_bits + layer.accumulator_bits) / 2)
        if layer.reuse <= 1:
            expected = round(layer.multiplications * (layer.weight_bits + 1) / 3)
            terms = expected if layer.signed_digits is None else layer.signed_digits
            adders = max(terms, layer.outputs)
        else:
            multipliers = math.ceil(layer.multiplications / layer.reuse)
            adders = multipliers + layer.outputs
            if min(layer.weight_bits, layer.activation_bits) >= _DSP_FROM_BITS and part.dsps:
                dsps += math.ceil(multipliers * _blocks_per_product(layer, part))
            else:
                luts += multipliers * layer.weight_bits * layer.activation_bits
            brams += _weight_blocks(layer, multipliers, part)
        luts += adders * adder_bits
        ffs += adders * adder_bits + layer.outputs * layer.activation_bits
        if part.bram_block_bits:
            brams += math.ceil(layer.buffer_bits / part.bram_block_bits)
        else:
            ffs += layer.buffer_bits
    return FpgaResources(luts, ffs, dsps, brams)


def fpga_interval_cycles(layers: Iterable[FpgaLayer]) -> int:
    """Cycles between two samples of a pipeline of ``layers``: its slowest layer's passes times their reuse."""
    return max((layer.passes * max(1, layer.reuse) for layer in layers), default=1)


def fpga_latency_cycles(layers: Iterable[FpgaLayer]) -> int:
    """Cycles of one sample through ``layers`` one after the other: passes, and the depth of each adder tree, one level a cycle."""
    return sum(layer.passes * max(1, layer.reuse) + _depth(layer) for layer in layers)


def fits(part: Part, resources: FpgaResources) -> tuple[str, ...]:
    """Every resource of which ``part`` has too little, in words; empty where all fits."""
    pairs = (
        ("LUT", resources.luts, part.luts),
        ("FF", resources.ffs, part.ffs),
        ("DSP", resources.dsps, part.dsps),
        ("BRAM", resources.brams, part.bram_blocks),
    )
    return tuple(f"{what}: needs about {needed}, {part.name} has {there}" for what, needed, there in pairs if needed > there)


def _depth(layer: FpgaLayer) -> int:
    per_output = math.ceil(layer.multiplications / max(1, layer.outputs) / max(1, layer.reuse))
    return 1 + math.ceil(math.log2(max(1, per_output)))


def _blocks_per_product(layer: FpgaLayer, part: Part) -> float:
    """DSP blocks of one product: below one where a block holds several, above where operands are wider than its ports."""
    wide, narrow = sorted(part.dsp_bits or (18, 18), reverse=True)
    large, small = sorted((layer.weight_bits, layer.activation_bits), reverse=True)
    pieces = math.ceil(large / wide) * math.ceil(small / narrow)
    return pieces if pieces > 1 else 1 / part.dsp_multiplications


def _weight_blocks(layer: FpgaLayer, multipliers: int, part: Part) -> int:
    """Block RAMs that hold the weights and deliver one per multiplier and cycle.

    A block's widest port is its capacity over 512 words (over 256 for blocks below 18 Kb): 72, 36, 40 and 16 bits on AMD's,
    Lattice's and Gowin's, Intel's and the iCE40's.
    """
    if not part.bram_block_bits:
        return 0
    port_bits = part.bram_block_bits // (512 if part.bram_block_bits >= 18_432 else 256)
    by_width = math.ceil(multipliers * layer.weight_bits / port_bits)
    return max(by_width, math.ceil(layer.multiplications * layer.weight_bits / part.bram_block_bits))
