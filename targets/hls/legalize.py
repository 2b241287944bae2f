"""From the integer view of a canonical model to hls4ml's layers, each with a proven type for every tensor.

One IntegerOp becomes one layer whose accumulator cannot overflow, and what ``builder.py`` puts behind it to round and
clamp. Zero points vanish: a tensor holds v = q − z, so a padded 0 is a padded z, and only the clamp's bounds shift. Which
kind of operation becomes which layer is the table ``_LOWERINGS``; what has no exact layer is refused by name.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence

import numpy as np
import onnx_ir as ir

from gatewright.errors import UnsupportedOp
from gatewright.frontend import float_ops
from gatewright.frontend.integer import FloatStep, Grid, IntegerOp, Multiplier, Operand
from gatewright.frontend.integer import plan as integer_plan
from gatewright.frontend.model import Model
from gatewright.frontend.queries import reduce_axes
from gatewright.frontend.rounding import requantize
from gatewright.frontend.split import MOVEMENT, Split, split
from gatewright.frontend.windows import Window

from .backends import BACKENDS
from .builder import (
    Builder,
    Refused,
    Tensor,
    channels_last,
    image,
    natural_exponent,
    periodic,
    uniform_shift,
    wrapping,
)
from .network import Array, Fixed, Network, Port, Tool

_SPATIAL = frozenset({"conv", "average", "maximum"})


def legalize(model: Model, tool: Tool) -> tuple[Network, Split, tuple[UnsupportedOp, ...]]:
    """The design of a quantized model (io and reuse factors still at their defaults), and every node that has no exact layer.

    Raises UnsupportedError for a float model.
    """
    parts, problems = split(model, integer_plan(model), "hls")
    walk = _Walk(parts, tool)
    for step in parts.core:
        walk.step(step)
    outputs, traced = tuple(walk.outputs()), tuple(walk.traced())
    notes = tuple(dict.fromkeys(walk.builder.notes))
    network = Network(tuple(walk.builder.layers), tuple(walk.inputs), outputs, traced, notes, tool)
    return network, parts, (*problems, *walk.problems)


class _Walk:
    """Lowers the core's steps in order and keeps what each ONNX value became."""

    def __init__(self, parts: Split, tool: Tool) -> None:
        self.parts = parts
        self.builder = Builder(tool)
        self.tensors: dict[str, Tensor] = {}
        self.grids: dict[str, Grid] = {}
        self.inputs: list[Port] = []
        self.problems: list[UnsupportedOp] = []
        self._enter()

    def _enter(self) -> None:
        """An InputLayer per integer value that enters; those that convolutions and poolings read are channels last."""
        operands: dict[str, Operand] = {}
        spatial: set[str] = set()
        for step in reversed(self.parts.core):
            if isinstance(step, IntegerOp):
                operands |= {operand.name: operand for operand in step.operands}
                if step.kind in _SPATIAL or (step.output in spatial and step.op not in MOVEMENT):
                    spatial |= {operand.name for operand in step.operands}
        for name in self.parts.inputs:
            operand = operands[name]
            shape, zero = operand.shape[1:], int(operand.grid.zero_point)
            lo, hi = operand.lo - zero, operand.hi - zero
            type_ = Fixed.holding(lo, hi, natural_exponent(operand.grid))
            moved = name in spatial and len(shape) > 1
            axes = (*range(1, len(shape)), 0) if moved else tuple(range(len(shape)))
            laid = image(shape) if moved else (shape or (1,))
            order = np.arange(math.prod(shape)).reshape(shape).transpose(axes).reshape(-1)
            self.builder.node = name
            layer = self.builder.append("input", "InputLayer", [], laid, {"result": type_}, {"input_shape": list(laid)})
            self.tensors[name] = Tensor(layer, type_, shape, laid, order, lo, hi)
            self.grids[name] = operand.grid
            port = Port(name, layer, shape, axes, type_.exponent, zero, _dtype_name(operand.grid), operand.lo, operand.hi)
            self.inputs.append(port)

    def step(self, step: IntegerOp | FloatStep) -> None:
        """Lower one step; a refusal becomes a problem, and what depends on it is left out."""
        if isinstance(step, IntegerOp):
            names = [o.name for o in step.operands if o.constant is None]
            name, op_type, output = step.name, step.op, step.output
            grid: Grid | None = step.grid
        else:
            source, target = step.node.inputs[0], step.node.outputs[0]
            assert source is not None
            names = [source.name or ""]
            name, op_type, output = step.node.name or "", step.node.op_type, target.name or ""
            grid = self.grids.get(names[0])
        if grid is None or not all(n in self.tensors for n in names):
            return
        self.builder.node = name
        operands = [self.tensors[n] for n in names]
        try:
            if isinstance(step, IntegerOp):
                lower = _LOWERINGS.get(step.kind)
                if lower is None:
                    raise Refused(f"a {step.kind} inside the network has no layer")
                if any(o.constant is None and not o.grid.same_as(self.grids[o.name]) for o in step.operands):
                    raise Refused("it reads a tensor on another grid than that tensor was made for")
                found = lower(self.builder, step, operands)
            else:
                found = _moved(self.builder, step.node, operands[0])
        except Refused as refused:
            self.problems.append(UnsupportedOp(node=name, op=op_type, target="hls", rule=refused.rule, hint=refused.hint))
            return
        self.tensors[output], self.grids[output] = found, grid

    def outputs(self) -> list[Port]:
        """A port per value that leaves. Two values may not leave by one layer, nor an input directly: those get a layer of their own."""
        taken, found = {port.layer for port in self.inputs}, []
        for name in self.parts.outputs:
            if name not in self.tensors:
                continue
            tensor = self.tensors[name]
            if tensor.layer in taken:
                self.builder.node = name
                tensor = dataclasses.replace(tensor, layer=self.builder.rounded(tensor, wrapping(tensor.type)))
            taken.add(tensor.layer)
            port = self._port(name, tensor)
            if port is None:
                rule = "it leaves the design in an order that is neither ONNX's nor channels last"
                hint = "end the model without the Reshape"
                self.problems.append(UnsupportedOp(node=name, op="output", target="hls", rule=rule, hint=hint))
            else:
                found.append(port)
        return found

    def traced(self) -> list[Port]:
        """A port per inner value that some layer gives as it is."""
        skipped = {*self.parts.inputs, *self.parts.outputs}
        inputs = {port.layer for port in self.inputs}
        found = [self._port(name, tensor) for name, tensor in self.tensors.items() if name not in skipped and tensor.layer not in inputs]
        return [port for port in found if port is not None]

    def _port(self, name: str, tensor: Tensor) -> Port | None:
        rank = len(tensor.shape)
        numbered = np.arange(tensor.order.size).reshape(tensor.shape)
        for axes in (tuple(range(rank)), (*range(1, rank), 0)):
            if np.array_equal(tensor.order, numbered.transpose(axes).reshape(-1)):
                grid = self.grids[name]
                zero = int(grid.zero_point)
                bounds = (tensor.lo + zero, tensor.hi + zero)
                return Port(name, tensor.layer, tensor.shape, axes, tensor.exponent, zero, _dtype_name(grid), *bounds)
        return None


