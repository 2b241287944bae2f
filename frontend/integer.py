"""The integer view of a canonical graph: which nodes together are one exact integer operation, and which one.

A quantized ONNX graph says ``dequantize, compute in float, quantize``. Its meaning here is integer (design: one numeric
contract), so somebody must say which float nodes between DequantizeLinear and QuantizeLinear form which integer
operation. That is ``plan``, and nothing else: the reference computes it, every target lowers it.

In: a canonical Model. Out: a ``Plan`` whose steps, in order, compute every value that matters.
Read next: ``reference.py``, which computes each step in a few lines of numpy; ``recognise.py`` finds the operations.

Notation: q an integer, s a scale, z a zero point, real = s·(q − z); rne = round half to even.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from .model import Model

Array = NDArray[Any]

Kind = Literal["conv", "matmul", "sum", "product", "concat", "average", "maximum", "requantize", "table", "softmax"]
"""conv         acc = Σ (q_x − z_x)·(q_w − z_w) + bias            node: Conv; weight [M, C/group, kH, kW]; padding is q_x = z_x
matmul       the same for MatMul/Gemm; weight [K, N], or None where both operands are activations
sum          acc = Σ_i sign_i·(q_i − z_i)·m_i·2^(k − k_i)        node: Add, Sub or Sum; broadcasting; one rounding for all
product      acc = (q_a − z_a)·(q_b − z_b)                       node: Mul; broadcasting
concat       each operand requantized on its own, then joined     node: Concat
average      acc = Σ (q − z) over the window, M = s_x/(N·s_y)     node: AveragePool, GlobalAveragePool, ReduceMean
maximum      max over the window, then requantized                node: MaxPool, GlobalMaxPool, ReduceMax
requantize   acc = q − z                                          no node, or an activation alone, or a movement op (Reshape, Transpose, …)
table        q_y = table[q_x − lo]                                a chain of elementwise functions of one operand
softmax      see reference.softmax: an integer table, one float64 division"""


INEXACT = frozenset({
    "AveragePool", "Conv", "ConvTranspose", "Einsum", "Elu", "Erf", "Exp", "Gelu", "Gemm", "GlobalAveragePool", "GroupNormalization", "GRU",
    "InstanceNormalization", "LayerNormalization", "Log", "LogSoftmax", "LRN", "LSTM", "MatMul", "MeanVarianceNormalization", "Mish", "Pow",
    "ReduceL2", "ReduceLogSumExp", "ReduceMean", "ReduceSum", "ReduceSumSquare", "RMSNormalization", "RNN", "Sigmoid", "Softmax",
    "Softplus", "Tanh",
})  # fmt: skip
"""Operators whose float results hang on the order of a sum or on who computed an exponential."""


@dataclass(frozen=True)
class Grid:
    """What an integer tensor's values stand for: real = scale·(q − zero_point), lo ≤ q ≤ hi."""

    dtype: ir.DataType
    """ONNX storage type: (U)INT4, (U)INT8, (U)INT16 or INT32."""
    scale: Array
    """float32; shape () or, per channel, (n,) along ``axis``."""
    zero_point: Array
    """int64; the shape of ``scale``."""
    lo: int
    hi: int
    """Bounds of the values: the type's own, or narrower where an integer Clip follows."""
    axis: int | None = None

    @property
    def bits(self) -> int:
        """Bits that hold lo … hi."""
        return (max(self.hi, 0) if self.lo >= 0 else max(self.hi, -self.lo - 1)).bit_length() + (self.lo < 0)

    @property
    def is_pow2(self) -> bool:
        """True where every scale is a power of two and every zero point is 0: an exact fixed-point number."""
        return bool(np.all(np.frexp(self.scale)[0] == 0.5) and np.all(self.zero_point == 0))

    def same_as(self, other: Grid) -> bool:
        """Equal scale and zero point: moving a value between the two changes nothing but the bounds."""
        return np.array_equal(self.scale, other.scale) and np.array_equal(self.zero_point, other.zero_point)


@dataclass(frozen=True)
class Multiplier:
    """M = m·2^−k with m a 24-bit integer (0 ≤ m < 2^24): exactly a float32 ≥ 0. Arrays of one shape, int64.

    For conv and matmul: shape () or (channels,), the output channels. For average with partial windows: broadcastable to the output.
    """

    m: Array
    k: Array

    @classmethod
    def of(cls, value: Array) -> Multiplier:
        """From float32 values. Zero gives m = 0, k = 0."""
        fraction, exponent = np.frexp(np.asarray(value, np.float32).astype(np.float64))
        m = np.rint(np.ldexp(fraction, 24)).astype(np.int64)
        k = np.where(m == 0, 0, 24 - exponent).astype(np.int64)
        return cls(m, k)

    @property
    def value(self) -> Array:
        """The multiplier as float64 (exact)."""
        return np.ldexp(self.m.astype(np.float64), -self.k)

    @property
    def is_shift(self) -> bool:
        """True where every M is a power of two."""
        return bool(np.all((self.m & (self.m - 1)) == 0) and np.all(self.m > 0))


