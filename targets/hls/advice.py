"""Where a design does not fit: the smallest board that would hold it, and the least compression that would make it fit.

Compression is tried on the design itself: its integer weights rounded to fewer bits or its smallest weights zeroed, then
sized again. What that costs in accuracy is not known here; the pipelines named are those to try.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Protocol

import numpy as np

from gatewright.hw.device import Board, Part, devices

from .backends import BACKENDS
from .network import Fixed, Layer, Network, Tool
from .sizing import Sized

_PRUNED = (0.5, 0.75, 0.9)
_BITS = (6, 4)


class Size(Protocol):
    """Sizes a network on a part, or on the target's own."""

    def __call__(self, network: Network, part: Part | None = None) -> Sized: ...


def would_fit(network: Network, tool: Tool, size: Size) -> str:
    """Both, in words."""
    boards = [d for d in devices("board") if isinstance(d, Board) and d.part.vendor in BACKENDS[tool].vendors]
    by_size = sorted(boards, key=lambda board: (board.part.luts, board.name))
    smallest = next((board.name for board in by_size if not size(network, board.part).shortfalls), None)
    board = f"the smallest board here that holds it is {smallest}" if smallest else f"no board here holds it with tool={tool}"
    compressed = next((text for text, change in _compressions() if not size(change(network)).shortfalls), None)
    if compressed is None:
        return f"{board}; neither 4 bits nor 90 % of the weights pruned would make it fit"
    return f"{board}; or compress it: with {compressed} it would fit (estimated)"


def _compressions() -> list[tuple[str, Callable[[Network], Network]]]:
    """The mildest first."""
    found: list[tuple[str, Callable[[Network], Network]]] = [(f"quantize{{bits={b}}}", lambda n, b=b: _with_bits(n, b)) for b in _BITS]  # type: ignore[misc]
    found += [(f"prune{{amount={a}}}", lambda n, a=a: _pruned(n, a)) for a in _PRUNED]  # type: ignore[misc]
    found += [(f"prune{{amount={a}}},quantize{{bits=4}}", lambda n, a=a: _with_bits(_pruned(n, a), 4)) for a in _PRUNED]  # type: ignore[misc]
    return found


def _with_bits(network: Network, bits: int) -> Network:
    return replace(network, layers=tuple(_narrowed(layer, bits) for layer in network.layers))


def _narrowed(layer: Layer, bits: int) -> Layer:
    """Weights and results of at most so many bits, accumulators narrower by what both lose."""
    types, arrays = dict(layer.types), dict(layer.arrays)
    types["result"] = _coarser(types["result"], max(0, types["result"].width - bits))
    key = next((key for key in ("weight", "depthwise") if key in arrays), None)
    if key is None:
        return replace(layer, types=types)
    lost = max(0, types["weight"].width - bits)
    types["weight"] = _coarser(types["weight"], lost)
    step = types["weight"].exponent
    arrays[key] = np.ldexp(np.rint(np.ldexp(arrays[key], -step)), step)
    types["accum"] = _coarser(types["accum"], min(2 * lost, types["accum"].width - 2))
    return replace(layer, types=types, arrays=arrays)


def _coarser(type_: Fixed, steps: int) -> Fixed:
    """Without its lowest bits."""
    return replace(type_, width=max(1, type_.width - steps))


def _pruned(network: Network, amount: float) -> Network:
    return replace(network, layers=tuple(_thinned(layer, amount) for layer in network.layers))


def _thinned(layer: Layer, amount: float) -> Layer:
    """The smallest weights of the layer are zero."""
    key = next((key for key in ("weight", "depthwise") if key in layer.arrays), None)
    if key is None:
        return layer
    weights = layer.arrays[key]
    kept = np.abs(weights) > np.quantile(np.abs(weights), amount)
    return replace(layer, arrays={**layer.arrays, key: np.where(kept, weights, 0.0)})
