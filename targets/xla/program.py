"""A canonical model as one JAX function of its weights and inputs: an interpreter that XLA traces.

In: a Model and a ``Policy``. Out: a ``Program``, whose weights are arrays by name and whose call is pure. Integer regions are those
of ``frontend/integer.plan``; everything else means what ONNX says. Read next: ``ops/``, one file per family of operators.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import onnx_ir as ir

from gatewright.frontend.integer import Array, FloatStep, IntegerOp, Plan, plan
from gatewright.frontend.model import Model
from gatewright.frontend.queries import constant, integer, shape_of

from .names import initializer, mangled
from .ops import Value, lowerings
from .ops.integer import KINDS, probabilities
from .ops.rounding import stored

SMALL = 64
"""Constants of so many elements stay in the program; larger ones are weights, handed in."""


@dataclass(frozen=True)
class Policy:
    """In what floats are multiplied and how narrow weights lie in memory."""

    precision: str = "highest"
    """highest: float32 products in six passes of bfloat16, to float32's precision; high: three; bf16: operands rounded to bfloat16."""
    int4: bool = True
    """Weights that fit 4 bits lie in memory as two to a byte."""


@dataclass
class Scope:
    """What a lowering may ask for beside its inputs."""

    policy: Policy
    weights: Mapping[str, Value] | None
    """By name under trace; None in the first walk, which collects them."""
    collected: dict[str, Array] = field(default_factory=dict)

    @property
    def precision(self) -> Any:
        return {"highest": jax.lax.Precision.HIGHEST, "high": jax.lax.Precision.HIGH}.get(self.policy.precision, jax.lax.Precision.DEFAULT)

    def factor(self, x: Value) -> Value:
        """An operand of a float product: in bfloat16 where the policy says so."""
        return x.astype(jnp.bfloat16) if self.policy.precision == "bf16" and x.dtype == jnp.float32 else x

    def factors(self, a: Value, b: Value) -> tuple[Value, Value]:
        return self.factor(a), self.factor(b)

    def sums(self, x: Value) -> Any:
        """The type in which products of ``x``'s are added up."""
        return jnp.float32 if x.dtype in (jnp.float16, jnp.bfloat16, jnp.float32) else x.dtype

    def weight(self, name: str, array: Array) -> Value:
        """A constant as a weight of the program; itself where it is small."""
        if array.size <= SMALL:
            return array
        if self.policy.int4 and array.dtype == np.int8 and array.min() >= -8 and array.max() <= 7:
            array = array.astype(ml_dtypes.int4)
        if self.weights is None:
            self.collected[name] = array
            found: Value = jnp.asarray(array)
        else:
            found = self.weights[name]
        return found.astype(np.int8) if array.dtype == ml_dtypes.int4 else found

    def known(self, node: ir.Node, position: int) -> Array | None:
        """A constant input; None where it is absent. What has to be constant, support.py has seen to."""
        return constant(node.inputs[position]) if position < len(node.inputs) else None

    def shape(self, node: ir.Node) -> tuple[int, ...]:
        """Of the node's first output."""
        return shape_of(node.outputs[0])