@dataclass(frozen=True)
class Operand:
    """An integer tensor that an operation reads."""

    name: str
    """Its ONNX value name: produced by an earlier step, a graph input, or an initializer."""
    grid: Grid
    shape: tuple[int, ...]
    lo: int
    hi: int
    """Proven bounds of its values (interval analysis); within the grid's."""
    constant: Array | None = None
    """int64 values where it is an initializer."""


@dataclass(frozen=True)
class IntegerOp:
    """One exact integer operation; ``reference.py`` defines it, every target implements it."""

    kind: Kind
    name: str
    """Of the node that computes, for messages and layer names."""
    op: str
    """Its ONNX op type ("Conv"), or "Requantize"."""
    node: ir.Node | None
    """The node whose attributes matter (Conv, pooling, Concat, a movement op); None for a bare requantization."""
    nodes: tuple[ir.Node, ...]
    """Every ONNX node that this operation stands for, DequantizeLinear of its operands excluded."""
    operands: tuple[Operand, ...]
    """Activations, in the node's order (weights and biases are not among them)."""
    output: str
    """Name of the integer value it makes: the output of QuantizeLinear, or of the Clip after it."""
    float_name: str
    """Name of the float value that QuantizeLinear reads: what the result stands for, for comparing with a float model."""
    shape: tuple[int, ...]
    grid: Grid
    lo: int
    hi: int
    """The result is clamped to lo … hi: the grid's bounds, narrowed by Relu and Clip (Q is monotone, so it commutes with them)."""
    activation_lo: bool = False
    activation_hi: bool = False
    """True where lo (hi) is an activation's bound: clamping there is what was asked for, not a saturation."""
    multipliers: tuple[Multiplier, ...] = ()
    """One, or one per operand for sum (all brought to one k by the implementation) and concat; none for table and softmax."""
    signs: tuple[int, ...] = ()
    """For sum: +1 or −1 per operand."""
    weight: Array | None = None
    """int64, zero point already subtracted: q_w − z_w."""
    weight_grid: Grid | None = None
    bias: Array | None = None
    """int64, shape (channels,), on the accumulator's scale s_x·s_w."""
    table: Array | None = None
    """For table: int64, entry i is the result for q_x = operands[0].grid.lo + i. For softmax: int64 exp table (see reference.softmax)."""
    accumulator: tuple[int, int] = (0, 0)
    """Proven bounds of acc over all inputs within the operands' bounds (before requantization; for sum: of the shifted sum)."""
    output_range: tuple[int, int] = (0, 0)
    """Proven bounds of the result: what requantizing ``accumulator`` gives, clamped."""
    notes: tuple[str, ...] = field(default=())
    """What was not taken literally: "bias of conv1 rounded again, its scale is 1.3 % off s_x·s_w"."""


@dataclass(frozen=True)
class Exponentials:
    """Softmax of a dequantized tensor: 2^30·exp(−s·d) by the integer distance d from the largest, so that its float result is the same
    on every machine (see ``reference.probabilities``)."""

    operand: Operand
    table: Array
    """int64, entry d."""


@dataclass(frozen=True)
class FloatStep:
    """A node with ONNX's own meaning: QuantizeLinear and DequantizeLinear at the edges, float ops, movement of integer tensors."""

    node: ir.Node
    exponentials: Exponentials | None = None
    """For a Softmax that reads a DequantizeLinear and stays float: computed from the integers."""


@dataclass(frozen=True)
class Plan:
    """The steps of a model in execution order."""

    steps: tuple[IntegerOp | FloatStep, ...]
    grids: dict[str, Grid]
    """Grid of every integer value that a DequantizeLinear reads or a QuantizeLinear (or its Clip) writes."""

    @property
    def integer_ops(self) -> Iterator[IntegerOp]:
        return (step for step in self.steps if isinstance(step, IntegerOp))

    @property
    def notes(self) -> tuple[str, ...]:
        found = tuple(note for op in self.integer_ops for note in op.notes)
        if not (names := self.floats_before_integers):
            return found
        who = names[0] if len(names) == 1 else f"{names[0]} and {len(names) - 1} more"
        return (*found, f"computed in float, in front of a quantizer: {who}; next to a rounding boundary a result may be a step from ref's")

    @property
    def floats_before_integers(self) -> tuple[str, ...]:
        """Nodes whose float results no two machines need to agree on to the last digit, and which a QuantizeLinear reads, if only through
        others: what is quantized there is exact on no target but ref."""
        before: dict[str, dict[str, None]] = {}
        found: dict[str, None] = {}
        for step in self.steps:
            if isinstance(step, IntegerOp):
                continue
            node = step.node
            own = {name: None for value in node.inputs if value is not None for name in before.get(value.name or "", ())}
            if node.op_type == "QuantizeLinear":
                found |= own
                continue
            if node.op_type in INEXACT and step.exponentials is None:
                own[node.name or node.op_type] = None
            before.update((value.name or "", own) for value in node.outputs)
        return tuple(found)

    @property
    def is_quantized(self) -> bool:
        return any(True for _ in self.integer_ops)


def plan(model: Model) -> Plan:
    """The integer view of a canonical model.

    Raises ModelError where a quantized node cannot be computed exactly (accumulator past 62 bits, scale not finite),
    naming the node.
    """
    from .recognise import recognise

    return recognise(model)
