"""How long a model will take on a CPU, and what int8, channel pruning and fewer threads will bring, before anything is built.

Known are the CPU's flags and the model's work. Each change is the ratio of two times of the same model: as it is on all threads, and
changed. A time is the sum over kernels of the slower of arithmetic and traffic (``hw/cost.py``'s roofline, on the device's own
peaks), with what is known beyond it:

- steps that fuse into another's kernel (``support.py``: pointwise ones, moves) cost nothing; each kernel left costs a wake-up;
- int8 multiplies at 4 times the float32 rate with a dot-product instruction (VNNI, dotprod; Intel SDM vol. 2 VPDPBUSD, Arm ARM
  SDOT) and at twice without one: vpmaddwd does 16-bit products, vpmaddubsw saturates; a tensor's bytes are a quarter;
- 3×3 convolutions of stride 1 are Winograd's (Lavin and Gray, CVPR 2016): ``WINOGRAD_FLOAT`` and ``WINOGRAD_INT8``, as measured;
- arithmetic reaches ``REACHED`` of the peak, the share measured by ``bench/kernels.py`` on dense kernels.

How far off (``bench/predictions.py``; Zen 4 with VNNI, 2 cores, level 0): int8, predicted over measured, SqueezeNet 1.10, ResNet-50
0.83, ResNet-8 1.33, DS-CNN 1.14, a 640-128 autoencoder 0.68; ``REACHED`` and ``WAKE_S`` were fitted on these five, so take a third
either way for new models. Half of the channels: ResNet-8 1.28. Fewer threads: small models lose less than predicted (ResNet-8 on
one of two threads ran at 0.93 of the speed, predicted 0.51), as their kernels hardly gain from a second core. Without VNNI
nothing was measured.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import onnx_ir as ir

from gatewright.frontend.integer import plan
from gatewright.frontend.model import Model
from gatewright.frontend.queries import shape_of
from gatewright.frontend.work import layer_costs
from gatewright.hw.cost import LayerCost, roofline
from gatewright.hw.device import Dtype, Processor
from gatewright.hw.measurement import Measurement

from .support import OPERATORS

DOT_PRODUCTS = ("avx512vnni", "avxvnni", "dotprod", "i8mm", "amx-int8")
"""Flags of instructions that multiply and add four int8 pairs at once."""
WINOGRAD_FLOAT = 1.8
"""How much faster than the direct convolution: F(4×4) 2.0 to 2.7 on 56² to 14², F(2×2) 1.3 on 7² (measured by hand on AVX2)."""
WINOGRAD_INT8 = 1.1
"""The exact integer F(2×2): 1.07 to 1.4 there; with VNNI the direct one is as fast."""
NOTICED = 0.05
"""Changes of the speed by less are not worth a line."""
REACHED: dict[str, float] = {"float32": 0.7, "int8": 0.7}
"""Of the peak, by dense kernels."""
WAKE_S = 5e-7
"""What starting a kernel costs: most of a small model's kernels stay on one core."""
PRUNED = 0.5
"""The share of channels that the pruning prediction takes away."""


@dataclass(frozen=True)
class Prediction:
    """One change, and what it is estimated to bring."""

    name: str
    """As the figure is called: "latency_int8"."""
    latency: Measurement
    speedup: float
    """Over float32 on all threads."""
    why: str


@dataclass(frozen=True)
class _Layer:
    """One kernel's work, and what of it changes."""

    cost: LayerCost
    winograd: bool = False
    depthwise: bool = False
    first: bool = False
    last: bool = False


def latency(model: Model, device: Processor, threads: int | None = None, *, strict: bool = False) -> Measurement:
    """One run of the model as it is, in seconds."""
    return Measurement(_latency(_kernels(model), device, threads or device.cores, strict=strict), "s", "estimated")