# ---- products ---------------------------------------------------------------------------------------------------


def _conv(b: Builder, op: IntegerOp, operands: Sequence[Tensor]) -> Tensor:
    assert op.node is not None
    assert op.weight is not None
    assert op.bias is not None
    group = int(op.node.attributes.get_int("group", 1) or 1)
    return _convolution(b, op, operands[0], op.weight, op.bias, Window.of(op.node, op.weight.shape[2:]), group)


def _convolution(b: Builder, op: IntegerOp, x: Tensor, weight: Array, bias: Array, window: Window, group: int) -> Tensor:
    """weight [M, C/group, *kernel], q − z; bias [M] on the accumulator's scale."""
    if weight.ndim not in (3, 4):
        raise Refused(f"a convolution over {weight.ndim - 2} axes has no layer", "one and two axes have")
    filters, channels = weight.shape[0], x.shape[0]
    out = image((filters, *window.output(x.shape[1:])))
    if any(d > 1 for d in window.dilations):
        weight = _dilated(weight, window.dilations)
        b.notes.append(f"the dilated kernel of {op.name} is written with zeros between its weights")
    depthwise = group == channels == filters and group > 1 and BACKENDS[b.tool].depthwise
    if group > 1 and not depthwise:
        weight = _ungrouped(weight, group)
        b.notes.append(f"the grouped convolution of {op.name} is written as a dense one with zeros")
    height, width, _ = image(x.shape)
    (top, left), (stride_height, stride_width) = _two(window.begin, 0), _two(window.strides, 1)
    kernel_height, kernel_width = _two(weight.shape[2:], 1)
    weight = weight.reshape(*weight.shape[:2], kernel_height, kernel_width)
    exponent_weight = natural_exponent(op.weight_grid)
    exponent = x.exponent + exponent_weight
    accumulator = Fixed.holding(*op.accumulator, exponent)
    shape = (filters, *window.output(x.shape[1:]))
    found = b.result(op, op.multipliers[0], Tensor("", accumulator, shape, out, channels_last(shape), *op.accumulator))
    source = b.laid_out(x, channels_last(x.shape), image(x.shape))
    kind, key = ("DepthwiseConv2D", "depthwise") if depthwise else ("Conv2D", "weight")
    arranged = weight.transpose(2, 3, 0, 1) if depthwise else weight.transpose(2, 3, 1, 0)
    attributes: dict[str, object] = {
        "data_format": "channels_last", "in_height": height, "in_width": width, "n_chan": channels,
        "out_height": out[0], "out_width": out[1], "n_filt": filters, "filt_height": kernel_height, "filt_width": kernel_width,
        "stride_height": stride_height, "stride_width": stride_width, "pad_top": top, "pad_left": left,
        "pad_bottom": _used_padding(out[0], stride_height, kernel_height, height, top),
        "pad_right": _used_padding(out[1], stride_width, kernel_width, width, left),
    }  # fmt: skip
    arrays, types = _linear(arranged, bias, exponent_weight, exponent, key)
    types |= {"accum": accumulator, "result": found.type}
    return found.finish(b.append("depthwise" if depthwise else "conv", kind, [source], out, types, attributes, arrays))


