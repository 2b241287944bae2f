"""Any ONNX graph into the canonical form, which every pass and target relies on.

- opset 21, no functions; ops of ai.onnx.ml stay only where tensor operations cannot say the same, other domains have been refused.
- Every value has a dtype and a static shape. Constants are initializers, and initializers are not inputs; every output has a node.
- Nothing constant is left to compute, except a DequantizeLinear of a constant and what reads it: integer weights stay integers.
- No Constant, Identity (but from an input or constant straight to an output), inference Dropout, Flatten, Squeeze or Unsqueeze.
- Reshape has a constant target; its first entry is 0 (copy) where axis 0 keeps its size, so that the graph holds for any batch.
- Conv and pooling: strides, dilations, pads, kernel_shape (and group) present, no auto_pad. Gemm: alpha = beta = 1, no transposes.
- Reductions, Slice, Split, Pad: axes, steps and sizes are constants, present and not negative; ``axis`` attributes likewise.
- QuantizeLinear and DequantizeLinear: ``axis`` explicit, zero point present in the scale's shape, one scale for a tensor has shape ().
- Nodes are sorted, none is dead; names of nodes are unique and not empty, names of values unique.

``check_canonical`` says whether a graph is in that form: passes are verified with it.
"""

from __future__ import annotations

import onnx_ir as ir
from onnx_ir.passes import common

from gatewright.errors import ModelError

from . import classical, fused, qdq, rewrite
from .check import check_canonical
from .edit import Editor, label, shape_of
from .fold import fold, lift_constants
from .fused_steps import DOMAIN
from .limits import Limits
from .sanity import require_sense
from .shapes import forget, infer, why_unknown
from .upgrade import IR_VERSION, OPSET

__all__ = ["canonicalize", "check_canonical"]

_ROUNDS = 64


def canonicalize(model: ir.Model, limits: Limits | None = None) -> tuple[str, ...]:
    """Bring ``model`` (opset 21, inputs of static shape) into canonical form, in place. What came of it that costs something, in words.

    Raises ModelError where a value's shape depends on data, or types contradict one another. Doing it twice changes nothing.
    """
    limits = limits or Limits()
    claimed = forget(model)
    edit = Editor(model)
    lift_constants(edit)
    for round_number in range(_ROUNDS):
        modified = infer(model, limits)
        if not round_number:
            require_sense(model)
        modified |= fold(edit, limits)
        modified |= lift_constants(edit)
        modified |= _rewrite(edit)
        common.RemoveUnusedNodesPass()(model)
        if not modified and not _believe(claimed):
            break
    else:
        raise ModelError("the model does not come to rest in canonical form", hint="this is a defect of gatewright: please report it")
    _tidy(model)
    infer(model, limits)
    _require_shapes(model)
    require_sense(model)
    check_canonical(model)
    return tuple(edit.notes)


def _rewrite(edit: Editor) -> bool:
    modified = False
    for node in list(edit.graph):
        if node.domain == DOMAIN:
            modified |= fused.rewrite(edit, node)
            continue
        for rules in (rewrite.RULES, qdq.RULES) if node.domain == "" else (rewrite.ML_RULES, classical.RULES):
            for rule in rules.get(node.op_type, ()):
                if node.graph is not None:
                    modified |= rule(edit, node)
    return modified


def _believe(claimed: dict[ir.Value, ir.Shape]) -> bool:
    """Where inference found nothing, take the shape that the file claims. True if one was taken."""
    taken = False
    for value, shape in claimed.items():
        producer = value.producer()
        if producer is not None and producer.op_type == "STFT":
            # What wrote the file may have had it from onnx's inference, which is wrong there.
            continue
        if producer is not None and producer.graph is not None and shape_of(value) is None and isinstance(value.type, ir.TensorType):
            value.shape = shape
            taken = True
    claimed.clear()
    return taken


def _tidy(model: ir.Model) -> None:
    """Order, names, and nothing that is not part of the meaning."""
    model.graph.sort()
    count = 0
    for graph in model.graphs():
        for node in graph:
            if not node.name:
                node.name = f"{node.op_type}_{count}"
            count += 1
    common.NameFixPass()(model)
    common.RemoveUnusedOpsetsPass()(model)
    model.graph.opset_imports[""] = OPSET
    model.ir_version = IR_VERSION
    model.functions.clear()


def _require_shapes(model: ir.Model) -> None:
    for node in model.graph:
        where = f"node {label(node)!r} ({node.op_type})"
        if node.domain == DOMAIN:
            raise ModelError(f"{where}: {fused.unknown(node)}", hint="export the model with standard ONNX operators only")
        for value in node.outputs:
            if not value.name:
                continue
            if value.type is not None and not isinstance(value.type, ir.TensorType):
                raise ModelError(f"{where} makes {value.name!r}, which is no tensor but a {type(value.type).__name__}")
            if value.dtype is None or shape_of(value) is None:
                why = why_unknown(model, node)
                hint = "bind the axes of the inputs with dims=, or export the model with fixed shapes"
                raise ModelError(f"{where}: the shape of its output {value.name!r} cannot be known before it runs: {why}", hint=hint)
