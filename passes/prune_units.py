"""Which units go: output channels, attention heads, hidden units, with everything that depends on them (``dependency.py``).

How many of each group: the same fraction of all, the least important of all together, or, where the aim is a share of the
multiply-accumulates (or of an FPGA's LUTs), those with the least importance per operation that they cost.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
import onnx_ir as ir

from gatewright.errors import PassError
from gatewright.frontend.queries import constant

from .dependency import Dependencies, Group
from .importance import GRADIENTS, Importance
from .prune_weights import over_all, smallest
from .rewrite import Array

Unit = Literal["channel", "head", "neuron"]

_STEPS = 24
"""Bisections for a share of the cost: the amount is found to 2^-24."""


@dataclass
class Costs:
    """What a graph costs as its units go: a sum of terms, each a layer's cost times what is left of each of its axes."""

    found: Dependencies
    terms: list[tuple[float, list[Array]]]

    @classmethod
    def of(cls, found: Dependencies, of_nodes: Mapping[str, float]) -> Costs:
        """``of_nodes``: multiply-accumulates, or LUTs, by the node's name."""
        terms = []
        for node in found.graph:
            cost = of_nodes.get(node.name or "", 0.0)
            if not cost or node.op_type not in ("Conv", "ConvTranspose", "Gemm", "MatMul"):
                continue
            x, weight = node.inputs[:2]
            assert x is not None
            assert weight is not None
            # Of a product of two computed tensors: its result's axes, and the one that is summed over.
            axes = found.axes[weight] if node in found.produced else (*found.axes.get(node.outputs[0], ()), *found.axes.get(x, ())[-1:])
            terms.append((cost, [found.units.roots(axis) for axis in axes]))
        return cls(found, terms)

    def left(self, removed: set[int]) -> float:
        gone = list(removed)
        return sum(cost * float(np.prod([1 - np.isin(axis, gone).mean() for axis in axes])) for cost, axes in self.terms)

    def of_classes(self, classes: list[int]) -> Array:
        """What each class costs, as long as all others are there."""
        total = dict.fromkeys(classes, 0.0)
        for cost, axes in self.terms:
            for axis in axes:
                for root, count in zip(*np.unique(axis, return_counts=True), strict=True):
                    if int(root) in total:
                        total[int(root)] += cost * float(count) / len(axis)
        return np.asarray([total[c] for c in classes])