def _matmul(b: Builder, op: IntegerOp, operands: Sequence[Tensor]) -> Tensor:
    if op.weight is None:
        raise Refused("both of its operands are activations", "a product with constant weights has a layer")
    x, (inside, outside) = operands[0], op.weight.shape
    bias = op.bias if op.bias is not None else np.zeros(outside, np.int64)
    exponent_weight = natural_exponent(op.weight_grid)
    exponent = x.exponent + exponent_weight
    accumulator = Fixed.holding(*op.accumulator, exponent)
    positions = math.prod(x.shape[:-1])
    laid = (outside,) if positions == 1 else (1, positions, outside)
    found = b.result(op, op.multipliers[0], Tensor("", accumulator, op.shape[1:], laid, np.arange(positions * outside), *op.accumulator))
    attributes: dict[str, object]
    if positions == 1:
        # Any order of the inputs will do: the rows of the weight follow it.
        source, arranged, kind = b.reshaped(x, (inside,)), op.weight[x.order], "Dense"
        attributes = {"n_in": inside, "n_out": outside}
    else:
        # hls4ml's Dense takes one row; a 1×1 convolution takes many.
        source = b.laid_out(x, np.arange(positions * inside), (1, positions, inside))
        arranged, kind = op.weight[None, None], "Conv2D"
        attributes = {
            "data_format": "channels_last", "in_height": 1, "in_width": positions, "n_chan": inside,
            "out_height": 1, "out_width": positions, "n_filt": outside,
            "filt_height": 1, "filt_width": 1, "stride_height": 1, "stride_width": 1,
            "pad_top": 0, "pad_bottom": 0, "pad_left": 0, "pad_right": 0,
        }  # fmt: skip
    arrays, types = _linear(arranged, bias, exponent_weight, exponent, "weight")
    types |= {"accum": accumulator, "result": found.type}
    return found.finish(b.append("dense", kind, [source], laid, types, attributes, arrays))


