"""``cluster``: weights of a layer share few values, so that each is a short number: k-means in one dimension, per layer or for all.

Second stage of Deep Compression (Han, Mao, Dally 2016, arXiv:1510.00149): centroids begin equally spaced between the smallest
and the largest weight (their "linear" start, which keeps the rare large weights), Lloyd's iteration moves each to the mean
of what is nearest to it. Zeros are pruned weights and stay zeros, outside the clusters. With ``finetune`` the shared values
are trained: the gradient of one is the mean over the weights that share it, so they go on sharing it.
``frontend/coded.py`` stores the result in few bytes. Distinct values are no grid: to compute in integers, use ``quantize``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
import onnx_ir as ir

from gatewright.errors import PassError, UsageError
from gatewright.frontend.model import Model
from gatewright.frontend.queries import constant
from gatewright.spec import parse

from . import rewrite
from .base import Effect, Pass, PassContext, PassResult
from .importance import layers
from .prune import excluded
from .rewrite import Array

if TYPE_CHECKING:
    from .training.finetune import Finetune

_ITERATIONS = 300
"""Lloyd's iteration ends by itself, mostly before the hundredth."""


@dataclass(frozen=True)
class Cluster(Pass):
    """Lossy. After prune; ``exclude`` takes names or patterns of layers. Biases keep their values."""

    name: ClassVar[str] = "cluster"
    effect: ClassVar[Effect] = "lossy"

    bits: int = 5
    """2^bits values, zero apart."""
    conv_bits: int | None = None
    """Of convolutions, which are more sensitive; none: ``bits``."""
    k: int | None = None
    """So many values, whatever ``bits`` says."""
    scope: Literal["layer", "global"] = "layer"
    """A codebook for each layer, or one for all."""
    start: Literal["linear", "density"] = "linear"
    """density: the quantiles, most centroids where most weights are."""
    finetune: str = ""
    """A pass that trains the shared values: finetune{epochs=2,lr=0.0005}."""
    exclude: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for option, low, high in (("bits", 1, 12), ("conv_bits", 1, 12), ("k", 1, 4096)):
            found = getattr(self, option)
            if found is not None and not low <= found <= high:
                raise UsageError(f"option {option!r} of pass 'cluster' is {found}; it takes {low} to {high}")
        if self.scope == "global" and self.conv_bits is not None:
            raise UsageError("option 'conv_bits' of pass 'cluster' does not go with scope=global, where all layers share one codebook")
        if self.finetune:
            tuning(self.finetune, self.name)

    def run(self, model: Model, context: PassContext) -> PassResult:
        if rewrite.is_quantized(model.graph):
            raise PassError("cluster works on float weights, the model is quantized", hint="quantized weights share 2^bits values already")
        edited = model.copy_ir()
        weights = self._weights(edited.graph)
        shared = self._shared(weights)
        error = {}
        for value, array in shared.items():
            before = constant(value)
            assert before is not None
            scale = float(np.sqrt(np.mean(before.astype(np.float64) ** 2))) or 1.0
            error[value.name or ""] = round(float(np.sqrt(np.mean((array.astype(np.float64) - before) ** 2))) / scale, 6)
            value.const_value = ir.Tensor(array, dtype=value.dtype, name=value.name)
        clustered = model.with_ir(edited)
        worst = max(error.values())
        notes: tuple[str, ...] = (f"{len(shared)} weights share {self._told(shared)} values; largest relative error {worst:.3g}",)
        details: dict[str, object] = {"error": error}
        if self.finetune:
            clustered, more = trained(clustered, [v.name or "" for v in shared], tuning(self.finetune, self.name), context)
            notes, details = (*notes, *more.notes), {**details, **more.details}
        details["values"] = {v.name: np.unique(a[a != 0]).size for v in self._weights(clustered.graph) if (a := constant(v)) is not None}
        return PassResult(clustered, True, notes, details)

    def _weights(self, graph: ir.Graph) -> dict[ir.Value, ir.Node]:
        found: dict[ir.Value, ir.Node] = {}
        for node in layers(graph):
            value = node.inputs[1]
            if value is not None and constant(value) is not None and rewrite.is_float(value) and not excluded(node, graph, self.exclude):
                found.setdefault(value, node)
        if not found:
            raise PassError("there are no float weights to cluster", hint="check exclude=")
        return found

    def _shared(self, weights: Mapping[ir.Value, ir.Node]) -> dict[ir.Value, Array]:
        """Each weight with its values replaced by those that it shares."""
        arrays = {value: np.asarray(constant(value)) for value in weights}
        if self.scope == "global":
            book = codebook(np.concatenate([a.reshape(-1) for a in arrays.values()]), self._count(None), self.start)
            return {value: nearest_of(a, book) for value, a in arrays.items()}
        return {value: nearest_of(a, codebook(a, self._count(weights[value]), self.start)) for value, a in arrays.items()}

    def _count(self, node: ir.Node | None) -> int:
        if self.k is not None:
            return self.k
        convolution = node is not None and node.op_type in ("Conv", "ConvTranspose")
        return 1 << (self.conv_bits if convolution and self.conv_bits is not None else self.bits)

    def _told(self, shared: Mapping[ir.Value, Array]) -> str:
        counts = sorted({int(np.unique(a[a != 0]).size) for a in shared.values()})
        return str(counts[0]) if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"


