"""``prune``: fewer weights, as zeros in tensors of the same shape or as physically smaller tensors, by any rule of ``importance.py``.

Zeros (``prune_weights.py``): ``magnitude`` takes the least important weights one by one, ``nm`` all but n of every m along the
input channels, ``block`` runs of weights along the output channels. Of zeros gain unrolled designs (hls, rtl) and coded files; the
kernels of target cpu compute them like any number.
Smaller tensors: ``channel``, ``head`` (of attention) and ``neuron`` (hidden units of Gemm and MatMul) remove units with everything
that depends on them (``prune_units.py``, ``dependency.py``), ``layer`` whole residual branches (``prune_layers.py``).
``pattern=hardware`` prefers what a device profits from (``prune_hardware.py``).
"""

from __future__ import annotations

import fnmatch
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import numpy as np
import onnx_ir as ir

from gatewright.errors import DataError, PassError, UsageError, nearest
from gatewright.frontend.canonicalize import canonicalize
from gatewright.frontend.data import Dataset
from gatewright.frontend.edit import Editor
from gatewright.frontend.model import Model
from gatewright.frontend.work import layer_costs, weight_bytes
from gatewright.frontend.work import macs as macs_of
from gatewright.hw.device import Device

from . import prune_hardware, prune_layers, prune_repair, prune_weights, rewrite, shrink
from .base import Effect, Pass, PassContext, PassResult
from .dependency import Dependencies
from .importance import INFORMATION, Importance, Norm, layers, weight_of
from .importance import Kind as Rule
from .prune_units import Choice, Costs, Unit, groups_of
from .prune_weights import Cells
from .rewrite import Array

_BLOCK = 16
"""float32 numbers in a register of AVX-512."""

_ONLY_WITH: Mapping[str, tuple[str, ...]] = {
    "threshold": ("magnitude", "block"), "n": ("nm",), "m": ("nm",), "block": ("block",),
    "least": ("channel", "head", "neuron"),
}  # fmt: skip
"""Options that only some kinds have."""