def _linear(weight: Array, bias: Array, exponent_weight: int, exponent: int, key: str) -> tuple[dict[str, Array], dict[str, Fixed]]:
    """Arrays (reals) and types of a weighted sum's constants. Types are the narrowest: pruned or small weights are small hardware."""
    types = {
        "weight": Fixed.holding(int(weight.min()), int(weight.max()), exponent_weight),
        "bias": Fixed.holding(int(bias.min()), int(bias.max()), exponent),
    }
    return {key: np.ldexp(weight.astype(np.float64), exponent_weight), "bias": np.ldexp(bias.astype(np.float64), exponent)}, types


# ---- windows ----------------------------------------------------------------------------------------------------


def _average(b: Builder, op: IntegerOp, operands: Sequence[Tensor]) -> Tensor:
    """The exact sum, then one rounding with M = s_x/(N·s_y); hls4ml's own average divides and truncates."""
    assert op.node is not None
    x = operands[0]
    channels, spatial = x.shape[0], x.shape[1:]
    if op.node.op_type == "ReduceMean" and not _over_space(op):
        raise Refused("it averages over axes other than all spatial ones", "an average over height and width has a layer")
    window = None if op.node.op_type in ("GlobalAveragePool", "ReduceMean") else Window.of(op.node)
    if window is None or (window.kernel == spatial and not window.padded):
        source = b.laid_out(x, channels_last(x.shape), image(x.shape))
        sum_type = Fixed.holding(*op.accumulator, x.exponent)
        attributes: dict[str, object] = {"n_positions": math.prod(spatial), "n_chan": channels}
        name = b.append("sum", "GlobalSum", [source], (channels,), {"result": sum_type}, attributes)
        total = Tensor(name, sum_type, op.shape[1:], (channels,), np.arange(channels), *op.accumulator)
        return b.requantized(op, op.multipliers[0], total)
    ones = np.ones((channels, 1, *window.kernel), np.int64)
    return _convolution(b, dataclasses.replace(op, weight_grid=None), x, ones, np.zeros(channels, np.int64), window, channels)


def _maximum(b: Builder, op: IntegerOp, operands: Sequence[Tensor]) -> Tensor:
    assert op.node is not None
    x = operands[0]
    channels, spatial = x.shape[0], x.shape[1:]
    if op.node.op_type == "ReduceMax" and not _over_space(op):
        raise Refused("it takes the maximum over axes other than all spatial ones", "a maximum over height and width has a layer")
    if len(spatial) not in (1, 2):
        raise Refused(f"pooling over {len(spatial)} axes has no layer", "one and two axes have")
    flat = (0,) * len(spatial)
    whole = Window(spatial, spatial, (1,) * len(spatial), flat, flat)
    window = whole if op.node.op_type in ("GlobalMaxPool", "ReduceMax") else Window.of(op.node)
    if any(d > 1 for d in window.dilations):
        raise Refused("dilated pooling has no layer")
    out = image((channels, *window.output(spatial)))
    height, width, _ = image(x.shape)
    kernel, strides, begin = _two(window.kernel, 1), _two(window.strides, 1), _two(window.begin, 0)
    end = [_used_padding(*sizes) for sizes in zip(out, strides, kernel, (height, width), begin, strict=False)]
    source = b.laid_out(x, channels_last(x.shape), (height, width, channels))
    attributes: dict[str, object] = {
        "data_format": "channels_last", "in_height": height, "in_width": width, "n_filt": channels,
        "out_height": out[0], "out_width": out[1], "pool_height": kernel[0], "pool_width": kernel[1],
        "stride_height": strides[0], "stride_width": strides[1], "pad_top": begin[0], "pad_left": begin[1],
        "pad_bottom": end[0], "pad_right": end[1], "lowest": math.ldexp(x.type.bounds[0], x.exponent),
    }  # fmt: skip
    plain = wrapping(x.type)
    name = b.append("maxpool", "MaxPooling2D", [source], out, {"accum": plain, "result": plain}, attributes)
    order = channels_last((channels, *window.output(spatial)))
    return b.requantized(op, op.multipliers[0], Tensor(name, plain, op.shape[1:], out, order, x.lo, x.hi))