@dataclass(frozen=True)
class Choice:
    """How to choose among groups of units."""

    amount: float
    scope: Literal["layer", "global"]
    least: float
    """Over all layers by cost: the fraction of each group that stays."""
    multiple: int
    """What stays of a group is a multiple of this: of half, a quarter … of it in a group that has not twice as many."""
    costs: Costs | None
    """``amount`` is a share of these; None: of the units."""

    def removed(self, found: Dependencies, groups: list[Group], rule: Importance) -> set[int]:
        """The classes that go. Raises PassError where a layer would be left empty."""
        ranking = Ranking.of(found, groups, rule, self.costs)
        if self.costs is None:
            return self._at(ranking, self.amount)
        removed = self._to_share(ranking, self.costs)
        # The same fraction of every layer stays just that.
        return removed if self.scope == "layer" and self.multiple == 1 else self._given_back(ranking, self.costs, removed)

    def _at(self, ranking: Ranking, amount: float) -> set[int]:
        """The least important classes, but for those that fill up a vector, and the most important one of what would be left empty."""
        removed: set[int] = set()
        for group, score, mask in zip(ranking.groups, ranking.scores, self._masks(ranking, amount), strict=True):
            removed |= {c for c, gone in zip(group.classes, self._filled(score, mask), strict=True) if gone}
        for classes in ranking.found.emptied(removed):
            if removed.issuperset(classes):
                removed.remove(max(classes, key=lambda c: ranking.importance[c]))
        return removed

    def _masks(self, ranking: Ranking, amount: float) -> list[Array]:
        if self.scope == "layer":
            return [smallest(score, amount) for score in ranking.scores]
        masks = over_all(ranking.worth, amount)
        if self.costs is not None:
            return [self._spared(score, mask) for score, mask in zip(ranking.scores, masks, strict=True)]
        for group, mask in zip(ranking.groups, masks, strict=True):
            if mask.all():
                raise PassError(
                    f"amount={self.amount:g} over all layers would remove every channel of {group.layers[0].name!r}",
                    hint="lower amount, take scope=layer, or exclude= it",
                )
        return masks

    def _spared(self, score: Array, mask: Array) -> Array:
        """``mask`` without the most important ones that must stay."""
        keep = max(1, int(np.ceil(self.least * mask.size)))
        return mask & smallest(score, (mask.size - keep) / mask.size)

    def _filled(self, score: Array, mask: Array) -> Array:
        kept, vector = int((~mask).sum()), self._vector(mask.size)
        wanted = min(mask.size, -(-kept // vector) * vector)
        if wanted == kept:
            return mask
        back = np.flatnonzero(mask)[np.argsort(-score[mask], kind="stable")[: wanted - kept]]
        filled = mask.copy()
        filled[back] = False
        return filled

    def _vector(self, size: int) -> int:
        vector = self.multiple
        while vector > 1 and size < 2 * vector:
            vector //= 2
        return vector

    def _to_share(self, ranking: Ranking, costs: Costs) -> set[int]:
        """The smallest amount of units that saves the wanted share, by bisection: the cost only falls as more go."""
        low, high, best = 0.0, 1.0 - 1e-9, None
        for _ in range(_STEPS):
            middle = (low + high) / 2
            removed = self._at(ranking, middle)
            if costs.left(removed) <= self._allowed(costs):
                high, best = middle, removed
            else:
                low = middle
        if best is None:
            most = 1 - costs.left(self._at(ranking, high)) / max(costs.left(set()), 1e-30)
            told = f"no amount of units saves {self.amount:.1%} of the cost; with all that can go it is {most:.1%}"
            raise PassError(told, hint="ask for less, or a smaller least=")
        return best

    def _given_back(self, ranking: Ranking, costs: Costs, removed: set[int]) -> set[int]:
        """Whole vectors that need not go after all: the bisection takes one from every layer at once where layers are alike."""
        refused: set[int] = set()
        while True:
            offers = []
            for i, (group, worth) in enumerate(zip(ranking.groups, ranking.worth, strict=True)):
                gone = [(float(w), c) for c, w in zip(group.classes, worth, strict=True) if c in removed]
                if gone and i not in refused:
                    back = sorted(gone, reverse=True)[: self._vector(len(group.classes))]
                    offers.append((sum(w for w, _ in back), i, {c for _, c in back}))
            if not offers:
                return removed
            _, i, back_classes = max(offers, key=lambda offer: (offer[0], -offer[1]))
            if costs.left(removed - back_classes) <= self._allowed(costs):
                removed = removed - back_classes
            else:
                refused.add(i)

    def _allowed(self, costs: Costs) -> float:
        return (1 - self.amount) * costs.left(set()) * (1 + 1e-9)


@dataclass(frozen=True)
class Ranking:
    """What is known of the groups before any choice."""

    found: Dependencies
    groups: list[Group]
    scores: list[Array]
    """Importance of the classes of each group."""
    worth: list[Array]
    """The same, comparable between groups."""
    importance: dict[int, float]

    @classmethod
    def of(cls, found: Dependencies, groups: list[Group], rule: Importance, costs: Costs | None) -> Ranking:
        """A gradient says what the loss loses, the same everywhere. Another score is taken relative to its group's mean; where costs
        are weighed against it, as a share of its group's sum, since a few large units do the work of many small ones.
        """
        scores = [rule.of_units(found, group) for group in groups]
        worth = scores
        if rule.kind not in GRADIENTS:
            tiny = np.finfo(np.float64).tiny
            worth = [s / max(float(s.mean() if costs is None else s.sum()), tiny) for s in scores]
        if costs is not None:
            worth = [w / np.maximum(costs.of_classes(g.classes), 1e-30) for w, g in zip(worth, groups, strict=True)]
        importance = {c: float(s) for g, score in zip(groups, scores, strict=True) for c, s in zip(g.classes, score, strict=True)}
        return cls(found, groups, scores, worth, importance)


def groups_of(found: Dependencies, kind: Unit) -> tuple[list[Group], dict[str, str]]:
    """The groups of this kind that can lose units, and the layers that must keep theirs, with the reason."""
    groups, frozen = found.groups()
    heads = found.heads()
    attention = [g for g in groups if heads & set(g.classes)]
    if kind == "head":
        return attention, _attending(found, frozen)
    others = [g for g in groups if not heads & set(g.classes)]
    if kind == "neuron":
        dense = {n.name or "" for n in found.produced if n.op_type in ("Gemm", "MatMul")}
        chosen = [g for g in others if dense.issuperset(n.name or "" for n in g.layers)]
        return chosen, {name: why for name, why in frozen.items() if name in dense}
    return others, frozen


def _attending(found: Dependencies, frozen: dict[str, str]) -> dict[str, str]:
    """Of the frozen layers those that feed a product of two computed tensors."""
    fed: dict[str, str] = {}
    for node in found.graph:
        if node.op_type != "MatMul" or any(v is None or constant(v) is not None for v in node.inputs):
            continue
        seen: set[ir.Node] = set()
        ahead = [v.producer() for v in node.inputs if v is not None]
        while ahead:
            maker = ahead.pop()
            if maker is None or maker in seen:
                continue
            seen.add(maker)
            if maker in found.produced:
                if (maker.name or "") in frozen:
                    fed[maker.name or ""] = frozen[maker.name or ""]
            else:
                ahead += [v.producer() for v in maker.inputs if v is not None]
    return fed