def codebook(weights: Array, count: int, start: str = "linear") -> Array:
    """At most ``count`` values, ascending, in the weights' dtype: k-means of those that are not zero. Deterministic.

    The nearest centroid of sorted numbers is found by bisection and a cluster's mean by prefix sums, so an iteration takes
    O(k log n). A centroid that nothing is nearest to is left out.
    """
    values = np.sort(weights.reshape(-1)[weights.reshape(-1) != 0].astype(np.float64))
    if not np.isfinite(values).all():
        raise PassError("a weight is not finite; it has no nearest value")
    distinct = np.unique(values)
    if len(distinct) <= count:
        return distinct.astype(weights.dtype)
    sums = np.concatenate([[0.0], np.cumsum(values)])
    centroids = np.linspace(values[0], values[-1], count)
    if start == "density":
        centroids = np.unique(values[((np.arange(count) + 0.5) / count * len(values)).astype(np.int64)])
    ends = np.full(len(centroids) - 1, -1)
    for turn in range(_ITERATIONS):
        before, ends = ends, np.searchsorted(values, (centroids[1:] + centroids[:-1]) / 2)
        if turn and np.array_equal(before, ends):
            break
        edges = np.concatenate([[0], ends, [len(values)]])
        sizes = np.diff(edges)
        centroids = np.where(sizes > 0, np.diff(sums[edges]) / np.maximum(sizes, 1), centroids)
    used = np.diff(np.concatenate([[0], ends, [len(values)]])) > 0
    book = np.unique(centroids[used].astype(weights.dtype))
    # A centroid that rounds to zero would prune what it stands for.
    return np.asarray(book[book != 0])


def nearest_of(weights: Array, book: Array) -> Array:
    """Each weight replaced by the nearest value; zeros stay."""
    if not len(book):
        return weights
    middles = (book[1:].astype(np.float64) + book[:-1].astype(np.float64)) / 2
    return np.asarray(np.where(weights == 0, weights, book[np.searchsorted(middles, weights.astype(np.float64))]), weights.dtype)


def tuning(text: str, owner: str) -> Finetune:
    """The pass that ``finetune=`` names. Raises UsageError for anything but a finetune."""
    from .pipeline import make_pass
    from .training.finetune import Finetune

    found = make_pass(parse(text))
    if not isinstance(found, Finetune):
        raise UsageError(f"option 'finetune' of pass {owner!r} is {text!r}; it takes a finetune{{…}}")
    return found


def trained(model: Model, names: list[str], options: Finetune, context: PassContext) -> tuple[Model, PassResult]:
    """The model with the shared values of these weights trained, together with all that is not shared (biases, norms)."""
    from .training.require import require_torch

    require_torch("training of shared weights")
    import torch

    from .training.crew import Origin
    from .training.loop import Trainer

    if context.data is None:
        raise PassError("shared values are trained on labelled data", hint="give data=Dataset.load(…), or --data FILE")
    begun = options.outset(model, context)
    net = begun.net
    members, tied = {}, {}
    for name in names:
        if name in net.parameters:
            values, index = torch.unique(net.parameters[name].detach(), return_inverse=True)
            shared = values != 0
            counts = torch.bincount(index.reshape(-1), minlength=len(values))
            members[name] = (index, counts, shared)
            tied[name] = partial(_together, index=index, counts=counts, shared=shared)
    origin = Origin(options, model, context.data, context.seed)
    folder, key = context.checkpoints, ("shared", *names)
    trainer = Trainer(options, begun, origin, progress=context.progress, folder=folder, key=key, pruned=True, tied=tied)
    outcome = trainer.fit()
    with torch.no_grad():
        for name, (index, counts, shared) in members.items():
            # Equal numbers with equal gradients stay equal but for the last bit of a vectorized step.
            weight = net.parameters[name]
            weight.copy_(_together(weight.to(torch.float64), index, counts, shared).to(weight.dtype))
    return net.write_back(), PassResult(model, True, outcome.notes(), outcome.details())


def _together(values: Any, index: Any, counts: Any, shared: Any) -> Any:
    """Each number of a tensor replaced by the mean over its cluster; 0 for the cluster of zeros."""
    total = values.new_zeros(len(counts)).index_add_(0, index.reshape(-1), values.reshape(-1))
    return (total / counts * shared)[index]