# ---- elementwise ------------------------------------------------------------------------------------------------


def _requantize(b: Builder, op: IntegerOp, operands: Sequence[Tensor]) -> Tensor:
    return b.requantized(op, op.multipliers[0], operands[0] if op.node is None else _moved(b, op.node, operands[0]))


def _table(b: Builder, op: IntegerOp, operands: Sequence[Tensor]) -> Tensor:
    assert op.table is not None
    x, grid = operands[0], op.operands[0].grid
    # Entry i is for the operand whose bits, read as a whole number, are i.
    bits = np.arange(1 << x.type.width)
    v = np.where(bits > x.type.bounds[1], bits - (1 << x.type.width), bits)
    reached = np.clip(v, x.lo, x.hi)
    entries = op.table[reached + int(grid.zero_point) - grid.lo] - int(op.grid.zero_point)
    lo, hi = int(entries.min()), int(entries.max())
    type_ = Fixed.holding(lo, hi, natural_exponent(op.grid))
    arrays = {"table": np.ldexp(entries.astype(np.float64), type_.exponent)}
    name = b.append("table", "Lookup", [x.layer], x.laid, {"table": type_, "result": type_}, {}, arrays)
    return dataclasses.replace(x, layer=name, type=type_, lo=lo, hi=hi)


def _sum(b: Builder, op: IntegerOp, operands: Sequence[Tensor]) -> Tensor:
    """Every term exactly in units of the result, added exactly; the last addition's type rounds."""
    entries = list(zip(op.operands, op.multipliers, op.signs, strict=True))
    terms = [(tensor, m, sign) for tensor, (_, m, sign) in zip(operands, [e for e in entries if e[0].constant is None], strict=True)]
    constants = [e for e in entries if e[0].constant is not None]
    if any(tensor.shape != op.shape[1:] for tensor, _, _ in terms):
        raise Refused("its operands have different shapes", "operands of one shape, or a constant, have a layer")
    if len(terms) == 1:
        return _plus_constants(b, op, *terms[0], constants)
    shifts = [uniform_shift(m) for _, m, _ in terms]
    unit = natural_exponent(op.grid) if None in shifts else terms[0][0].exponent - (shifts[0] or 0)
    scaled = [(b.scaled(tensor, m, unit), sign) for tensor, m, sign in terms]
    total = scaled[0][0]
    for index, (term, sign) in enumerate(scaled[1:], 2):
        exponent = min(total.exponent, term.exponent)
        lo, hi = (v << (total.exponent - exponent) for v in (total.lo, total.hi))
        term_lo, term_hi = sorted(sign * (v << (term.exponent - exponent)) for v in (term.lo, term.hi))
        exact = dataclasses.replace(total, type=Fixed.holding(lo + term_lo, hi + term_hi, exponent), lo=lo + term_lo, hi=hi + term_hi)
        to_steps = Multiplier(np.asarray(1, np.int64), np.asarray(unit - exponent, np.int64))
        last = index == len(scaled) and not constants
        found = b.result(op, to_steps, exact) if last else None
        word = "add" if sign > 0 else "subtract"
        sources = [total.layer, b.laid_out(term, total.order, total.laid)]
        name = b.append(word, "Merge", sources, total.laid, {"result": found.type if found else exact.type}, {"op": word})
        total = found.finish(name) if found else dataclasses.replace(exact, layer=name)
    if constants:
        to_steps = Multiplier(np.asarray(1, np.int64), np.asarray(unit - total.exponent, np.int64))
        total = _plus_constants(b, op, total, to_steps, 1, constants)
    return total