@dataclass(frozen=True)
class Prune(Pass):
    """Lossy. Before quantize; ``exclude`` takes names or patterns of layers."""

    name: ClassVar[str] = "prune"
    effect: ClassVar[Effect] = "lossy"

    kind: Literal["magnitude", "nm", "block", "channel", "head", "neuron", "layer"] = "magnitude"
    amount: float = 0.5
    """The fraction of weights, of blocks, of each group's units, or of the residual branches, rounded down; or see ``measure``."""
    importance: Rule = "magnitude"
    """What goes first is what this rule finds least important; all but magnitude and random need data."""
    scope: Literal["layer", "global"] = "layer"
    """Smallest within each layer, or of all layers (units: relative to their layer's mean importance, but for gradients)."""
    measure: Literal["count", "macs", "device"] = "count"
    """``amount`` is a fraction of the weights or units, of the multiply-accumulates, or of an FPGA's LUTs that multiply.

    With scope=global those go first that have the least importance for what they cost."""
    threshold: float | None = None
    """magnitude, block: what is less important than this becomes 0, whatever ``amount`` says."""
    norm: Norm = "l2"
    """Of the weights that make a unit, where magnitude ranks units; single weights have only one."""
    n: int = 2
    """nm: so many weights stay …"""
    m: int = 4
    """… of so many in a row."""
    block: int | None = None
    """block: weights in a run; none: as many as a vector register of ``device`` holds, else 16."""
    least: float = 0.1
    """measure=macs|device with scope=global: this fraction of each group of units stays."""
    bins: int = 16
    """importance=entropy|mutual: of each unit's histogram."""
    samples: int = 4096
    """At most so many of the data's samples judge importance and repair, drawn by the seed."""
    repair: Literal["none", "reconstruct"] = "none"
    """Units. reconstruct: what is left of each layer is fitted to what it gave before, on data without labels (``prune_repair.py``)."""
    pattern: Literal["any", "hardware"] = "any"
    """hardware: weights that save most LUTs of an FPGA for their importance; whole vectors on a CPU, of weights and of what is left of
    a layer's units."""
    device: str | None = None
    """A device's name or file: what pruning saves on it is predicted."""
    bits: int = 8
    """An FPGA ``device``: of the weights there."""
    reuse: int = 1
    """An FPGA ``device``: products that take turns on a multiplier; 1: every weight is a constant in the logic."""
    exclude: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        self._within("amount", 0 <= self.amount < 1, "0 up to, not including, 1")
        self._within("threshold", self.threshold is None or 0 <= self.threshold < float("inf"), "0 or more")
        self._within("least", 0 <= self.least < 1, "0 up to, not including, 1")
        self._within("bins", 2 <= self.bins <= 4096, "2 to 4096")
        self._within("samples", self.samples >= 2, "2 or more")
        self._within("bits", 2 <= self.bits <= 16, "2 to 16")
        self._within("reuse", 1 <= self.reuse <= 1 << 20, "1 or more")
        self._within("m", 2 <= self.m <= 1024, "2 to 1024")
        self._within("n", 1 <= self.n < self.m, f"1 to {self.m - 1}, less than m")
        self._within("block", self.block is None or 1 <= self.block <= 4096, "1 to 4096")
        defaults = {name: field.default for name, field in self.__dataclass_fields__.items()}
        wrong = [o for o, kinds in _ONLY_WITH.items() if self.kind not in kinds and getattr(self, o) != defaults[o]]
        wrong += ["amount"] if self.kind == "nm" and self.amount != defaults["amount"] else []
        wrong += ["measure"] if self.measure == "macs" and not (self._units or self.kind == "layer") else []
        wrong += ["pattern"] if self.pattern == "hardware" and self.kind in ("nm", "layer") else []
        wrong += ["repair"] if self.repair != "none" and not self._units else []
        if wrong:
            raise UsageError(f"option {wrong[0]!r} of pass 'prune' does not go with kind={self.kind}")
        if self.device is None and (self.measure == "device" or self.pattern == "hardware"):
            raise UsageError("measure=device and pattern=hardware of pass 'prune' need a device", hint="device=pynq-z2, device=host")

    def _within(self, option: str, right: bool, takes: str) -> None:
        if not right:
            raise UsageError(f"option {option!r} of pass 'prune' is {getattr(self, option):g}; it takes {takes}")

    @property
    def _units(self) -> bool:
        return self.kind in ("channel", "head", "neuron")

    @property
    def _unit(self) -> Unit:
        assert self.kind == "channel" or self.kind == "head" or self.kind == "neuron"
        return self.kind

    def run(self, model: Model, context: PassContext) -> PassResult:
        if rewrite.is_quantized(model.graph):
            raise PassError("prune works on float weights, the model is quantized", hint="prune first: prune{…},quantize{…}")
        if self.repair != "none" and context.data is None:
            raise DataError("repair=reconstruct fits layers to what they gave on data", hint="give data=Dataset.load(…), or --data FILE")
        device = self._device()
        rule = self._rule(model, context)
        smaller = self._units or self.kind == "layer"
        result = self._smaller(model, rule, device, context) if smaller else self._zeros(model, rule, device)
        if self.importance in INFORMATION and context.data is not None:
            told = (
                f"{self.importance}: histograms of {self.bins} bins, Miller-Madow corrected, {min(len(context.data), self.samples)} samples"
            )
            result = replace(result, notes=(*result.notes, told))
        if device is None:
            return result
        before, after = (prune_hardware.predicted(m, device, self.bits, self.reuse) for m in (model, result.model))
        told = ", ".join(f"{name} {before[name]:.6g} to {after[name]:.6g}" for name in before if before[name] or after[name])
        details = {**result.details, "predicted": {name: [before[name], after[name]] for name in before}}
        return PassResult(result.model, result.modified, (*result.notes, f"estimated on {device.name}: {told}"), details)

    def _rule(self, model: Model, context: PassContext) -> Importance:
        if context.data is not None:
            context = replace(context, data=self._drawn(context))
        return Importance.of(self.importance, model, context, norm=self.norm, bins=self.bins)

    def _drawn(self, context: PassContext) -> Dataset:
        data = context.data
        assert data is not None
        return data if len(data) <= self.samples else data.shuffled(context.seed).take(self.samples)

    def _device(self) -> Device | None:
        device = prune_hardware.device_named(self.device)
        if device is None:
            return None
        part = prune_hardware.part_of(device)
        if self.measure == "device" and (part is None or self.kind == "layer"):
            raise UsageError(f"measure=device of pass 'prune' counts an FPGA's LUTs; {device.name} with kind={self.kind} has none to count")
        if self.pattern == "hardware" and part is None and self.kind == "magnitude":
            raise UsageError(f"{device.name} gains nothing from single zeros", hint="kind=block zeroes whole vectors")
        if self.pattern == "hardware" and part is not None and (self.reuse > 1 or self.kind == "block"):
            told = "where multipliers take turns zeros save nothing" if self.reuse > 1 else "an FPGA has no vectors"
            raise UsageError(f"pattern=hardware of pass 'prune': {told} on {device.name}", hint="kind=channel or kind=neuron removes units")
        return device

    # ---- zeros --------------------------------------------------------------------------------------------------

    def _zeros(self, model: Model, rule: Importance, device: Device | None) -> PassResult:
        edited = model.copy_ir()
        chosen = {n.inputs[1]: n for n in layers(edited.graph) if not self._excluded(n, edited.graph)}
        nodes = list(chosen.values())
        if not nodes:
            raise PassError(f"{model.name} has no weights to prune", hint="check exclude=")
        masks, reasons = self._pattern(nodes, rule) if self.kind == "nm" else (self._cells(nodes, rule, device), {})
        if not masks:
            name, why = next(iter(reasons.items()))
            raise PassError(f"no layer can keep {self.n} of {self.m}; {name}: {why}", hint="kind=magnitude works on any weights")
        sparsity: dict[str, float] = {}
        zeros = total = 0
        for node, mask in masks.items():
            name, none, size = prune_weights.zero(node, mask)
            sparsity[name] = round(none / max(size, 1), 6)
            zeros, total = zeros + none, total + size
            if self.kind == "nm" and not prune_weights.has_pattern(weight_of(node), node, self.n, self.m):
                raise PassError(f"{node.name!r} does not hold the pattern {self.n}:{self.m} after pruning")
        notes = [f"{zeros} of {total} weights are 0 ({zeros / total:.1%})"]
        notes += [f"{name} keeps its weights: {why}" for name, why in reasons.items()]
        details: dict[str, object] = {"sparsity": sparsity}
        if self.kind == "block":
            size = self._block_size(device)
            alive = [Cells(weight_of(n).shape, prune_weights.block_axis(n), size).means(weight_of(n) != 0) > 0 for n in masks]
            whole, empty = sum(a.size for a in alive), sum(int((~a).sum()) for a in alive)
            notes.append(
                f"{empty} of {whole} blocks of {size} are 0 ({empty / whole:.1%}): what a kernel that skips them would save; those of "
                "target cpu do not, for it kind=channel,pattern=hardware removes whole vectors"
            )
            details["blocks"] = [whole, whole - empty]
        return PassResult(model.with_ir(edited), True, tuple(notes), details)

    def _pattern(self, nodes: list[ir.Node], rule: Importance) -> tuple[dict[ir.Node, Array], dict[str, str]]:
        found = {node: prune_weights.of_pattern(rule.of_weight(node), node, self.n, self.m) for node in nodes}
        reasons = {node.name or "": mask for node, mask in found.items() if isinstance(mask, str)}
        return {node: mask for node, mask in found.items() if not isinstance(mask, str)}, reasons

    def _cells(self, nodes: list[ir.Node], rule: Importance, device: Device | None) -> dict[ir.Node, Array]:
        """Masks of single weights or blocks."""
        size = self._block_size(device) if self.kind == "block" else 1
        cells = [Cells(weight_of(n).shape, prune_weights.block_axis(n), size) for n in nodes]
        scores = [cell.means(rule.of_weight(n)) for cell, n in zip(cells, nodes, strict=True)]
        costs = None
        if device is not None and prune_hardware.part_of(device) is not None and "device" in (self.measure, self._favours):
            luts = [cell.means(prune_hardware.luts(n, self.bits)) for cell, n in zip(cells, nodes, strict=True)]
            costs = luts if self.measure == "device" else None
            if self.pattern == "hardware":
                # What rounds to zero costs nothing and is worth nothing: it goes first. So does what is zero already.
                scores = [np.where(s < 0, s, np.where(c > 0, s / np.maximum(c, 1e-30), 0)) for s, c in zip(scores, luts, strict=True)]
        if self.threshold is not None:
            masks = [s < self.threshold for s in scores]
        elif self.scope == "layer":
            masks = [prune_weights.smallest(s, self.amount, None if costs is None else costs[i]) for i, s in enumerate(scores)]
        else:
            masks = prune_weights.over_all(scores, self.amount, costs)
        return {node: cell.spread(mask) for node, cell, mask in zip(nodes, cells, masks, strict=True)}

    @property
    def _favours(self) -> str:
        return "device" if self.pattern == "hardware" else "count"

    def _block_size(self, device: Device | None) -> int:
        if self.block is not None:
            return self.block
        return _BLOCK if device is None or prune_hardware.part_of(device) is not None else prune_hardware.lanes(device)

    # ---- smaller tensors ----------------------------------------------------------------------------------------

    def _smaller(self, model: Model, rule: Importance, device: Device | None, context: PassContext) -> PassResult:
        edited = model.copy_ir()
        kept: dict[str, Array] = {}
        if self.kind == "layer":
            notes, details = self._drop(model, edited, rule)
        else:
            notes, details, kept = self._remove(model, edited, rule, device)
        canonicalize(edited)
        result = model.with_ir(edited)
        if self.repair == "reconstruct":
            assert context.data is not None
            result, errors = prune_repair.reconstructed(model, result, kept, self._drawn(context), context.seed, context.progress)
            told = ", ".join(f"{name} {before:.2f} to {after:.2f}" for name, (before, after) in errors.items())
            notes, details = [*notes, f"relative errors of layers fitted: {told or 'none'}"], {**details, "repaired": errors}
        work, smaller = macs_of(model), macs_of(result)
        stored, less = weight_bytes(model), weight_bytes(result)
        sizes = (
            f"MACs {work} to {smaller} ({1 - smaller / max(work, 1):.1%} less)",
            f"weights {stored} to {less} bytes ({1 - less / max(stored, 1):.1%} less)",
        )
        details |= {"macs": [work, smaller], "weight_bytes": [stored, less]}
        return PassResult(result, smaller < work or less < stored, (*sizes, *notes), details)

    def _remove(
        self, model: Model, edited: ir.Model, rule: Importance, device: Device | None
    ) -> tuple[list[str], dict[str, object], dict[str, Array]]:
        """Notes, details, and which output channels of each layer are left."""
        found, removed, frozen = self.choice(model, edited, rule, device)
        units = {n.name or "": found.units.roots(u) for n, u in found.produced.items()}
        whole = sum(len(group.classes) for group in groups_of(found, self._unit)[0])
        shrink.remove(found, Editor(edited), removed)
        kept = {n: ~np.isin(u, list(removed)) for n, u in units.items()}
        channels = {n: [len(mask), int(mask.sum())] for n, mask in kept.items()}
        notes = [f"{name} keeps its channels: {why}" for name, why in frozen.items()]
        return notes, {"channels": channels, "units": [whole, whole - len(removed)]}, kept

    def choice(
        self, model: Model, edited: ir.Model, rule: Importance, device: Device | None
    ) -> tuple[Dependencies, set[int], dict[str, str]]:
        """The analysis of ``edited``, the classes of units to remove, and the layers that must keep theirs, with the reason."""
        graph = edited.graph
        found = Dependencies.of(graph, [n for n in layers(graph) if self._excluded(n, graph)])
        groups, frozen = groups_of(found, self._unit)
        if not groups:
            missing = {"head": "it has no attention heads", "neuron": "it has no hidden Gemm or MatMul with constant weights"}
            why = next(iter(frozen.items()), ("the model", missing.get(self.kind, "it has no Conv, Gemm or MatMul with constant weights")))
            raise PassError(f"no layer can lose {self.kind}s; {why[0]}: {why[1]}", hint="prune{kind=magnitude} works on any weights")
        multiple = 1
        if self.pattern == "hardware" and device is not None and prune_hardware.part_of(device) is None:
            multiple = prune_hardware.lanes(device)
        choice = Choice(self.amount, self.scope, self.least, multiple, self._costs(model, found))
        return found, choice.removed(found, groups, rule), frozen

    def _costs(self, model: Model, found: Dependencies) -> Costs | None:
        if self.measure == "macs":
            return Costs.of(found, {layer.name: float(layer.macs) for layer in layer_costs(model)})
        if self.measure == "device":
            return Costs.of(found, {n.name or "": float(prune_hardware.luts(n, self.bits).sum()) for n in layers(found.graph)})
        return None

    def _drop(self, model: Model, edited: ir.Model, rule: Importance) -> tuple[list[str], dict[str, object]]:
        whole = len(prune_layers.branches(edited.graph)[0])
        gone, reasons = self.branches(model, edited, rule)
        names = [b.add.name or "" for b in gone]
        prune_layers.drop(edited.graph, gone)
        notes = [f"branches dropped: {', '.join(names) or 'none'}", *(f"{name} keeps both: {why}" for name, why in reasons.items())]
        return notes, {"dropped": names, "units": [whole, whole - len(names)]}

    def branches(self, model: Model, edited: ir.Model, rule: Importance) -> tuple[list[prune_layers.Branch], dict[str, str]]:
        """The residual branches to drop, and the sums that must keep both operands, with the reason."""
        found, reasons = prune_layers.branches(edited.graph)
        free = [b for b in found if not any(self._excluded(n, edited.graph) for n in (b.add, *b.layers))]
        if not free:
            why = next(iter(reasons.items()), ("the model", "it adds no branch to what the branch was computed from"))
            raise PassError(f"no residual branch can go; {why[0]}: {why[1]}", hint="kind=channel makes layers narrower")
        scores = np.asarray([rule.of_layers(list(b.layers)) for b in free])
        costs = None
        amount = self.amount
        if self.measure == "macs":
            work = {layer.name: float(layer.macs) for layer in layer_costs(model)}
            costs = np.asarray([sum(work.get(n.name or "", 0.0) for n in b.nodes) for b in free])
            scores = scores / np.maximum(costs, 1.0)
            amount = min(1.0, self.amount * sum(work.values()) / max(float(costs.sum()), 1.0))
        mask = prune_weights.smallest(scores, amount, costs)
        return [b for b, gone in zip(free, mask, strict=True) if gone], reasons

    def _excluded(self, node: ir.Node, graph: ir.Graph) -> bool:
        return excluded(node, graph, self.exclude)


def excluded(node: ir.Node, graph: ir.Graph, patterns: tuple[str, ...]) -> bool:
    """Whether a pattern names the node or an output of it. Raises UsageError for one that names nothing."""
    names = [n for n in (node.name, *(v.name for v in node.outputs)) if n]
    for pattern in patterns:
        known = [n for other in graph for n in (other.name, *(v.name for v in other.outputs)) if n]
        if pattern not in known and not any(fnmatch.fnmatchcase(n, pattern) for n in known):
            raise UsageError(f"exclude={pattern} names no node or output of the model", hint=nearest(pattern, known[:200], "names"))
    return any(n == p or fnmatch.fnmatchcase(n, p) for p in patterns for n in names)


def masked(model: Model, pruning: Prune, context: PassContext | None = None) -> Model:
    """The model that a structured pruning must equal: the same units silenced, nothing removed."""
    rule, device = pruning._rule(model, context or PassContext()), pruning._device()
    edited = model.copy_ir()
    if pruning.kind == "layer":
        gone, _ = pruning.branches(model, edited, rule)
        prune_layers.silence(Editor(edited), gone)
    else:
        found, removed, _ = pruning.choice(model, edited, rule, device)
        shrink.mask(found, removed)
    return model.with_ir(edited)
