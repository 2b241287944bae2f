"""``fuse``: fewer operations that compute the same. Equal in real arithmetic; a float's rounding may differ.

Batch normalization and chains of constant multiplications and additions go into the layer before them, explicit padding
into the window that reads it, bias additions into Gemm and Conv, clamps into one another, spelled-out activations into
their operator. In a quantized graph only the rules that keep every bit are used: its integers never change.

The arithmetic on weights is float64, rounded once to the weight's own type.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import onnx_ir as ir

from gatewright.frontend.edit import Editor
from gatewright.frontend.model import Model

from . import rewrite
from .affine import collapse_chain, fold_into_layer, matmul_add_to_gemm
from .base import Effect, Pass, PassContext, PassResult
from .clamps import clamp_is_relu, max_min_to_clip, merge_clamps, pad_into_window, spelled_activation

Rule = Callable[[Editor, ir.Node], bool]

_BIT_EXACT: tuple[Rule, ...] = (merge_clamps, clamp_is_relu)
"""These never change which nodes form an integer operation, nor where it rounds."""
_ROUNDING: tuple[Rule, ...] = (max_min_to_clip, pad_into_window, fold_into_layer, collapse_chain, matmul_add_to_gemm, spelled_activation)
_WORDS = {
    "fold_into_layer": "batch norms, biases and factors moved into the layer before",
    "collapse_chain": "constant chains and batch norms collapsed",
    "matmul_add_to_gemm": "MatMul and Add joined to Gemm",
    "spelled_activation": "spelled-out activations recognised",
    "max_min_to_clip": "Max and Min written as Clip",
    "merge_clamps": "clamps merged",
    "clamp_is_relu": "Clips at zero written as Relu",
    "pad_into_window": "paddings moved into the window after",
}


@dataclass(frozen=True)
class Fuse(Pass):
    """Exact."""

    name: ClassVar[str] = "fuse"
    effect: ClassVar[Effect] = "exact"

    def run(self, model: Model, context: PassContext) -> PassResult:
        edited = model.copy_ir()
        graph = edited.graph
        edit = Editor(edited)
        quantized = rewrite.is_quantized(graph)
        rules = _BIT_EXACT if quantized else _BIT_EXACT + _ROUNDING
        count: Counter[str] = Counter()
        changed = True
        while changed:
            changed = False
            for node in tuple(graph):
                for rule in rules:
                    if node.graph is graph and not node.domain and rule(edit, node):
                        count[rule.__name__] += 1
                        changed = True
            rewrite.remove_dead(graph)
        notes = [f"{number} {_WORDS[rule]}" for rule, number in count.items()]
        if quantized:
            notes.append("the graph is quantized: only rules that keep every bit were used")
        return PassResult(model.with_ir(edited), bool(count), tuple(notes))