class Program:
    """``program(weights, inputs) -> outputs``, pure; ``weights`` has what it takes first, ``inputs`` follows in the model's order."""

    def __init__(self, model: Model, policy: Policy = Policy(), *, inner: bool = False) -> None:
        """``inner``: every inner tensor is an output too (see ``names``)."""
        self.model, self.policy, self._inner = model, policy, inner
        self.plan: Plan = plan(model)
        self._constants = {name: array for name, value in model.graph.initializers.items() if (array := constant(value)) is not None}
        self._read = {v.name for step in self.plan.steps if isinstance(step, FloatStep) for v in step.node.inputs if v is not None}
        self.inputs = [(info.name, info.shape, held(info.dtype)) for info in model.inputs]
        scope = Scope(policy, None)
        shapes = [jax.ShapeDtypeStruct(shape, dtype) for _, shape, dtype in self.inputs]
        self.names: tuple[str, ...] = ()
        """Of the outputs, in order; known once the program has been walked."""
        jax.eval_shape(lambda *inputs: self._run(scope, inputs), *shapes)
        self.weights: dict[str, Array] = scope.collected

    def __call__(self, weights: Mapping[str, Value], *inputs: Value) -> tuple[Value, ...]:
        return self._run(Scope(self.policy, weights), inputs)

    def _run(self, scope: Scope, inputs: Sequence[Value]) -> tuple[Value, ...]:
        values: dict[str, Value] = dict(zip((name for name, _, _ in self.inputs), inputs, strict=True))
        for name, array in self._constants.items():
            if name in self._read or any(name == o.name for o in self.model.outputs):
                values[name] = self._constant(scope, name, array)
        inner: dict[str, Value] = {}
        for step in self.plan.steps:
            # The scope's name ends up in the HLO: which instruction came from which node.
            with jax.named_scope(mangled(step.name if isinstance(step, IntegerOp) else step.node.name or step.node.op_type)):
                if isinstance(step, IntegerOp):
                    given = [o.constant.astype(stored(o.grid.dtype)) if o.constant is not None else values[o.name] for o in step.operands]
                    # The barrier keeps XLA from computing a requantization anew for every product that reads it.
                    values[step.output] = jax.lax.optimization_barrier(KINDS[step.kind](scope, step, given))
                    inner.setdefault(step.float_name, _real(values[step.output], step))
                else:
                    self._float_step(scope, step, values)
        wanted = {o.name: values[o.name] for o in self.model.outputs}
        if self._inner:
            produced = {v.name for step in self.plan.steps if isinstance(step, FloatStep) for v in step.node.outputs}
            produced |= {step.output for step in self.plan.steps if isinstance(step, IntegerOp)}
            wanted |= {name: value for name, value in values.items() if name in produced and name not in wanted}
            wanted |= {name: value for name, value in inner.items() if name not in wanted}
        self.names = tuple(wanted)
        return tuple(jnp.asarray(value) for value in wanted.values())

    def _constant(self, scope: Scope, name: str, array: Array) -> Value:
        """Floats and narrow integers are weights; indices and shapes (wide integers) belong to the program."""
        if array.dtype in (ml_dtypes.int4, ml_dtypes.uint4):
            array = array.astype(np.int8 if array.dtype == ml_dtypes.int4 else np.uint8)
        if array.dtype.kind not in "fiu" or (array.dtype.itemsize == 8 and array.dtype.kind != "f"):
            return array
        if self.policy.precision == "bf16" and array.dtype == np.float32 and self._is_factor(name):
            found = scope.weight(initializer(name), array.astype(ml_dtypes.bfloat16))
            return found.astype(np.float32)
        return scope.weight(initializer(name), array)

    def _is_factor(self, name: str) -> bool:
        """Read by products alone: rounding it where it is read, or before, is the same."""
        uses = self.model.graph.initializers[name].uses()
        return bool(uses) and all(use.node.op_type in ("Conv", "ConvTranspose", "MatMul", "Gemm") and use.idx == 1 for use in uses)

    def _float_step(self, scope: Scope, step: FloatStep, values: dict[str, Value]) -> None:
        node = step.node
        inputs = [None if v is None or v.name == "" else values[v.name or ""] for v in node.inputs]
        if step.exponentials is not None:
            q = values[step.exponentials.operand.name]
            found: Any = probabilities(scope, node.name or "", step.exponentials, q, integer(node, "axis", -1))
        else:
            found = lowerings()[node.op_type](scope, node, inputs)
        outputs = found if isinstance(found, tuple) else (found,)
        for value, array in zip(node.outputs, outputs, strict=False):
            if value.name and value.dtype is not None:
                values[value.name] = array.astype(held(value.dtype.numpy()))


def _real(q: Value, op: IntegerOp) -> Value:
    """What the integers stand for, float32."""
    return (q.astype(np.int32) - np.int32(op.grid.zero_point)).astype(np.float32) * np.asarray(op.grid.scale, np.float32)


def held(dtype: Any) -> np.dtype[Any]:
    """How a tensor of an ONNX type lies in the program: 4-bit integers one to a byte."""
    narrow = {"int4": np.int8, "uint4": np.uint8}
    name = np.dtype(dtype).name
    return np.dtype(narrow[name]) if name in narrow else np.dtype(dtype)
