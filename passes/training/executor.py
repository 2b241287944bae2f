"""``Executor``: a canonical model as a differentiable function of its weights, which go back into the same graph.

    net = Executor(model)
    z = net.run({"x": torch.from_numpy(x)})["logits"]
    loss(z).backward()                      # net.parameters["fc1.weight"].grad, under the initializer's ONNX name
    better = net.write_back()               # a Model: the same graph, other weights

Any number of samples where the model treats them independently (``frontend.batch.batch_reason``).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from torch import Tensor

from gatewright.errors import PassError
from gatewright.frontend.edit import Array, attribute
from gatewright.frontend.model import Model
from gatewright.frontend.queries import INTEGER_BOUNDS, constant

from . import elementwise, layers, movement, recurrent
from .fakequant import Grids, octaves, quantize
from .parameters import trainable
from .site import Function, Site

MAKERS = {**elementwise.MAKERS, **movement.MAKERS, **layers.MAKERS, **recurrent.MAKERS}
"""Op type to the maker of its function; QuantizeLinear and DequantizeLinear are the executor's own."""


class Executor:
    """``parameters``: leaves that require gradients. A quantized weight is there as the real number that is rounded in each run
    (name: the integer initializer's), a learned scale as the octaves it moved (``fakequant.py``).

    ``dtype``: of every float tensor. ``freeze``: weights to leave alone. ``learn_scales``: scales of QuantizeLinear and of weights
    are parameters too. ``grids``: the quantized constants, default as the graph has them. Raises UnsupportedOp for a node that
    has no function here.
    """

    def __init__(
        self, model: Model, *, dtype: torch.dtype = torch.float32, freeze: Iterable[str] = (), learn_scales: bool = False,
        grids: Grids | None = None,
    ) -> None:  # fmt: skip
        self.model, self.dtype = model, dtype
        self.grids = grids or Grids.of(model.graph)
        self.parameters: dict[str, Tensor] = {}
        self.running: dict[str, Tensor] = {}
        """Running means and variances of BatchNormalization, by name; a training run moves them."""
        self._constants: dict[str, Tensor] = {}
        chosen = set(trainable(model.graph, freeze))
        for name, value in model.graph.initializers.items():
            array = constant(value)
            if array is None:
                continue
            if learn_scales and name in self.grids.scales:
                self.parameters[name] = torch.zeros(array.shape, dtype=dtype)
            elif value in chosen:
                self.parameters[name] = self._latent(name, array)
            elif name in self.grids.weights or name in self.grids.biases:
                self._constants[name] = self._latent(name, array)
            if name not in self.parameters or name in self.grids.scales:
                self._constants.setdefault(name, self._tensor(array))
        for parameter in self.parameters.values():
            parameter.requires_grad_(True)
        for node in model.graph:
            if node.op_type == "BatchNormalization":
                for statistic in node.inputs[3:5]:
                    if statistic is not None and statistic.name in self._constants:
                        self.running[statistic.name] = self._constants[statistic.name].clone()
        self._learned = {name for name in self.grids.scales if name in self.parameters}
        self._pow2 = all(bool(torch.all(torch.frexp(self._constants[n]).mantissa == 0.5)) for n in self._learned)
        self._reads = {node: self._names(node) for node in model.graph}
        self._functions = {node: self._function(node) for node in model.graph}
        self._orders: dict[tuple[str, ...], list[tuple[ir.Node, list[str]]]] = {}

    # ---- running ------------------------------------------------------------------------------------------------

    def run(
        self, feeds: Mapping[str, Tensor], outputs: Sequence[str] | None = None, *, parameters: Mapping[str, Tensor] | None = None,
        training: bool = False,
    ) -> dict[str, Tensor]:  # fmt: skip
        """``outputs`` (default: the model's; any value by name) for ``feeds``. Integers of a quantized graph come as floats.

        ``parameters``: others than the executor's own, for functional transforms. ``training``: BatchNormalization uses the
        batch's statistics and moves the running ones.
        """
        wanted = tuple(outputs) if outputs is not None else tuple(o.name for o in self.model.outputs)
        values: dict[str, Tensor] = {**self._constants, **self.running}
        values.update({name: x.to(self.dtype) if x.is_floating_point() else x for name, x in feeds.items()})
        given = self.parameters if parameters is None else parameters
        for name, parameter in given.items():
            values[name] = self._value(name, parameter)
        for node, finished in self._order(wanted):
            inputs = [None if name is None else values[name] for name in self._reads[node]]
            if training and node.op_type == "BatchNormalization":
                results: Any = self._normalize_batch(node, inputs)
            else:
                results = self._functions[node](*inputs)
            if isinstance(results, tuple):
                values.update({v.name: y for v, y in zip(node.outputs, results, strict=False) if v.name})
            else:
                values[node.outputs[0].name or ""] = results
            for name in finished:
                del values[name]
        return {name: values[name] for name in wanted}

    def feeds(self, arrays: Mapping[str, Array]) -> dict[str, Tensor]:
        """numpy arrays as this executor takes them."""
        return {name: self._tensor(array) for name, array in arrays.items()}

    def _order(self, wanted: tuple[str, ...]) -> list[tuple[ir.Node, list[str]]]:
        """The nodes that ``wanted`` needs, in the graph's order, each with the values that nobody reads after it."""
        if wanted not in self._orders:
            needed, kept = set(wanted), list[tuple[ir.Node, list[str]]]()
            for node in reversed(tuple(self.model.graph)):
                if any(v.name in needed for v in node.outputs):
                    read = {name for name in self._reads[node] if name is not None}
                    kept.append((node, sorted(read - needed)))
                    needed |= read
            self._orders[wanted] = kept[::-1]
        return self._orders[wanted]

    def _value(self, name: str, parameter: Tensor) -> Tensor:
        if name in self._learned:
            return octaves(self._constants[name], parameter, self._pow2, self.grids.scales[name])
        return parameter

    def _normalize_batch(self, node: ir.Node, inputs: list[Tensor | None]) -> Tensor:
        x, scale, bias, mean, variance = inputs
        assert x is not None
        momentum = attribute(node, "momentum", 0.9)
        axes = (0, *range(2, x.ndim))
        found, centre = torch.var_mean(x, dim=axes, correction=0)
        with torch.no_grad():
            for value, old, new in ((node.inputs[3], mean, centre), (node.inputs[4], variance, found)):
                assert value is not None
                assert old is not None
                if value.name in self.running:
                    self.running[value.name] = old * momentum + new.detach().to(old.dtype) * (1 - momentum)
        normalize = self._functions[node]
        return normalize(x, scale, bias, centre, found)

    def move_scale(self, name: str, to: Array) -> None:
        """Let a learned scale begin at ``to`` (on a power-of-two grid: at the power nearest to it)."""
        with torch.no_grad():
            wanted = torch.as_tensor(to, dtype=self.dtype).reshape(self.parameters[name].shape)
            octaves_away = torch.log2(wanted / self._constants[name])
            self.parameters[name].copy_(torch.round(octaves_away) if self._pow2 else octaves_away)

    # ---- preparing ----------------------------------------------------------------------------------------------

    def _tensor(self, array: Array) -> Tensor:
        if array.dtype.kind == "b":
            return torch.from_numpy(np.array(array))
        if array.dtype.kind in "iu" or not _is_float(array.dtype):
            return torch.from_numpy(np.array(array).astype(np.int64))
        return torch.from_numpy(np.array(array).astype(np.float64 if self.dtype == torch.float64 else np.float32)).to(self.dtype)

    def _latent(self, name: str, array: Array) -> Tensor:
        """The real number a weight begins at: what it dequantizes to where it is quantized."""
        if (weight := self.grids.weights.get(name)) is not None:
            zero = weight.zero.reshape(weight.along if weight.zero.size > 1 else ())
            real = (weight.start - zero) * self._scale(weight.scale).reshape(weight.along)
            return self._tensor(np.asarray(real))
        if (bias := self.grids.biases.get(name)) is not None:
            unit = self._scale(bias.units[0]).reshape(()) * self._scale(bias.units[1])
            return self._tensor(np.asarray(bias.start * unit.reshape(bias.along if unit.ndim else ())))
        return self._tensor(array)

    def _scale(self, name: str) -> Array:
        array = constant(self.model.graph.initializers[name])
        return np.asarray(array).astype(np.float64)

    def _names(self, node: ir.Node) -> tuple[str | None, ...]:
        """The values that the node's function reads: its inputs; for a bias the scales that make its own."""
        first = node.inputs[0].name if node.inputs and node.inputs[0] is not None else None
        if node.op_type == "DequantizeLinear" and first in self.grids.biases:
            return (first, *self.grids.biases[first].units)
        return tuple(None if v is None else v.name for v in node.inputs)

    def _function(self, node: ir.Node) -> Function:
        site = Site(node, self.dtype)
        if node.domain == "" and node.op_type == "QuantizeLinear":
            return self._quantizer(site)
        if node.domain == "" and node.op_type == "DequantizeLinear":
            return self._dequantizer(site)
        if node.domain or node.op_type not in MAKERS:
            raise site.refused("it has no gradient here", hint="train it in its own framework, or let it teach a network with distil")
        return MAKERS[node.op_type](site)

    def _quantizer(self, site: Site) -> Function:
        dtype = site.node.outputs[0].dtype
        if dtype not in INTEGER_BOUNDS:
            raise site.refused(f"it quantizes to {dtype}, which is none of the integer types")
        lo, hi = INTEGER_BOUNDS[dtype]
        along = _along(site)
        return lambda x, s, z: quantize(x, s.reshape(along), z.to(x.dtype).reshape(along), lo, hi)

    def _dequantizer(self, site: Site) -> Function:
        source = site.node.inputs[0]
        name = source.name or "" if source is not None else ""
        if (weight := self.grids.weights.get(name)) is not None:
            return lambda latent, s, z: weight(latent, s)
        if (bias := self.grids.biases.get(name)) is not None:
            return bias
        along = _along(site)
        return lambda q, s, z: (q.to(s.dtype) - z.to(s.dtype).reshape(along)) * s.reshape(along)

    # ---- writing back -------------------------------------------------------------------------------------------

    def write_back(self, parameters: Mapping[str, Tensor] | None = None) -> Model:
        """The model with these weights (default: the executor's own). Integers are what the forward run rounds to; a bias is
        rounded to s_x·s_w once more, in float64. Raises PassError where a bias does not fit into 32 bits.
        """
        given = {**self._constants, **(self.parameters if parameters is None else parameters)}
        edited = self.model.copy_ir()
        initializers = edited.graph.initializers
        with torch.no_grad():
            scales = {name: self._value(name, given[name]) for name in {*self.grids.scales, *self._constants} & given.keys()}
            arrays: dict[str, Array] = {name: value.numpy() for name, value in self.running.items()}
            for name in self.parameters:
                if name in self.grids.weights:
                    weight = self.grids.weights[name]
                    arrays[name] = weight.integers(given[name], scales[weight.scale]).numpy().astype(np.int64)
                elif name not in self.grids.biases:
                    arrays[name] = (scales if name in self._learned else given)[name].detach().numpy()
            for name, bias in self.grids.biases.items():
                moved = not self._learned.isdisjoint(bias.units)
                if name not in self.parameters and not moved:
                    continue
                s_x, s_w = (scales[unit].numpy().astype(np.float32) for unit in bias.units)
                unit = np.asarray(s_x.reshape(()) * s_w) if moved else np.asarray(constant(initializers[bias.scale]))
                latent = given[name].detach().numpy().astype(np.float64)
                integers = np.rint(latent / unit.astype(np.float64).reshape(bias.along if unit.ndim else ()))
                if not moved:
                    # float32 does not hold every int32: where nothing was trained, nothing changes.
                    integers = np.where(latent == self._latent(name, bias.start).numpy(), bias.start, integers)
                if np.abs(integers).max(initial=0.0) >= 2**31:
                    raise PassError(f"the bias {name!r} no longer fits into a 32-bit accumulator", hint="a lower lr, or scales=fixed")
                arrays[name], arrays[bias.scale] = integers.astype(np.int64), unit
        for name, array in arrays.items():
            value = initializers[name]
            assert value.dtype is not None
            stored = np.ascontiguousarray(array.astype(value.dtype.numpy())).reshape(array.shape)
            value.const_value = ir.Tensor(stored, dtype=value.dtype, name=name)
        return self.model.with_ir(edited)


def _along(site: Site) -> tuple[int, ...]:
    """The shape that broadcasts a scale along the node's axis."""
    if site.get("block_size", 0):
        raise site.refused("blocked scales are not supported")
    if not site.shape(1):
        return ()
    rank = site.rank()
    return tuple(-1 if i == site.get("axis", 1) % rank else 1 for i in range(rank))


def _is_float(dtype: np.dtype[Any]) -> bool:
    """numpy's own floats, and ml_dtypes' (bfloat16), whose kind numpy does not know."""
    return dtype.kind == "f" or "float" in dtype.name
