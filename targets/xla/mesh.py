"""How a program lies on several cores: samples split over all (data), or over half while weights are split in two (model).

Weights of products are split by columns and rows in turn (Shoeybi et al., Megatron-LM, 2019): the first product of a pair gives
each core half of its outputs, what follows elementwise stays apart, and the second product adds the halves up, one all-reduce for
both. XLA's partitioner does the rest, and is free to differ: what it made stands in the HLO.
"""

from __future__ import annotations

import onnx_ir as ir

from gatewright.frontend.integer import Array, FloatStep, IntegerOp, Plan
from gatewright.frontend.queries import constant, integer

from .chips import MODEL_WAYS
from .names import digit, initializer

Split = tuple[str | None, ...]
"""Per axis of a tensor: the mesh's axis that it is split over, or None."""

_PRODUCTS = ("Conv", "MatMul", "Gemm")


def splits(plan: Plan, weights: dict[str, Array]) -> dict[str, Split]:
    """For each weight of a program how it is split over the axis "model"; weights that are not named are whole on every core."""
    apart: set[str] = set()
    found: dict[str, Split] = {}
    for step in plan.steps:
        node = step.node
        if isinstance(step, IntegerOp):
            reads, writes = [o.name for o in step.operands], [step.output]
            names = [n for n in (digit(step.name, i) for i in range(8)) if n in weights]
            kind = step.kind if step.kind in ("conv", "matmul") else None
        else:
            assert isinstance(step, FloatStep)
            assert node is not None
            reads = [v.name or "" for v in node.inputs if v is not None and constant(v) is None]
            writes = [v.name or "" for v in node.outputs]
            names = _weight_of(node, weights)
            kind = None if node.op_type not in _PRODUCTS else "conv" if node.op_type == "Conv" else "matmul"
        before = any(name in apart for name in reads)
        after = before
        if kind is not None and names:
            after = _split_product(kind, node, names, weights, before, found)
        if after:
            apart.update(writes)
    return found


def _split_product(
    kind: str, node: ir.Node | None, names: list[str], weights: dict[str, Array], before: bool, found: dict[str, Split]
) -> bool:
    """Split one product's weight; whether its result is apart."""
    shape = weights[names[0]].shape
    grouped = kind == "conv" and node is not None and integer(node, "group", 1) > 1
    # Weights [M, C, *k] of a convolution, [..., K, N] of a product.
    outputs, inputs = (0, 1) if kind == "conv" else (len(shape) - 1, len(shape) - 2)
    if grouped:
        # Its channels keep apart what is apart.
        if before and shape[outputs] % MODEL_WAYS == 0:
            found.update(dict.fromkeys(names, _over(len(shape), outputs)))
        return before
    axis = inputs if before else outputs
    if shape[axis] % MODEL_WAYS or shape[axis] < 2 * MODEL_WAYS:
        return False
    found.update(dict.fromkeys(names, _over(len(shape), axis)))
    return not before


def _over(rank: int, axis: int) -> Split:
    return tuple("model" if a == axis else None for a in range(rank))


def _weight_of(node: ir.Node, weights: dict[str, Array]) -> list[str]:
    if node.op_type not in _PRODUCTS or len(node.inputs) < 2 or node.inputs[1] is None:
        return []
    name = initializer(node.inputs[1].name or "")
    return [name] if name in weights else []
