"""``qat``: quantization-aware training. The weights learn under the rounding that they will be computed with, and so do the scales.

Of a quantized model its own grids are trained. A float model is quantized first, with the options of ``quantize``; its real
weights stay the latent ones. What comes out is an ordinary quantized model with exact integers (``frontend.integer.plan``).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np

from gatewright.errors import PassError, UsageError
from gatewright.frontend.model import Model
from gatewright.frontend.queries import constant

from .. import rewrite
from ..base import PassContext, PassResult
from ..grids import GridKind
from ..quantize import Quantize, proof
from .options import Training
from .require import require_torch

if TYPE_CHECKING:
    from .executor import Executor
    from .fakequant import Grids
    from .outset import Outset

LAYERS = ("Conv", "Gemm", "MatMul")
"""Operators whose weights may be ±1."""


@dataclass(frozen=True)
class Qat(Training):
    """Straight-through gradients, scales learned (LSQ); on pow2 grids a scale stays a power of two.

    weight_bits=2 makes the weights ternary (−1, 0, 1), weight_bits=1 binary (−1, 1).
    """

    name: ClassVar[str] = "qat"

    bits: int | None = None
    """Of a float model: as for quantize. None: the model is quantized already."""
    weight_bits: int | None = None
    """None: as ``bits``."""
    grid: GridKind = "affine"
    per: Literal["tensor", "channel"] = "tensor"
    range: Literal["minmax", "percentile"] = "percentile"
    """Where the scales of activations begin."""
    percentile: float = 99.9
    wide: tuple[str, ...] = ()
    wide_bits: int = 8
    exclude: tuple[str, ...] = ()
    scales: Literal["learned", "fixed"] = "learned"
    scale_lr: float = 0.01
    """Learning rate of the scales, in octaves."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self._within("scale_lr", 0 < self.scale_lr < 10, "more than 0")
        if self.weight_bits is not None:
            self._within("weight_bits", 1 <= self.weight_bits <= 16, "1 to 16")
        if self.precision != "float32":
            raise UsageError(f"option 'precision' of pass 'qat' is {self.precision}: bfloat16 does not hold the integers of a grid")
        if self.bits is None:
            given = [n for n in ("weight_bits", "wide", "exclude") if getattr(self, n) != getattr(type(self), n)]
            if given:
                raise UsageError(f"option {given[0]!r} of pass 'qat' needs bits=", hint="qat{bits=4,…} quantizes a float model itself")
        else:
            self.quantizer()

    def quantizer(self) -> Quantize:
        """The pass that quantizes a float model; binary weights are ternary until then."""
        assert self.bits is not None
        return Quantize(
            bits=self.bits, weight_bits=None if self.weight_bits is None else max(self.weight_bits, 2), grid=self.grid, per=self.per,
            range=self.range, percentile=self.percentile, wide=self.wide, wide_bits=self.wide_bits, exclude=self.exclude,
        )  # fmt: skip

    def run(self, model: Model, context: PassContext) -> PassResult:
        require_torch(f"pass {self.name!r}")
        from .crew import Origin
        from .loop import Trainer

        if context.data is None:
            raise PassError("qat needs labelled data to train on", hint="give data=Dataset.load(…), or --data FILE")
        begun = self.outset(model, context)
        trainer = Trainer(
            self, begun, Origin(self, model, context.data, context.seed), progress=context.progress, folder=context.checkpoints,
            key=(model.digest,), pruned=self.bits is not None or None, scale_lr=self.scale_lr if self.scales == "learned" else 0.0,
        )  # fmt: skip
        outcome = trainer.fit()
        result = begun.net.write_back()
        return PassResult(result, True, (*outcome.notes(), *proof(result)), outcome.details())

    def outset(self, model: Model, context: PassContext, teachers: Sequence[Model] = ()) -> Outset:
        from .objective import Task
        from .outset import Outset

        assert context.data is not None
        net = self.prepared(model, context)
        return Outset(net, Task.of(net.model, context.data, self))

    def prepared(self, model: Model, context: PassContext) -> Executor:
        """The executor over the quantized graph, latent weights and scales where training begins."""
        from .executor import Executor
        from .fakequant import Grids
        from .prepare import separate_scales

        if rewrite.is_quantized(model.graph):
            if self.bits is not None:
                raise PassError(f"{model.name} is quantized already", hint="leave bits= out, or give qat the float model")
            ready = separate_scales(model)
            return Executor(ready, freeze=self.freeze, learn_scales=True, grids=Grids.of(ready.graph))
        if self.bits is None:
            raise PassError(f"{model.name} is not quantized", hint="qat{bits=4,…}, or quantize{…},qat")
        quantized = self.quantizer().run(model, context).model
        ready = separate_scales(quantized)
        grids = self._widths(ready, Grids.of(ready.graph))
        net = Executor(ready, freeze=self.freeze, learn_scales=True, grids=grids)
        _start_from(net, model)
        return net

    def _widths(self, model: Model, grids: Grids) -> Grids:
        """The widths that were asked for: all of the grid may be used, whether or not the rounded weights reach its ends."""
        bits = self.bits if self.weight_bits is None else self.weight_bits
        assert bits is not None
        values = model.graph.initializers
        weights = {}
        for name, weight in grids.weights.items():
            layer = all(reader.op_type in LAYERS for node in values[name].consumers() for reader in node.outputs[0].consumers())
            if bits == 1 and layer and weight.hi == 1 and not weight.zero.any():
                weights[name] = replace(weight, lo=-1, hi=1, binary=True)
            elif layer and bits > 1 and weight.hi < 2 ** (bits - 1) - 1 and not weight.zero.any():
                weights[name] = replace(weight, lo=-(2 ** (bits - 1) - 1), hi=2 ** (bits - 1) - 1)
            else:
                weights[name] = weight
        return replace(grids, weights=weights)


def _start_from(net: Executor, model: Model) -> None:
    """Latent weights are the float model's, and a weight's scale begins where the squared error of its rounding is least."""
    import torch

    from .fakequant import best_scales

    originals = model.graph.initializers
    with torch.no_grad():
        for name in (*net.grids.weights, *net.grids.biases):
            array = constant(originals.get(name.removesuffix("_q")))
            if name not in net.parameters or array is None or array.size != net.parameters[name].numel():
                continue
            real = array.astype(np.float64).reshape(net.parameters[name].shape)
            net.parameters[name].copy_(torch.from_numpy(real))
            grid = net.grids.weights.get(name)
            if grid is not None and not grid.zero.any() and grid.scale in net.parameters:
                net.move_scale(grid.scale, best_scales(real, grid))