def _plus_constants(
    b: Builder, op: IntegerOp, x: Tensor, multiplier: Multiplier, sign: int, constants: Sequence[tuple[Operand, Multiplier, int]]
) -> Tensor:
    """±x·M plus constants in one Requantize layer that rounds once."""
    unit = natural_exponent(op.grid)
    m, k = int(multiplier.m), int(multiplier.k)
    common = max([k, 0, *(int(each.k) for _, each, _ in constants)])
    added = np.zeros(op.shape[1:], object)
    for operand, each, its_sign in constants:
        assert operand.constant is not None
        factor = its_sign * (int(each.m) << (common - int(each.k)))
        values = (operand.constant - int(operand.grid.zero_point)).astype(object) * factor
        added = added + np.broadcast_to(values, op.shape)[0]
    bias = periodic(added.reshape(-1)[x.order], x.laid[-1])
    ends = sorted(sign * v * (m << (common - k)) for v in (x.lo, x.hi))
    by_common = Multiplier(np.asarray(1, np.int64), np.asarray(common, np.int64))
    wide = [int(requantize(np.asarray(end, np.int64), by_common, 0)) for end in (ends[0] + min(bias), ends[1] + max(bias))]
    scale = np.array([math.ldexp(float(sign * m), unit - x.exponent - k)])
    return b.clamped(op, x, scale, np.array([math.ldexp(float(v), unit - common) for v in bias]), (wide[0], wide[1]))


def _product(b: Builder, op: IntegerOp, operands: Sequence[Tensor]) -> Tensor:
    if any(tensor.shape != op.shape[1:] for tensor in operands):
        raise Refused("its operands have different shapes", "operands of one shape, or a constant that enlarges nothing, have a layer")
    constant = next((o for o in op.operands if o.constant is not None), None)
    x = operands[0]
    if constant is None:
        y = operands[1]
        lo, hi = op.accumulator
        exact = dataclasses.replace(x, type=Fixed.holding(lo, hi, x.exponent + y.exponent), lo=lo, hi=hi)
        found = b.result(op, op.multipliers[0], exact)
        sources = [x.layer, b.laid_out(y, x.order, x.laid)]
        return found.finish(b.append("multiply", "Merge", sources, x.laid, {"result": found.type}, {"op": "multiply"}))
    assert constant.constant is not None
    values = np.broadcast_to(constant.constant - int(constant.grid.zero_point), op.shape)[0].reshape(-1)[x.order]
    factors = periodic(values, x.laid[-1])
    m, k = int(op.multipliers[0].m), int(op.multipliers[0].k)
    ends = [int(v) * int(f) for v in (x.lo, x.hi) for f in (factors.min(), factors.max())]
    wide = [int(requantize(np.asarray(end, np.int64), op.multipliers[0], 0)) for end in (min(ends), max(ends))]
    scale = np.array([math.ldexp(float(int(f) * m), natural_exponent(op.grid) - x.exponent - k) for f in factors])
    return b.clamped(op, x, scale, np.zeros(1), (wide[0], wide[1]))


# ---- movement ---------------------------------------------------------------------------------------------------


def _concat(b: Builder, op: IntegerOp, operands: Sequence[Tensor]) -> Tensor:
    assert op.node is not None
    if len(operands) != len(op.operands):
        raise Refused("it joins a constant")
    axis = int(op.node.attributes.get_int("axis", 0) or 0) % len(op.shape) - 1
    parts = [b.requantized(op, m, x) for x, m in zip(operands, op.multipliers, strict=True)]
    joined = parts[0]
    for part in parts[1:]:
        joined = _joined(b, joined, part, axis)
    return joined


