"""``prune``: fewer weights, by magnitude (zeros) or by channel (physically smaller tensors).

magnitude: the smallest |w| of each layer, or of all layers together, or all below a threshold, become 0.
channel: whole output channels go, with everything that depends on them (``dependency.py``). A channel's importance is the norm
of the weights that make it, over all layers that are tied to it by residual additions and the like (Li et al. 2017, Pruning
Filters for Efficient ConvNets).
"""

from __future__ import annotations

import fnmatch
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import numpy as np
import onnx_ir as ir

from gatewright.errors import PassError, UsageError, nearest
from gatewright.frontend.canonicalize import canonicalize
from gatewright.frontend.edit import Editor
from gatewright.frontend.model import Model
from gatewright.frontend.queries import constant, integer
from gatewright.frontend.work import macs as macs_of
from gatewright.frontend.work import weight_bytes

from . import rewrite
from .base import Effect, Pass, PassContext, PassResult
from .dependency import PRODUCERS, Dependencies, Group, storage
from .rewrite import Array, real_constant

_STEPS = 12
"""Bisections for a target in MACs: the amount is found to 2^-12."""


@dataclass(frozen=True)
class Prune(Pass):
    """Lossy. Before quantize; ``exclude`` takes names or patterns of layers."""

    name: ClassVar[str] = "prune"
    effect: ClassVar[Effect] = "lossy"

    kind: Literal["magnitude", "channel"] = "magnitude"
    amount: float = 0.5
    """The fraction of weights, or of each group's channels, rounded down."""
    scope: Literal["layer", "global"] = "layer"
    """Smallest within each layer, or of all layers (channels: relative to their layer's mean importance)."""
    threshold: float | None = None
    """magnitude: weights below it become 0, whatever ``amount`` says."""
    norm: Literal["l1", "l2"] = "l2"
    """channel: of the weights that make a channel."""
    macs: float | None = None
    """channel: remove as many channels as it takes to save this fraction of the multiply-accumulates, whatever ``amount`` says."""
    exclude: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not 0 <= self.amount < 1:
            raise UsageError(f"option 'amount' of pass 'prune' is {self.amount:g}; it takes 0 up to, not including, 1")
        if self.macs is not None and not 0 < self.macs < 1:
            raise UsageError(f"option 'macs' of pass 'prune' is {self.macs:g}; it takes a fraction between 0 and 1")
        if self.threshold is not None and not 0 <= self.threshold < float("inf"):
            raise UsageError(f"option 'threshold' of pass 'prune' is {self.threshold:g}; it takes 0 or more")
        wrong = [o for o in ("threshold",) if self.kind == "channel" and getattr(self, o) is not None]
        wrong += [o for o in ("macs",) if self.kind == "magnitude" and getattr(self, o) is not None]
        if wrong:
            raise UsageError(f"option {wrong[0]!r} of pass 'prune' does not go with kind={self.kind}")

    def run(self, model: Model, context: PassContext) -> PassResult:
        if rewrite.is_quantized(model.graph):
            raise PassError("prune works on float weights, the model is quantized", hint="prune first: prune{…},quantize{…}")
        if self.kind == "magnitude":
            return self._magnitude(model)
        return self._to_macs(model, self.macs) if self.macs is not None else self._channels(model)

    # ---- magnitude ----------------------------------------------------------------------------------------------

    def _magnitude(self, model: Model) -> PassResult:
        edited = model.copy_ir()
        chosen = [n.inputs[1] for n in layers(edited.graph) if not self._excluded(n, edited.graph)]
        weights = {v: a for v in chosen if v is not None and (a := real_constant(v)) is not None}
        if not weights:
            raise PassError(f"{model.name} has no weights to prune", hint="check exclude=")
        sparsity: dict[str, float] = {}
        zeros = 0
        for (value, array), gone in zip(weights.items(), self._cuts(list(weights.values())), strict=True):
            source, zero = storage(value)
            stored = np.array(constant(source))
            stored[gone] = zero
            source.const_value = ir.Tensor(stored, dtype=source.dtype, name=source.name)
            none = int(np.count_nonzero((array == 0) | gone))
            sparsity[source.name or ""] = round(none / max(array.size, 1), 6)
            zeros += none
        total = sum(a.size for a in weights.values())
        notes = (f"{zeros} of {total} weights are 0 ({zeros / total:.1%})",)
        return PassResult(model.with_ir(edited), True, notes, {"sparsity": sparsity})

    def _cuts(self, weights: list[Array]) -> list[Array]:
        """A mask of what goes, for each weight. Equal magnitudes: the earlier goes first, so that the count is exact."""
        if self.threshold is not None:
            return [np.abs(w) < self.threshold for w in weights]
        if self.scope == "layer":
            return [_smallest(np.abs(w), self.amount) for w in weights]
        flat = _smallest(np.concatenate([np.abs(w).reshape(-1) for w in weights]), self.amount)
        ends = np.cumsum([w.size for w in weights])[:-1]
        return [part.reshape(w.shape) for part, w in zip(np.split(flat, ends), weights, strict=True)]

    # ---- channels -----------------------------------------------------------------------------------------------

    def _channels(self, model: Model) -> PassResult:
        edited = model.copy_ir()
        found, removed, frozen = self.choice(edited)
        before = {n.name: len(u) for n, u in found.produced.items()}
        found.remove(Editor(edited), removed)
        canonicalize(edited)
        result = model.with_ir(edited)
        after = {n.name: rewrite.shape_of(n.outputs[0]) for n in edited.graph if n.name in before}
        axis = {n.name: _channel_axis(n) for n in edited.graph if n.name in before}
        channels = {str(n): [size, after[n][axis[n]]] for n, size in before.items() if n in after}
        work, smaller = macs_of(model), macs_of(result)
        stored, less = weight_bytes(model), weight_bytes(result)
        notes = [
            f"MACs {work} to {smaller} ({1 - smaller / max(work, 1):.1%} less)",
            f"weights {stored} to {less} bytes ({1 - less / max(stored, 1):.1%} less)",
        ]
        notes += [f"{name} keeps its channels: {why}" for name, why in frozen.items()]
        details: dict[str, object] = {"channels": channels, "macs": [work, smaller], "weight_bytes": [stored, less]}
        return PassResult(result, bool(removed), tuple(notes), details)

    def choice(self, edited: ir.Model) -> tuple[Dependencies, set[int], dict[str, str]]:
        """The analysis of ``edited``, the classes of channels to remove, and the layers that must keep theirs, with the reason."""
        graph = edited.graph
        found = Dependencies.of(graph, [n for n in layers(graph) if self._excluded(n, graph)])
        groups, frozen = found.groups()
        if not groups:
            why = next(iter(frozen.items()), ("the model", "it has no Conv, Gemm or MatMul with constant weights"))
            raise PassError(f"no layer can lose channels; {why[0]}: {why[1]}", hint="prune{kind=magnitude} works on any weights")
        scores = [self._importance(found, group) for group in groups]
        if self.scope == "layer":
            return found, _chosen(found, groups, scores, [_smallest(score, self.amount) for score in scores]), frozen
        relative = [s / max(float(s.mean()), np.finfo(np.float64).tiny) for s in scores]
        gone = np.split(_smallest(np.concatenate(relative), self.amount), np.cumsum([len(s) for s in scores])[:-1])
        for group, cut in zip(groups, gone, strict=True):
            if cut.all():
                raise PassError(
                    f"amount={self.amount:g} over all layers would remove every channel of {group.layers[0].name!r}",
                    hint="lower amount, take scope=layer, or exclude= it",
                )
        return found, _chosen(found, groups, relative, gone), frozen

    def _importance(self, found: Dependencies, group: Group) -> Array:
        """The norm of all weights that make each class of channels, float64 [classes]."""
        position = {c: i for i, c in enumerate(group.classes)}
        total = np.zeros(len(position))
        for node in group.layers:
            weight = real_constant(node.inputs[1])
            assert weight is not None
            axis = _weight_axis(node, weight.ndim)
            rows = np.moveaxis(weight.astype(np.float64), axis, 0).reshape(weight.shape[axis], -1)
            size = np.abs(rows).sum(axis=1) if self.norm == "l1" else (rows**2).sum(axis=1)
            for root, value in zip(found.units.roots(found.produced[node]).tolist(), size.tolist(), strict=True):
                if root in position:
                    total[position[root]] += value
        return total if self.norm == "l1" else np.sqrt(total)

    def _to_macs(self, model: Model, wanted: float) -> PassResult:
        """The smallest amount that saves the wanted fraction, by bisection: MACs only fall as more channels go."""
        work = macs_of(model)
        low, high, best = 0.0, 1.0 - 1e-9, None
        for _ in range(_STEPS):
            middle = (low + high) / 2
            try:
                result = replace(self, amount=middle, macs=None)._channels(model)
            except PassError:
                high = middle
                continue
            if macs_of(result.model) <= (1 - wanted) * work:
                high, best = middle, result
            else:
                low = middle
        if best is None:
            raise PassError(f"no amount of channels saves {wanted:.0%} of the multiply-accumulates", hint="ask for less")
        return best

    def _excluded(self, node: ir.Node, graph: ir.Graph) -> bool:
        names = [n for n in (node.name, *(v.name for v in node.outputs)) if n]
        for pattern in self.exclude:
            known = [n for other in graph for n in (other.name, *(v.name for v in other.outputs)) if n]
            if pattern not in known and not any(fnmatch.fnmatchcase(n, pattern) for n in known):
                raise UsageError(f"exclude={pattern} names no node or output of the model", hint=nearest(pattern, known[:200], "names"))
        return any(n == p or fnmatch.fnmatchcase(n, p) for p in self.exclude for n in names)


