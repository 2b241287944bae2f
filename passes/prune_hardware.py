"""What pruning saves on a device, by the cost model of ``hw/cost.py``: known before anything is built. All figures are estimates.

An unrolled FPGA design multiplies by constants: a weight costs an adder per nonzero signed digit of its integer, so weights
differ in what removing them saves. Where multipliers take turns (``reuse`` above 1) zeros save nothing and whole units do.
A CPU multiplies whole vectors: a block of zeros as long as a register can be skipped, a single zero cannot.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np
import onnx_ir as ir

from gatewright.errors import UsageError
from gatewright.frontend.model import Model
from gatewright.frontend.work import layer_costs
from gatewright.hw.cost import FpgaLayer, fpga_resources, roofline, signed_digits
from gatewright.hw.device import Board, Device, Part, Processor, load_device

from .importance import layers, output_axis, weight_of
from .rewrite import Array

_FLOAT_BITS = 32


def lanes(device: Device) -> int:
    """float32 numbers in one vector register. Raises UsageError for a device without any."""
    if not isinstance(device, Processor) or not device.vector_bits:
        raise UsageError(f"{device.name} states no vector width", hint="block=16 says how long a block is")
    return device.vector_bits // _FLOAT_BITS


def part_of(device: Device) -> Part | None:
    """The FPGA of a part or a board."""
    return device if isinstance(device, Part) else device.part if isinstance(device, Board) else None


def on_grid(weight: Array, bits: int) -> Array:
    """The integers that ``weight`` becomes on a symmetric grid of ``bits`` bits, int64."""
    largest = float(np.abs(weight).max()) if weight.size else 0.0
    return np.asarray(np.rint(weight / (largest or 1.0) * (2 ** (bits - 1) - 1)).astype(np.int64))


def luts(node: ir.Node, bits: int) -> Array:
    """The LUTs that each weight of a layer costs in an unrolled design: signed digits times the width of an adder."""
    weight = weight_of(node)
    magnitude = np.abs(on_grid(weight, bits))
    digits = np.bitwise_count(magnitude ^ (3 * magnitude))
    return np.asarray(digits.astype(np.float64) * _adder_bits(weight, output_axis(node), bits))


def predicted(model: Model, device: Device, bits: int, reuse: int) -> dict[str, float]:
    """What the model costs on the device: seconds on a processor, blocks of each kind on an FPGA with weights of ``bits`` bits."""
    part = part_of(device)
    if part is not None:
        found = fpga_resources(_fpga_layers(layers(model.graph), bits, reuse), part)
        return {name: m.value for name, m in found.to_measurements().items()}
    assert isinstance(device, Processor)
    return {"latency_s": roofline(layer_costs(model), device).latency.value}


def device_named(name: str | None) -> Device | None:
    """Raises UsageError for a name that is no device."""
    return None if name is None else load_device(name)


def _fpga_layers(nodes: Iterable[ir.Node], bits: int, reuse: int) -> list[FpgaLayer]:
    found = []
    for node in nodes:
        weight = weight_of(node)
        integers = on_grid(weight, bits)
        products = int(np.count_nonzero(integers)) if reuse == 1 else weight.size
        outputs = weight.shape[output_axis(node)]
        sums = _accumulator_bits(weight, output_axis(node), bits)
        digits = signed_digits(integers)
        found.append(FpgaLayer(node.name or "", products, outputs, bits, bits, sums, reuse=reuse, signed_digits=digits))
    return found


def _accumulator_bits(weight: Array, axis: int, bits: int) -> int:
    return 2 * bits + math.ceil(math.log2(max(2, weight.size // max(weight.shape[axis], 1))))


def _adder_bits(weight: Array, axis: int, bits: int) -> int:
    """As ``fpga_resources`` has it: between the activation's and the accumulator's width."""
    return math.ceil((bits + _accumulator_bits(weight, axis, bits)) / 2)
