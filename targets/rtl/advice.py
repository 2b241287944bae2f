"""What to do about a network that does not fit, or misses its clock: the smallest board, the pruning, the clock or the margin.

Nothing is promised that was not estimated: a board is named after the network was planned for it, an amount of pruning after the
weights were taken away and the network lowered again, by the estimate that refused the whole one.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import onnx_ir as ir

from gatewright.errors import UsageError
from gatewright.frontend.model import Model
from gatewright.frontend.queries import constant
from gatewright.hw.device import Board, Part, devices

from .board import FAMILIES, clocking
from .estimate import FILL, Estimate, estimate, shortfalls
from .network import Network
from .pipeline import delays_of, schedule

RESERVE = 1.05
"""On another family the network is written a little differently; so much room must be left there."""
AMOUNTS = tuple(percent / 100 for percent in range(50, 100, 5))
"""Of pruning that are thought of: below, two thirds of the logic stay."""
LEAST_PART = 0.03
"""Of what is needed: a part that has less holds no pruned variant that is worth the name."""


def what_would_fit(model: Model, network: Network, board: Board, found: Estimate, size: Callable[[Model], Estimate]) -> str:
    """The smallest board that would hold it, and the least pruning with which ``board`` does. ``size``: of another model on ``board``."""
    ways = []
    if (larger := larger_board(network, board)) is not None:
        ways.append(f"it would fit {larger}")
    if (amount := pruning_that_fits(model, board.part, found, size)) is not None:
        ways.append(f"prune{{amount={amount:g}}} before quantizing would make it fit here, by the same estimate")
    ways.append("fewer bits make it smaller too" if larger or amount else "take fewer bits, or a target that shares multipliers (hls)")
    return "; or ".join(ways[:-1]) + ("; " if len(ways) > 1 else "no board here holds it unrolled: ") + ways[-1]


def larger_board(network: Network, board: Board, factor: float = 1.0) -> str | None:
    """The smallest board with open tools that holds ``network`` at its own clock; ``factor``: so much more than is estimated."""
    others = [
        device for device in devices("board")
        if isinstance(device, Board) and device.part.family in FAMILIES and device.part.luts > board.part.luts
    ]  # fmt: skip
    for other in sorted(others, key=lambda device: (device.part.luts, device.name)):
        planned = schedule(network, clocking(other, None).hz, delays_of(other.part))
        found = estimate(network, planned, other.part, wrapped=True)
        needs = max(found.cells / other.part.luts, found.ffs / other.part.ffs)
        if needs * max(factor, 1.0) * RESERVE <= FILL:
            return other.name
    return None


def pruning_that_fits(model: Model, part: Part, found: Estimate, size: Callable[[Model], Estimate]) -> float | None:
    """The least of ``AMOUNTS`` that is seen to fit, begun with where logic usually shrinks enough."""
    there = min(FILL * part.luts / found.cells, FILL * part.ffs / max(found.ffs, 1))
    if there < LEAST_PART:
        return None
    # Measured on the digits MLP: what is left of the logic is about the 0.6th power of what is left of the weights.
    likely = 1 - there ** (1 / 0.6)
    begin = next((i for i, amount in enumerate(AMOUNTS) if amount >= likely), len(AMOUNTS) - 1)
    fits = [not shortfalls(size(without_small_weights(model, AMOUNTS[begin])), part)]
    if fits[0]:
        while begin and not shortfalls(size(without_small_weights(model, AMOUNTS[begin - 1])), part):
            begin -= 1
        return AMOUNTS[begin]
    return next((amount for amount in AMOUNTS[begin + 1 :] if not shortfalls(size(without_small_weights(model, amount)), part)), None)


def without_small_weights(model: Model, amount: float) -> Model:
    """A quantized model with the smallest fraction ``amount`` of each layer's weights at 0, as prune{amount=…} would have left it."""
    edited = model.copy_ir()
    for node in edited.graph:
        weight = constant(node.inputs[0]) if node.op_type == "DequantizeLinear" else None
        if weight is None or weight.ndim < 2:
            continue
        value, zero = node.inputs[0], constant(node.inputs[2]) if len(node.inputs) > 2 else None
        assert value is not None
        assert value.const_value is not None
        centre = int(zero.flat[0]) if zero is not None else 0
        sizes = np.abs(weight.astype(np.int64) - centre).ravel()
        kept = weight.copy().ravel()
        kept[np.argsort(sizes, kind="stable")[: math.floor(amount * len(sizes))]] = centre
        value.const_value = ir.tensor(kept.reshape(weight.shape), dtype=value.const_value.dtype, name=value.name)
    return model.with_ir(edited)


def for_timing(board: Board, wanted_hz: float, reached_hz: float, *, in_network: bool) -> str:
    """What to change where ``reached_hz`` is the best of all seeds: the clock, the stages, the number of seeds."""
    ways = []
    slower = _next_clock(board, reached_hz)
    if slower is not None and slower < wanted_hz:
        ways.append(f"ask for {{clock_mhz={slower / 1e6:g}}}")
    if in_network:
        ways.append(f"plan for more pipeline stages, {{margin={math.ceil(12 * wanted_hz / reached_hz) / 10:g}}}")
    ways.append("let it try more placements, {seeds=12}")
    return "; or ".join(ways)


def _next_clock(board: Board, reached_hz: float) -> float | None:
    """The fastest clock that the board can make and that is reached."""
    wanted = sorted({board.clock_hz * times / parts for times in range(1, 17) for parts in (1, 2, 3, 4, 5)}, reverse=True)
    for hz in wanted:
        if hz <= reached_hz:
            try:
                return clocking(board, hz).hz
            except UsageError:
                continue
    return None