def _joined(b: Builder, first: Tensor, second: Tensor, axis: int) -> Tensor:
    shape = tuple(n + second.shape[i] if i == axis else n for i, n in enumerate(first.shape))
    if len(shape) == 1:
        laid: tuple[int, ...] = shape
        order, along = np.concatenate([first.order, second.order + first.order.size]), 1
        sources = [b.reshaped(first, first.shape), b.reshaped(second, second.shape)]
    elif len(shape) in (2, 3):
        laid, order = image(shape), channels_last(shape)
        along = 3 if axis == 0 else axis + 3 - len(shape)
        sources = [b.laid_out(x, channels_last(x.shape), image(x.shape)) for x in (first, second)]
    else:
        raise Refused(f"tensors of {len(shape) + 1} axes have no layer")
    exponent = min(first.exponent, second.exponent)
    ends = [v << (x.exponent - exponent) for x in (first, second) for v in (x.lo, x.hi)]
    type_ = Fixed.holding(min(ends), max(ends), exponent)
    attributes: dict[str, object] = {"op": f"concatenate{len(laid)}d", "axis": along}
    name = b.append("concat", "Concatenate", sources, laid, {"result": type_}, attributes)
    return Tensor(name, type_, shape, laid, order, min(ends), max(ends))


def _moved(b: Builder, node: ir.Node, x: Tensor) -> Tensor:
    """x moved by a node: renumbered where every element stays (no layer is needed), else gathered."""
    others = [None if v is None or v.const_value is None else v.const_value.numpy() for v in node.inputs[1:]]
    moved = float_ops.evaluate(node, [np.arange(x.order.size).reshape(1, *x.shape), *others])[0]
    shape, flat = moved.shape[1:], moved.reshape(-1)
    if node.op_type in MOVEMENT:
        place = np.empty(flat.size, np.int64)
        place[flat] = np.arange(flat.size)
        return dataclasses.replace(x, shape=shape, order=place[x.order])
    pictured = len(shape) in (2, 3)
    order, laid = (channels_last(shape), image(shape)) if pictured else (np.arange(flat.size), (flat.size,))
    return dataclasses.replace(x, layer=b.gathered(x, flat[order], laid), type=wrapping(x.type), shape=shape, laid=laid, order=order)


# ---- small questions --------------------------------------------------------------------------------------------

_Lowering = Callable[[Builder, IntegerOp, Sequence[Tensor]], Tensor]
_LOWERINGS: dict[str, _Lowering] = {
    "conv": _conv, "matmul": _matmul, "average": _average, "maximum": _maximum, "requantize": _requantize, "table": _table,
    "sum": _sum, "product": _product, "concat": _concat,
}  # fmt: skip


def _over_space(op: IntegerOp) -> bool:
    """True for a Reduce over every axis but the samples' and the channels'."""
    assert op.node is not None
    rank = len(op.operands[0].shape)
    return rank > 2 and reduce_axes(op.node, rank) == tuple(range(2, rank))


def _two(values: Sequence[int], fill: int) -> tuple[int, int]:
    """One or two spatial numbers as (height's, width's)."""
    return (fill, int(values[0])) if len(values) == 1 else (int(values[0]), int(values[1]))


def _used_padding(out: int, stride: int, kernel: int, size: int, begin: int) -> int:
    """How far past the end the last window reaches: never more than ONNX's padding, and what hls4ml's loops expect."""
    return max(0, (out - 1) * stride + kernel - size - begin)


def _dilated(weight: Array, dilations: Sequence[int]) -> Array:
    """The kernel with zeros between its weights."""
    spatial = [(k - 1) * d + 1 for k, d in zip(weight.shape[2:], dilations, strict=True)]
    wide = np.zeros((*weight.shape[:2], *spatial), weight.dtype)
    wide[(slice(None), slice(None), *(slice(None, None, d) for d in dilations))] = weight
    return wide


def _ungrouped(weight: Array, group: int) -> Array:
    """[M, C/group, …] → [M, C, …] with zeros where a filter does not look."""
    filters, inside = weight.shape[:2]
    full = np.zeros((filters, inside * group, *weight.shape[2:]), weight.dtype)
    for g in range(group):
        rows = slice(g * filters // group, (g + 1) * filters // group)
        full[rows, g * inside : (g + 1) * inside] = weight[rows]
    return full


def _dtype_name(grid: Grid) -> str:
    return str(grid.dtype.name).lower()