def predict(model: Model, device: Processor, threads: int | None = None, *, strict: bool = False) -> tuple[Prediction, ...]:
    """int8 (for a float model), channels pruned by half, and half of the threads; nothing for a model that multiplies nothing."""
    layers = _kernels(model)
    if not any(layer.cost.macs for layer in layers):
        return ()
    count = threads or device.cores
    base = _latency(layers, device, count, strict=strict)
    found = []
    if not plan(model).is_quantized:
        factor = int8_factor(device)
        small = _latency([_int8(layer) for layer in layers], device, count, strict=strict)
        flags = [flag for flag in DOT_PRODUCTS if flag in device.isa]
        why = f"{flags[0]}: up to 4 times the arithmetic" if flags else "no dot-product instruction: at most twice the arithmetic"
        found.append(_prediction("latency_int8", base, max(small, base / factor), f"{why}, a quarter of the bytes"))
    pruned = _latency([_pruned(layer, PRUNED) for layer in layers], device, count, strict=strict)
    why = f"half of all channels leave about {_macs(layers, PRUNED):.0%} of the multiply-accumulates"
    found.append(_prediction("latency_pruned_half", base, pruned, why))
    if count > 1:
        fewer = max(1, count // 2)
        slow = _latency(layers, device, fewer, strict=strict)
        found.append(_prediction(f"latency_threads_{fewer}", base, slow, f"{fewer} of {count} threads"))
    return tuple(found)


def notes(predictions: Sequence[Prediction]) -> tuple[str, ...]:
    """One line for each change that would be noticed, for people."""
    said = {"latency_int8": "quantized to int8 it is", "latency_pruned_half": "without half of its channels it is"}
    return tuple(
        f"{said.get(p.name, f'on {p.why} it is')} estimated to run at {p.speedup:.2g} times the speed"
        + (f" ({p.why})" if p.name in said else "")
        for p in predictions if abs(p.speedup - 1) >= NOTICED
    )  # fmt: skip


def int8_factor(device: Processor) -> float:
    """How many times the float32 arithmetic int8 may reach: 4 with a dot-product instruction, else 2; more only with AMX."""
    if "amx-int8" in device.isa and "int8" in device.peak_ops_per_s and "float32" in device.peak_ops_per_s:
        return device.peak_ops_per_s["int8"] / device.peak_ops_per_s["float32"]
    return 4.0 if any(flag in device.isa for flag in DOT_PRODUCTS) else 2.0


def _prediction(name: str, base: float, latency: float, why: str) -> Prediction:
    return Prediction(name, Measurement(latency, "s", "estimated"), base / latency, why)


def _kernels(model: Model) -> list[_Layer]:
    """Layers that are kernels of their own: what multiplies or reduces, not what fuses behind it."""
    nodes = {node.name: node for node in model.graph}
    costs = [cost for cost in layer_costs(model) if cost.macs or cost.op not in OPERATORS or OPERATORS[cost.op].role == "anchor"]
    heavy = [index for index, cost in enumerate(costs) if cost.macs]
    layers = []
    for index, cost in enumerate(costs):
        node = nodes.get(cost.name)
        ends = {"first": bool(heavy) and index == heavy[0], "last": bool(heavy) and index == heavy[-1]}
        layers.append(_Layer(cost, _is_winograd(node), _is_depthwise(node), **ends))
    return layers


def _latency(layers: Sequence[_Layer], device: Processor, threads: int, *, strict: bool) -> float:
    """Seconds on ``threads`` of the device. The memory's bandwidth is shared: four cores use it up."""
    share = threads / device.cores
    peaks: dict[Dtype, float] = {dtype: rate * share for dtype, rate in device.peak_ops_per_s.items()}
    if "float32" in peaks:
        peaks["int8"] = peaks["float32"] * int8_factor(device)
    memory = (device.memory_bandwidth_bytes_per_s or 10e9) * min(1.0, threads / min(device.cores, 4))
    some = replace(device, cores=threads, peak_ops_per_s=peaks, memory_bandwidth_bytes_per_s=memory)
    costs = []
    for layer in layers:
        integer = layer.cost.dtype in ("int8", "int4")
        gain = 1.0
        if layer.winograd and not (strict and not integer):
            gain = WINOGRAD_INT8 if integer else WINOGRAD_FLOAT
        reached = REACHED["int8" if integer else "float32"]
        costs.append(replace(layer.cost, macs=math.ceil(layer.cost.macs / gain / reached)))
    return roofline(costs, some).latency.value + WAKE_S * len(costs)


def _int8(layer: _Layer) -> _Layer:
    cost = layer.cost
    small = replace(cost, weight_bytes=cost.weight_bytes // 4, activation_bytes=cost.activation_bytes // 4, dtype="int8")
    return replace(layer, cost=small)


def _pruned(layer: _Layer, amount: float) -> _Layer:
    """Channels leave as outputs of one layer and as inputs of the next; the model's own inputs and outputs stay."""
    kept, cost = 1 - amount, layer.cost
    inputs, outputs = 1.0 if layer.first or layer.depthwise else kept, 1.0 if layer.last else kept
    size = inputs * outputs if cost.macs else kept
    less = replace(
        cost,
        macs=math.ceil(cost.macs * size),
        elementwise_ops=math.ceil(cost.elementwise_ops * outputs),
        weight_bytes=math.ceil(cost.weight_bytes * size),
        activation_bytes=math.ceil(cost.activation_bytes * kept),
    )
    return replace(layer, cost=less)


def _macs(layers: Sequence[_Layer], amount: float) -> float:
    """The share of multiply-accumulates that are left."""
    return sum(_pruned(layer, amount).cost.macs for layer in layers) / sum(layer.cost.macs for layer in layers)


def _is_winograd(node: ir.Node | None) -> bool:
    if node is None or node.op_type != "Conv":
        return False
    ints = {name: tuple(node.attributes.get_ints(name, ())) for name in ("kernel_shape", "strides", "dilations")}
    plain = ints["kernel_shape"] == (3, 3) and set(ints["strides"]) <= {1} and set(ints["dilations"]) <= {1}
    weight = node.inputs[1]
    return plain and node.attributes.get_int("group", 1) == 1 and weight is not None and shape_of(weight)[1] >= 16


def _is_depthwise(node: ir.Node | None) -> bool:
    return node is not None and node.op_type == "Conv" and node.attributes.get_int("group", 1) > 1
