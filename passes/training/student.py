"""``student``: a smaller copy of a model, to be taught by it: fewer channels, fewer blocks, the kept weights or fresh ones.

student{width=0.5,depth=0.75},distil{teacher=big.onnx}          # or at once, distil{width=0.5,depth=0.75}
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
import onnx_ir as ir

from gatewright.errors import PassError, UsageError
from gatewright.frontend.canonicalize import canonicalize
from gatewright.frontend.edit import Editor
from gatewright.frontend.model import Model
from gatewright.frontend.queries import constant, shape_of
from gatewright.frontend.work import weight_bytes

from .. import rewrite
from ..base import Effect, Pass, PassContext, PassResult
from ..prune import Prune
from .prepare import unpacked

LAYERS = ("Conv", "Gemm", "MatMul", "ConvTranspose")


@dataclass(frozen=True)
class Student(Pass):
    """The copy as it begins to learn. Lossy; of a float model."""

    name: ClassVar[str] = "student"
    effect: ClassVar[Effect] = "lossy"

    width: float = 1.0
    """This fraction of the channels stays."""
    depth: float = 1.0
    """This fraction of the blocks that can be left out stays."""
    init: Literal["kept", "random"] = "kept"
    """The weights as they are, or drawn afresh by the seed."""

    def __post_init__(self) -> None:
        for option in ("width", "depth"):
            if not 0 < getattr(self, option) <= 1:
                raise UsageError(f"option {option!r} of pass 'student' is {getattr(self, option)}; it takes more than 0, up to 1")

    def run(self, model: Model, context: PassContext) -> PassResult:
        if rewrite.is_quantized(model.graph) and self != Student():
            raise PassError(f"{model.name} is quantized: no smaller copy is made of it", hint="distil{width=…},quantize{…}")
        copy, _ = unpacked(model)
        notes: list[str] = []
        if self.depth < 1:
            copy, dropped = shortened(copy, self.depth)
            notes.append(f"blocks left out, by the tensor they ended in: {', '.join(dropped) or 'none'}")
        if self.width < 1:
            copy = narrowed(copy, self.width)
        if self.init == "random":
            copy = redrawn(copy, context.seed)
        if self.width < 1 or self.depth < 1:
            before, after = weight_bytes(model), weight_bytes(copy)
            notes.append(f"weights {before} to {after} bytes ({after / max(before, 1):.1%})")
        return PassResult(copy, self != Student(), tuple(notes))


def narrowed(model: Model, width: float) -> Model:
    """Every group of channels that can shrink keeps the fraction ``width``, its strongest ones, as ``prune{kind=channel}`` does."""
    return Prune(kind="channel", amount=1 - width).run(model, PassContext()).model


def shortened(model: Model, depth: float) -> tuple[Model, tuple[str, ...]]:
    """The fraction ``depth`` of the blocks, rounded up; the dropped ones evenly spread. And where each dropped block ended.

    A block is a stretch of the graph with one tensor in and one of the same shape out, and a layer with weights inside: a
    residual block, a transformer's layer, a layer between two others of its width. Raises PassError where there is none.
    """
    edited = model.copy_ir()
    found = blocks(edited.graph)
    gone = len(found) - math.ceil(depth * len(found))
    if not found:
        told = f"{model.name} has no block that can be left out: no stretch with weights gives a tensor of the shape it takes"
        raise PassError(told, hint="width= makes it narrower")
    chosen = [found[int((i + 0.5) * len(found) / gone)] for i in range(gone)]
    edit = Editor(edited)
    dropped = []
    replaced: dict[ir.Value, ir.Value] = {}
    for first, last in chosen:
        while first in replaced:
            first = replaced[first]
        dropped.append(last.name or "")
        rewrite.redirect(last, first)
        if last.is_graph_output():
            raise PassError(f"the block that ends in output {last.name!r} cannot be left out", hint="a larger depth")
        replaced[last] = first
    rewrite.remove_dead(edit.graph)
    canonicalize(edited)
    return model.with_ir(edited), tuple(dropped)


def blocks(graph: ir.Graph) -> list[tuple[ir.Value, ir.Value]]:
    """Stretches that can be left out, none overlapping, in order: the value they take and the one they give."""
    cuts = _cuts(graph)
    found: list[tuple[ir.Value, ir.Value]] = []
    start = 0
    while start < len(cuts):
        layers = 0
        for end in range(start + 1, len(cuts)):
            layers += cuts[end][1]
            first, last = cuts[start][0], cuts[end][0]
            if layers and shape_of(first) == shape_of(last) and first.dtype == last.dtype and not last.is_graph_output():
                found.append((first, last))
                start = end
                break
        else:
            start += 1
    return found


def _cuts(graph: ir.Graph) -> list[tuple[ir.Value, int]]:
    """Values through which everything computed after them comes, and how many layers with weights lie since the one before."""
    nodes = tuple(graph)
    last_use = {v: i for i, node in enumerate(nodes) for v in node.inputs if v is not None}
    live = {v for v in graph.inputs if v in last_use}
    found: list[tuple[ir.Value, int]] = []
    layers = 0
    for i, node in enumerate(nodes):
        live = {v for v in live if last_use[v] > i}
        live |= {v for v in node.outputs if last_use.get(v, -1) > i}
        layers += node.op_type in LAYERS and any(constant(v) is not None for v in node.inputs[1:2])
        if len(live) == 1 and (only := next(iter(live))) is node.outputs[0]:
            found.append((only, layers))
            layers = 0
    return found


def redrawn(model: Model, seed: int) -> Model:
    """Fresh weights: He-normal for layers (He et al. 2015, arXiv:1502.01852), zero biases; norms keep theirs. Pruned zeros stay."""
    edited = model.copy_ir()
    random = np.random.default_rng(seed)
    for node in edited.graph:
        if node.op_type not in LAYERS:
            continue
        weight, bias = node.inputs[1], node.inputs[2] if len(node.inputs) > 2 else None
        array = constant(weight)
        if weight is None or array is None:
            continue
        # [out, in/group, kernel…] of a Conv, [in, out] of a Gemm or MatMul, [in, out/group, kernel…] of a ConvTranspose.
        fan_in = math.prod(array.shape[1:]) if node.op_type == "Conv" else array.shape[-2] if array.ndim == 2 else array.shape[0]
        drawn = random.normal(0, math.sqrt(2 / max(fan_in, 1)), array.shape) * (array != 0)
        weight.const_value = ir.Tensor(drawn.astype(array.dtype), name=weight.name)
        for value in (bias, *_added(node)):
            held = constant(value)
            if value is not None and held is not None:
                value.const_value = ir.Tensor(np.zeros_like(held), name=value.name)
    return model.with_ir(edited)


def _added(node: ir.Node) -> list[ir.Value]:
    """The bias in an Add behind a layer: one number per channel."""
    readers = node.outputs[0].consumers()
    if len(readers) != 1 or readers[0].op_type != "Add":
        return []
    channels = shape_of(node.outputs[0])[-1 if node.op_type in ("Gemm", "MatMul") else 1]
    return [v for v in readers[0].inputs if v is not None and (held := constant(v)) is not None and held.size == channels]
