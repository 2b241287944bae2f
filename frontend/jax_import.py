"""JAX functions, traced to a jaxpr on example inputs, written down in ONNX primitive by primitive, and compared with the function.

load(f, example_inputs=(x,))    load(jax.jit(f), example_inputs=x)    parameters by closure: load(lambda x: apply(params, x), …)

The sizes are those of the examples; where samples stay apart the batch becomes 1, or ``dims={"batch": n}``. ``scan`` is unrolled.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from gatewright.errors import ModelError, UnsupportedOp, UsageError

from .batch import batch_reason, with_batch
from .importing import Imported, finish, need
from .jax_graph import Graph, place
from .jax_ops import CALLS, PRIMITIVES
from .limits import Limits
from .model import Model

Array = NDArray[Any]

_EXTRA = "jax"
_UNROLLED = 512
"""Steps of a scan that are written out."""


def from_jax(
    function: Any,
    example_inputs: Any,
    *,
    dims: Mapping[str, int] | None = None,
    name: str | None = None,
    limits: Limits | None = None,
) -> Model:
    """A function of arrays as a canonical model. ``example_inputs``: an array, or the tuple of arrays that it takes."""
    jax = need("jax", _EXTRA, "a JAX function")
    title = name or getattr(function, "__name__", type(function).__name__).strip("<>")
    arguments = example_inputs if isinstance(example_inputs, tuple) else (example_inputs,)
    if not arguments or not all(hasattr(a, "shape") and hasattr(a, "dtype") for a in arguments):
        raise UsageError("a JAX function needs example_inputs, an array or a tuple of arrays", hint="load(f, example_inputs=(x,))")
    stray = sorted(set(dims or {}) - {"batch"})
    if stray:
        raise UsageError(f"the model has no dynamic axis {stray[0]!r}", hint="its sizes are those of example_inputs; only batch can be set")
    given = tuple(jax.numpy.asarray(a) for a in arguments)
    try:
        closed = jax.make_jaxpr(function)(*given)
        expected = [np.asarray(leaf) for leaf in jax.tree_util.tree_leaves(function(*given))]
    except Exception as error:
        raise ModelError(f"JAX cannot trace {title}: {' '.join(str(error).split())[:400]}", hint="give inputs that it takes") from error
    graph = Graph()
    names = ["x"] if len(given) == 1 else [f"x{i}" for i in range(len(given))]
    outputs = _inlined(jax, graph, closed, names)
    proto = graph.proto(title, dict(zip(names, map(np.asarray, given), strict=True)), outputs, expected)
    samples = dict(zip(names, map(np.asarray, given), strict=True))
    imported = Imported(proto, "jax", title, f"JAX {jax.__version__}", samples, expected)
    model = finish(imported, dims=None, name=title, limits=limits)
    size = (dims or {}).get("batch", 1)
    if batch_reason(model) is None:
        return with_batch(model, size) if model.inputs[0].shape[0] != size else model
    if dims:
        raise ModelError(f"the batch of {title!r} cannot be set to {size}: {batch_reason(model)}", hint="give example_inputs of that batch")
    return model


def _inlined(jax: Any, graph: Graph, closed: Any, inputs: Sequence[str]) -> list[str]:
    """The nodes of a closed jaxpr, and the names of its results."""
    jaxpr = getattr(closed, "jaxpr", closed)
    values = dict(zip(jaxpr.invars, inputs, strict=True))
    for variable, value in zip(jaxpr.constvars, getattr(closed, "consts", ()), strict=True):
        values[variable] = graph.constant(np.asarray(value))

    def read(atom: Any) -> str:
        return graph.constant(np.asarray(atom.val, atom.aval.dtype)) if hasattr(atom, "val") else values[atom]

    for equation in jaxpr.eqns:
        op, params = equation.primitive.name, equation.params
        given = [read(atom) for atom in equation.invars]
        if op in CALLS:
            inner = next(params[key] for key in ("jaxpr", "call_jaxpr", "fun_jaxpr") if key in params)
            made = _inlined(jax, graph, inner, given)
        elif op == "cond":
            made = _chosen(jax, graph, equation, given)
        elif op == "scan":
            made = _scanned(jax, graph, equation, given)
        elif op in PRIMITIVES:
            found = PRIMITIVES[op](graph, equation, *given)
            made = [found] if isinstance(found, str) else found
        else:
            loop = "; a loop must be a scan of known length" if op == "while" else ""
            raise _unsupported(equation, "it has no form in ONNX here", f"write it with other operations{loop}")
        values.update(zip(equation.outvars, made, strict=True))
    return [read(atom) for atom in jaxpr.outvars]


def _unsupported(equation: Any, rule: str, hint: str) -> UnsupportedOp:
    return UnsupportedOp(node=place(equation), op=equation.primitive.name, target="the importer of JAX", rule=rule, hint=hint)


def _chosen(jax: Any, graph: Graph, equation: Any, given: list[str]) -> list[str]:
    """cond and switch: an If, the branches after the second in its else."""
    index, operands = given[0], given[1:]
    shapes = [variable.aval for variable in equation.outvars]
    if not shapes:
        return []

    def branch(inside: Graph, closed: Any) -> onnx.GraphProto:
        return inside.branch("branch", _inlined(jax, inside, closed, operands), shapes)

    def choice(inside: Graph, branches: Sequence[Any]) -> list[str]:
        last = inside.constant(np.asarray(len(branches) - 1, equation.invars[0].aval.dtype))
        taken, others = branch(Graph(inside), branches[-1]), Graph(inside)
        is_last = len(branches) == 2
        rest = branch(others, branches[0]) if is_last else others.branch("others", choice(others, branches[:-1]), shapes)
        return inside.several("If", [inside.node("Equal", [index, last])], len(shapes), then_branch=taken, else_branch=rest)

    branches = equation.params["branches"]
    return choice(graph, branches) if len(branches) > 1 else _inlined(jax, graph, branches[0], operands)


def _scanned(jax: Any, graph: Graph, equation: Any, given: list[str]) -> list[str]:
    params = equation.params
    length, constants, carried = params["length"], params["num_consts"], params["num_carry"]
    if length > _UNROLLED:
        raise _unsupported(equation, f"it has {length} steps, up to {_UNROLLED} are written out", "scan over fewer")
    carry, stacked = given[constants : constants + carried], given[constants + carried :]
    pieces: list[list[str]] = [[] for _ in equation.outvars[carried:]]
    steps = range(length - 1, -1, -1) if params["reverse"] else range(length)
    for step in steps:
        parts = [graph.node("Gather", [value, graph.constant(np.asarray(step, np.int64))], axis=0) for value in stacked]
        made = _inlined(jax, graph, params["jaxpr"], [*given[:constants], *carry, *parts])
        carry = made[:carried]
        for held, value in zip(pieces, made[carried:], strict=True):
            held.append(value)
    results = []
    for held, variable in zip(pieces, equation.outvars[carried:], strict=True):
        rows = [graph.reshaped(value, (1, *variable.aval.shape[1:])) for value in (reversed(held) if params["reverse"] else held)]
        results.append(graph.node("Concat", rows, axis=0))
    return [*carry, *results]