def masked(model: Model, pruning: Prune) -> Model:
    """The model that a channel pruning must equal: the same channels silenced, nothing removed."""
    edited = model.copy_ir()
    found, removed, _ = pruning.choice(edited)
    found.mask(removed)
    return model.with_ir(edited)


def layers(graph: ir.Graph) -> list[ir.Node]:
    """Nodes with a constant weight."""
    return [n for n in graph if n.op_type in PRODUCERS and not n.domain and len(n.inputs) > 1 and real_constant(n.inputs[1]) is not None]


def _weight_axis(node: ir.Node, rank: int) -> int:
    """Of the weight's output channels."""
    if node.op_type == "Gemm":
        return 0 if integer(node, "transB", 0) else 1
    return {"Conv": 0, "ConvTranspose": 1}.get(node.op_type, rank - 1)


def _channel_axis(node: ir.Node) -> int:
    """Of the result's channels."""
    return 1 if node.op_type in ("Conv", "ConvTranspose") else -1


def _chosen(found: Dependencies, groups: list[Group], scores: list[Array], masks: list[Array]) -> set[int]:
    """The classes to remove: the masked ones, but for the most important one of any part that would be left with none."""
    importance = {c: float(s) for group, score in zip(groups, scores, strict=True) for c, s in zip(group.classes, score, strict=True)}
    removed = {c for group, mask in zip(groups, masks, strict=True) for c, gone in zip(group.classes, mask, strict=True) if gone}
    for classes in found.emptied(removed):
        if removed.issuperset(classes):
            removed.remove(max(classes, key=lambda c: importance[c]))
    return removed


def _smallest(values: Array, fraction: float) -> Array:
    """A mask of the ⌊fraction·n⌋ smallest, ties in order."""
    count = int(np.floor(fraction * values.size + 1e-9))
    mask = np.zeros(values.size, np.bool_)
    mask[np.argsort(values.reshape(-1), kind="stable")[:count]] = True
    return mask.reshape(values.shape)
