"""Random valid ONNX graphs with inputs, and what each of their values is.

    graph = random_graph(17)          # the same seed gives the same graph
    graph.proto, graph.feeds, graph.values

A graph grows node by node. ONNX Runtime (without its optimizer), or onnx's reference evaluator where that lacks the operator, runs
each proposed node alone on the values at hand; what neither runs, what overflows and what grows too large is not taken. So every
graph is valid, every shape is known, and the values are an oracle that shares no code with this project.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from onnx import helper, numpy_helper
from onnx.reference import ReferenceEvaluator

Array = NDArray[Any]

OPSETS = (8, 9, 11, 12, 13, 15, 17, 18, 19, 20, 21, 21, 21, 22)
LARGEST = {"float16": 300.0, "float32": 3e4, "float64": 3e4}
"""Magnitudes that a float may reach."""
MOST_ELEMENTS = 3000
UNRELIABLE = frozenset({"ConvTranspose", "LpNormalization", "Mean"})
"""Operators that onnx's reference evaluator gets wrong: groups, the sign of what p = 1 sums, broadcasting."""


def has_engine_defect(node: onnx.NodeProto) -> bool:
    """Whether onnx's reference evaluator is to be asked first: what ONNX Runtime is known to get wrong (targets/ort/defects.py)."""
    aligned = any(a.s == b"align_corners" for a in node.attribute)
    return node.op_type in ("ConvInteger", "MaxUnpool") or (node.op_type == "Resize" and aligned)


@dataclass(frozen=True)
class Graph:
    """A model, inputs for it, and every value that its nodes make of them."""

    proto: onnx.ModelProto
    feeds: dict[str, Array]
    values: dict[str, Array]

    @property
    def operators(self) -> Counter[str]:
        return Counter(node.op_type for node in self.proto.graph.node)

    @property
    def is_quantized(self) -> bool:
        return any("Quant" in op or "Integer" in op or op.startswith("QLinear") for op in self.operators)


def random_graph(seed: int, most_nodes: int = 12) -> Graph:
    maker = Maker(seed)
    return maker.graph(int(maker.random.integers(1, most_nodes)))


def _options() -> Any:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    return options


OPTIONS = _options()


def evaluate(node: onnx.NodeProto, feeds: dict[str, Array], opset: int) -> list[Array] | None:
    """The outputs of a node, run alone; None where no engine runs it."""
    try:
        onnx.defs.get_schema(node.op_type, opset, "")
    except onnx.defs.SchemaError:
        return None  # of a later opset
    given = [helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(a.dtype), a.shape) for name, a in feeds.items()]
    graph = helper.make_graph([node], "node", given, [helper.make_empty_tensor_value_info(name) for name in node.output if name])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)
    engines: list[Callable[[], Any]] = [
        lambda: onnxruntime.InferenceSession(model.SerializeToString(), OPTIONS, providers=["CPUExecutionProvider"]),
        lambda: ReferenceEvaluator(model),
    ][: 1 if node.op_type in UNRELIABLE else 2]
    for engine in engines[::-1] if has_engine_defect(node) else engines:
        try:
            found = [np.asarray(array) for array in engine().run(None, feeds)]
        except Exception:  # each engine refuses in exceptions of its own
            continue
        return found if _as_declared(model, found) else None
    return None


def _as_declared(model: onnx.ModelProto, found: Sequence[Array]) -> bool:
    """Whether the types are allowed and the shapes are those that onnx infers: its evaluator looks at neither."""
    try:
        inferred = onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True)
    except onnx.shape_inference.InferenceError:
        return False
    for value, array in zip(inferred.graph.output, found, strict=True):
        kind = value.type.tensor_type
        if kind.elem_type != helper.np_dtype_to_tensor_dtype(array.dtype):
            return False
        if kind.HasField("shape"):
            dims = [d.dim_value if d.HasField("dim_value") else None for d in kind.shape.dim]
            if len(dims) != array.ndim or any(d is not None and d != n for d, n in zip(dims, array.shape, strict=True)):
                return False
    return True


class Maker:
    """One graph as it grows. Methods named in ``PROPOSALS`` each try to add something; one that finds no operand adds nothing."""

    def __init__(self, seed: int) -> None:
        self.random = np.random.default_rng(seed)
        self.opset = int(self.random.choice(OPSETS))
        self.nodes: list[onnx.NodeProto] = []
        self.values: dict[str, Array] = {}
        self.inputs: dict[str, Array] = {}
        self.constants: dict[str, Array] = {}
        self.count = 0
        self.float = np.dtype(self.random.choice(["float32"] * 8 + ["float64", "float16"]))
        self.batch = int(self.random.choice([1, 1, 2, 3]))

    # ---- values ---------------------------------------------------------------------------------------------------

    def fresh(self, base: str) -> str:
        self.count += 1
        return f"{base}{self.count}"

    def chance(self, probability: float) -> bool:
        return bool(self.random.random() < probability)

    def choose(self, of: Sequence[Any]) -> Any:
        return of[int(self.random.integers(len(of)))]

    def size(self) -> int:
        return int(self.choose([1, 2, 3, 4, 5, 6, 7, 8, 3, 4, 5, 16, 17]))

    def input(self, shape: Sequence[int], dtype: Any = None) -> str:
        name = self.fresh("x")
        self.inputs[name] = self.values[name] = self.drawn(shape, np.dtype(dtype or self.float))
        return name

    def drawn(self, shape: Sequence[int], dtype: np.dtype[Any]) -> Array:
        """Values around 1; integers small, so that sums and products stay within their type."""
        if dtype.kind == "f":
            spread = float(self.choose([0.3, 1.0, 1.0, 3.0]))
            return np.asarray(self.random.normal(float(self.choose([0.0, 0.0, 0.7])), spread, tuple(shape)), dtype)
        if dtype.kind == "b":
            return np.asarray(self.random.integers(0, 2, tuple(shape)), dtype)
        low, high = (-9, 10) if dtype.kind == "i" else (0, 13)
        return np.asarray(self.random.integers(low, high, tuple(shape)), dtype)

    def constant(self, array: Any, dtype: Any = None, shared: bool = False) -> str:
        """A new constant, as an initializer or a Constant node; with ``shared`` perhaps one of the same kind that is there."""
        array = np.asarray(array, dtype)
        if shared and self.chance(0.3):
            same = [name for name, other in self.constants.items() if other.shape == array.shape and other.dtype == array.dtype]
            if same:
                return str(self.choose(same))
        name = self.fresh("c")
        self.values[name] = array
        if self.chance(0.15):
            self.nodes.append(helper.make_node("Constant", [], [name], value=numpy_helper.from_array(array, name)))
        else:
            self.constants[name] = array
        return name

    def numbers(self, values: Any) -> str:
        return self.constant(np.asarray(values, np.int64))

    def weight(self, *shape: int, dtype: Any = None) -> str:
        scale = max(1, int(np.prod(shape[1:]))) ** 0.5
        return self.constant(self.random.normal(0, 1, shape) / scale, dtype or self.float, shared=True)

    def pick(self, fits: Callable[[Array], Any] = lambda a: True, kinds: str = "f") -> str | None:
        """A value of one of the kinds (numpy's letters) that ``fits``; the newest ones more often."""
        found = [n for n, a in self.values.items() if a.dtype.kind in kinds and fits(a) and (n not in self.constants or self.chance(0.1))]
        if not found:
            return None
        return found[-1 - min(int(self.random.exponential(2.0)), len(found) - 1)]

    def float_of(self, rank: int | None = None) -> str:
        """A float value of that rank, or a new input."""
        if self.chance(0.85) and (found := self.pick(lambda a: a.dtype == self.float and (rank is None or a.ndim == rank))) is not None:
            return found
        return self.input(self.shape(rank))

    def shape(self, rank: int | None = None) -> list[int]:
        rank = int(self.choose([0, 1, 2, 2, 3, 3, 4, 4, 4, 5])) if rank is None else rank
        while True:
            shape = [self.batch if axis == 0 else self.size() for axis in range(rank)]
            if rank and self.chance(0.02):
                shape[int(self.random.integers(rank))] = 0
            if np.prod(shape) <= MOST_ELEMENTS / 3:
                return shape

    def axis(self, name: str) -> int:
        rank = max(1, self.values[name].ndim)
        return int(self.random.integers(-rank, rank) if self.opset >= 11 else self.random.integers(0, rank))

    # ---- nodes ----------------------------------------------------------------------------------------------------

    def add(self, op: str, inputs: Sequence[str | None], outputs: int = 1, **attributes: Any) -> str | None:
        """Add a node if it runs and its values are fit to go on with; the name of its first output."""
        names = [name or "" for name in inputs]
        node = helper.make_node(op, names, [self.fresh("v") for _ in range(outputs)], self.fresh(f"{op.lower()}_"), **attributes)
        captured = [v for v in self.values if op == "If" and any(v in n.input for a in node.attribute for n in a.g.node)]
        feeds = {name: self.values[name] for name in (*names, *captured) if name}
        found = evaluate(node, feeds, self.opset)
        if found is None or not all(self.is_fit(array) for array in found) or not self.is_defined(node, feeds, found):
            return None
        self.nodes.append(node)
        self.values.update(zip(node.output, found, strict=True))
        return str(node.output[0])

    def is_fit(self, array: Array) -> bool:
        if array.size > MOST_ELEMENTS or array.ndim > 6:
            return False
        if array.dtype.kind != "f":
            return True
        return bool(np.isfinite(array).all()) and float(np.abs(array).max(initial=0)) <= LARGEST[array.dtype.name]

    @staticmethod
    def is_defined(node: onnx.NodeProto, feeds: dict[str, Array], found: list[Array]) -> bool:
        """False where integers overflow: what then comes out is left open by ONNX."""
        operands = [feeds[name] for name in node.input if name]
        exact = {"Add": np.add, "Sub": np.subtract, "Mul": np.multiply}.get(node.op_type)
        if exact is not None and operands[0].dtype.kind in "iu":
            wide = exact(operands[0].astype(object), operands[1].astype(object))
            return bool(np.all(wide == found[0].astype(object)))
        if node.op_type in ("ReduceSum", "ReduceProd", "ReduceSumSquare", "CumSum", "Sum", "Neg", "Abs") and found[0].dtype.kind in "iu":
            return all(int(np.abs(a.astype(object)).max(initial=0)) <= 20 for a in operands[:1])
        return True

    def graph(self, nodes: int) -> Graph:
        self.input(self.shape())
        names = list(PROPOSALS)
        weights = np.array([PROPOSALS[name] for name in names], float)
        for _ in range(12 * nodes):
            if len(self.nodes) >= nodes:
                break
            getattr(self, str(self.random.choice(names, p=weights / weights.sum())))()
        return self.finish()

    def finish(self) -> Graph:
        made = [name for node in self.nodes if node.op_type != "Constant" for name in node.output if name]
        if not made:
            self.add("Identity", [next(iter(self.inputs))])
            made = list(self.nodes[-1].output)
        read = {name for node in self.nodes for name in node.input}
        ends = [name for name in made if name not in read]
        wanted = [name for name in ends if self.chance(0.9)] + [name for name in made if name in read and self.chance(0.1)]
        wanted = (wanted or ends or made[-1:])[:6]
        return _finished(self.nodes, self.inputs, self.constants, wanted, self.values, self.opset)

    # ---- one by one -----------------------------------------------------------------------------------------------

    def unary(self) -> None:
        op, low, high = self.choose(UNARY)
        x = self.pick(lambda a: a.size == 0 or (a.min() >= low and a.max() <= high))
        if x is None:
            return
        attributes = {key: float(self.random.uniform(0.1, 1.2)) for key in ATTRIBUTES.get(op, ()) if self.chance(0.7)}
        if op == "Gelu" and self.chance(0.5):
            attributes = {"approximate": "tanh"}
        self.add(op, [x], **attributes)

    def partner(self, x: str, fits: Callable[[Array], Any] = lambda a: True) -> str | None:
        """A value that broadcasts with ``x``: another one, or a new constant or input of part of its shape."""
        a = self.values[x]

        def broadcasts(b: Array) -> bool:
            try:
                return b.dtype == a.dtype and fits(b) and np.prod(np.broadcast_shapes(a.shape, b.shape)) <= MOST_ELEMENTS
            except ValueError:
                return False

        if self.chance(0.5) and (found := self.pick(broadcasts, a.dtype.kind)) is not None:
            return found
        shape = [d if self.chance(0.6) else 1 for d in a.shape][int(self.random.integers(0, a.ndim + 1)) :]
        drawn = self.drawn(shape, a.dtype)
        if not fits(drawn):
            return None
        if self.chance(0.75):
            return self.constant(drawn, shared=True)
        name = self.fresh("x")
        self.inputs[name] = self.values[name] = drawn
        return name

    def binary(self) -> None:
        x = self.pick() if self.chance(0.8) else self.pick(kinds="iu")
        if x is None:
            return
        op = self.choose(["Add", "Sub", "Mul", "Div", "Max", "Min", "Add", "Mul", "Pow", "PRelu", "Sum", "Mean", "Mod"])
        if op in ("Div", "Mod"):
            y = self.partner(x, lambda b: b.size == 0 or np.abs(b).min() > 0.1)
        elif op == "Pow":
            y = self.constant(self.choose([0.5, 1.0, 2.0, 3.0, 2.0]), self.values[x].dtype)
            if self.values[x].dtype.kind != "f" or (self.values[x] <= 0).any() and self.chance(0.8):
                return
        else:
            y = self.partner(x)
        if y is None:
            return
        operands = [x, y] if op in ("Div", "Mod", "Pow", "PRelu") or self.chance(0.7) else [y, x]
        if op in ("Sum", "Mean", "Max", "Min") and (third := self.partner(x)) is not None and self.chance(0.4):
            operands.append(third)
        attributes = {"fmod": 1} if op == "Mod" and (self.values[x].dtype.kind == "f" or self.chance(0.3)) else {}
        self.add(op, operands, **attributes)

    def compare(self) -> None:
        x = self.pick(kinds="fiu")
        if x is not None and (y := self.partner(x)) is not None:
            self.add(self.choose(["Greater", "Less", "Equal", "GreaterOrEqual", "LessOrEqual"]), [x, y])

    def logic(self) -> None:
        x = self.pick(kinds="b")
        if x is None:
            self.compare()
        elif self.chance(0.3):
            self.add("Not", [x])
        elif (y := self.partner(x)) is not None:
            self.add(self.choose(["And", "Or", "Xor", "Equal"]), [x, y])

    def bits(self) -> None:
        x = self.pick(kinds="iu")
        if x is None:
            return
        if self.chance(0.2):
            self.add("BitwiseNot", [x])
        elif self.values[x].dtype.kind == "u" and self.chance(0.5):
            y = self.partner(x, lambda b: b.size == 0 or int(b.max()) < 8)
            if y is not None:
                self.add("BitShift", [x, y], direction=self.choose(["LEFT", "RIGHT"]))
        elif (y := self.partner(x)) is not None:
            self.add(self.choose(["BitwiseAnd", "BitwiseOr", "BitwiseXor"]), [x, y])

    def where(self) -> None:
        condition = self.pick(kinds="b")
        if condition is None:
            self.compare()
            return
        shape = self.values[condition].shape
        x = self.pick(lambda a: _fits(a.shape, shape))
        if x is not None and (y := self.partner(x)) is not None:
            self.add("Where", [condition, x, y] if self.chance(0.5) else [condition, y, x])

    def clip(self) -> None:
        x = self.pick(kinds="f" if self.opset < 12 else "fi")
        if x is None:
            return
        low, high = float(self.random.uniform(-1.5, 0.5)), float(self.random.uniform(0.6, 3))
        if self.opset < 11:
            self.add("Clip", [x], **{key: value for key, value in (("min", low), ("max", high)) if self.chance(0.8)})
            return
        dtype = self.values[x].dtype
        bounds = [self.constant(np.asarray(v, dtype), shared=True) if self.chance(0.8) else None for v in (low, high)]
        self.add("Clip", [x, *bounds] if bounds[1] else [x, bounds[0]] if bounds[0] else [x])

    def cast(self) -> None:
        x = self.pick(kinds="fiub")
        if x is None:
            return
        to = np.dtype(self.choose(["float32", "float32", "float64", "float16", "int32", "int64", "int8", "uint8", "bool", "int16", "uint32"]))
        a = self.values[x]
        bounds = np.iinfo(to) if to.kind in "iu" else None
        if bounds and a.size and a.dtype.kind in "fiu" and not (bounds.min <= float(a.min()) and float(a.max()) <= bounds.max):
            return
        self.add("Cast", [x], to=helper.np_dtype_to_tensor_dtype(to))

    def reduce(self) -> None:
        op = self.choose(REDUCTIONS)
        positive = op in ("ReduceLogSum",)
        x = self.pick(lambda a: a.ndim and (not positive or (a.size and a.min() > 0.05)), "f" if self.chance(0.85) or positive else "i")
        if x is None:
            return
        rank = self.values[x].ndim
        axes = sorted(self.random.choice(rank, int(self.random.integers(1, rank + 1)), replace=False).tolist())
        axes = [a - rank if self.opset >= 11 and self.chance(0.3) else a for a in axes]
        keep = {} if self.chance(0.3) else {"keepdims": int(self.random.integers(2))}
        since = 13 if op == "ReduceSum" else 18
        if self.chance(0.15):
            self.add(op, [x], **keep)
        elif self.opset >= since:
            self.add(op, [x, self.numbers(axes)], **keep)
        else:
            self.add(op, [x], axes=axes, **keep)

    def arg(self) -> None:
        x = self.pick(lambda a: a.ndim and a.size, "fi")
        if x is None:
            return
        last = {"select_last_index": 1} if self.opset >= 12 and self.chance(0.2) else {}
        self.add(self.choose(["ArgMax", "ArgMin"]), [x], axis=self.axis(x), keepdims=int(self.random.integers(2)), **last)

    def cumulative(self) -> None:
        x = self.pick(lambda a: a.ndim)
        if x is not None and self.opset >= 11:
            flags = {key: 1 for key in ("exclusive", "reverse") if self.chance(0.3)}
            self.add("CumSum", [x, self.constant(self.axis(x), self.choose([np.int64, np.int32]))], **flags)

    def top(self) -> None:
        x = self.pick(lambda a: a.ndim and a.size, "fi")
        if x is None or self.opset < 11:
            return
        axis = self.axis(x)
        count = int(self.random.integers(1, self.values[x].shape[axis] + 1))
        self.add("TopK", [x, self.numbers([count])], 2, axis=axis, largest=int(self.random.integers(2)))

    # ---- movement -------------------------------------------------------------------------------------------------

    def any(self, fits: Callable[[Array], Any] = lambda a: True) -> str | None:
        return self.pick(fits, "f" if self.chance(0.7) else "fiub")

    def reshape(self) -> None:
        x = self.any()
        if x is None:
            return
        shape, size = list(self.values[x].shape), self.values[x].size
        if size == 0:
            return
        if len(shape) > 1 and self.chance(0.5):
            at = int(self.random.integers(len(shape) - 1))
            shape[at : at + 2] = [shape[at] * shape[at + 1]]
        elif shape and self.chance(0.6):
            at = int(self.random.integers(len(shape)))
            whole = shape[at]
            part = self.choose([d for d in range(1, whole + 1) if whole % d == 0])
            shape[at : at + 1] = [part, whole // part]
        else:
            shape = [size]
        target = [0 if i < self.values[x].ndim and d == self.values[x].shape[i] and self.chance(0.3) else d for i, d in enumerate(shape)]
        if target and self.chance(0.4):
            target[int(self.random.integers(len(target)))] = -1
        self.add("Reshape", [x, self.numbers(target)])

    def transpose(self) -> None:
        x = self.any(lambda a: a.ndim > 1)
        if x is not None:
            self.add("Transpose", [x], **({"perm": self.random.permutation(self.values[x].ndim).tolist()} if self.chance(0.9) else {}))

    def flatten(self) -> None:
        x = self.any()
        if x is not None:
            self.add("Flatten", [x], axis=self.axis(x))

    def squeeze(self) -> None:
        x = self.any(lambda a: 1 in a.shape)
        if x is None:
            return
        axes = [i for i, d in enumerate(self.values[x].shape) if d == 1]
        axes = sorted(self.random.choice(axes, int(self.random.integers(1, len(axes) + 1)), replace=False).tolist())
        self.with_axes("Squeeze", x, axes, 13)

    def unsqueeze(self) -> None:
        x = self.any(lambda a: a.ndim < 5)
        if x is not None:
            count = int(self.random.integers(1, 3))
            axes = sorted(self.random.choice(self.values[x].ndim + count, count, replace=False).tolist())
            self.with_axes("Unsqueeze", x, axes, 13)

    def with_axes(self, op: str, x: str, axes: list[int], since: int) -> None:
        if self.opset >= since:
            self.add(op, [x, self.numbers(axes)])
        else:
            self.add(op, [x], axes=axes)

    def concat(self) -> None:
        x = self.any(lambda a: a.ndim)
        if x is None:
            return
        a, axis = self.values[x], self.axis(x)
        around = [d for i, d in enumerate(a.shape) if i != axis % a.ndim]

        def joins(b: Array) -> bool:
            return b.dtype == a.dtype and b.ndim == a.ndim and [d for i, d in enumerate(b.shape) if i != axis % a.ndim] == around

        others = [self.pick(joins, a.dtype.kind) or x for _ in range(int(self.random.integers(1, 4)))]
        if self.chance(0.3):
            shape = list(a.shape)
            shape[axis] = self.size()
            others.append(self.constant(self.drawn(shape, a.dtype), shared=True))
        self.add("Concat", [x, *others], axis=axis)

    def slice(self) -> None:
        x = self.any(lambda a: a.ndim and a.size)
        if x is None:
            return
        shape = self.values[x].shape
        axes = sorted(self.random.choice(len(shape), int(self.random.integers(1, len(shape) + 1)), replace=False).tolist())
        starts, ends, steps = [], [], []
        for axis in axes:
            size = shape[axis]
            step = int(self.choose([1, 1, 1, 2, 3, -1, -2])) if self.opset >= 10 else 1
            first, last = sorted(self.random.integers(0, size + 1, 2).tolist())
            if first == last and self.chance(0.95):
                first, last = 0, size
            starts.append(first - size if self.chance(0.2) and first < size else first)
            ends.append(int(self.choose([last, last, 2**31 - 1])))
            if step < 0:
                starts[-1], ends[-1] = int(self.choose([last, 2**31 - 1, -1])), int(self.choose([first - 1 if first else -size - 1, -(2**31)]))
            steps.append(step)
        if self.opset < 10:
            self.add("Slice", [x], axes=axes, starts=starts, ends=ends)
            return
        kind = self.choose([np.int64, np.int32])
        self.add("Slice", [x, *(self.constant(v, kind) for v in (starts, ends, axes, steps))])

    def split(self) -> None:
        x = self.any(lambda a: a.ndim and max(a.shape) > 1)
        if x is None:
            return
        axis = self.axis(x)
        size = self.values[x].shape[axis]
        if size < 2:
            return
        first = int(self.random.integers(1, size))
        if self.chance(0.3) and size % 2 == 0:
            self.add("Split", [x], 2, axis=axis, **({"num_outputs": 2} if self.opset >= 18 else {}))
        elif self.opset >= 13:
            self.add("Split", [x, self.numbers([first, size - first])], 2, axis=axis)
        else:
            self.add("Split", [x], 2, axis=axis, split=[first, size - first])

    def pad(self) -> None:
        x = self.pick(lambda a: a.ndim and a.size and a.dtype == self.float)
        if x is None:
            return
        shape = self.values[x].shape
        mode = self.choose(["constant", "constant", "reflect", "edge", "wrap"])
        most = [min(3, d - 1) if mode in ("reflect", "wrap") else 3 for d in shape]
        amounts = [int(self.random.integers(-1 if mode == "constant" and d > 3 else 0, m + 1)) for _ in range(2) for d, m in zip(shape, most, strict=True)]
        if self.opset < 11:
            self.add("Pad", [x], pads=amounts, mode=mode, **({"value": 0.5} if self.chance(0.3) else {}))
            return
        fill = [self.constant(self.choose([0, 1.5, -1]), self.values[x].dtype)] if self.chance(0.5) else []
        self.add("Pad", [x, self.numbers(amounts), *fill], mode=mode)

    def expand(self) -> None:
        x = self.any(lambda a: a.ndim == 0 or 1 in a.shape)
        if x is not None:
            shape = [d if d != 1 or self.chance(0.3) else self.size() for d in self.values[x].shape]
            self.add("Expand", [x, self.numbers([self.size(), *shape] if self.chance(0.3) else shape)])

    def tile(self) -> None:
        x = self.any(lambda a: a.ndim)
        if x is not None:
            self.add("Tile", [x, self.numbers(self.random.integers(1, 4, self.values[x].ndim))])

    def indices(self, shape: Sequence[int], size: int) -> str:
        array = self.random.integers(-size if self.opset >= 11 else 0, size, tuple(shape))
        kind = self.choose([np.int64, np.int64, np.int32])
        if self.chance(0.7):
            return self.constant(array, kind)
        name = self.fresh("x")
        self.inputs[name] = self.values[name] = np.asarray(array, kind)
        return name

    def gather(self) -> None:
        x = self.any(lambda a: a.ndim and a.size)
        if x is None:
            return
        axis, shape = self.axis(x), self.values[x].shape
        kind = self.random.random()
        if kind < 0.5:
            self.add("Gather", [x, self.indices(self.choose([(), (1,), (3,), (2, 2)]), shape[axis])], axis=axis)
        elif kind < 0.75:
            own = [min(d, int(self.random.integers(1, d + 1))) if i != axis % len(shape) else self.size() for i, d in enumerate(shape)]
            self.add("GatherElements", [x, self.indices(own, shape[axis])], axis=axis)
        else:
            depth = int(self.random.integers(1, len(shape) + 1))
            columns = [self.random.integers(0, d, 3) for d in shape[:depth]]
            self.add("GatherND", [x, self.numbers(np.stack(columns, -1))])

    def scatter(self) -> None:
        x = self.pick(lambda a: a.ndim and a.size)
        if x is None or self.opset < 11:
            return
        a, axis = self.values[x], self.axis(x)
        reduction = {"reduction": self.choose(["none", "add", "mul", "max", "min"])} if self.opset >= 18 else {}
        if self.chance(0.5):
            own = [int(self.random.integers(1, d + 1)) for d in a.shape]
            places = np.zeros(own, np.int64)
            for lane in np.ndindex(*[d for i, d in enumerate(own) if i != axis % a.ndim]):
                at = list(lane)
                at.insert(axis % a.ndim, slice(None))  # type: ignore[arg-type]
                places[tuple(at)] = self.random.permutation(a.shape[axis])[: own[axis]]
            self.add("ScatterElements", [x, self.numbers(places), self.constant(self.drawn(own, a.dtype))], axis=axis, **reduction)
            return
        depth = int(self.random.integers(1, a.ndim + 1))
        count = min(2, int(np.prod(a.shape[:depth])))
        flat = self.random.permutation(int(np.prod(a.shape[:depth])))[:count]
        where = np.stack(np.unravel_index(flat, a.shape[:depth]), -1)
        self.add("ScatterND", [x, self.numbers(where), self.constant(self.drawn([count, *a.shape[depth:]], a.dtype))], **reduction)

    def shuffle(self) -> None:
        x = self.pick(lambda a: a.ndim == 4 and a.size)
        if x is None:
            return
        _, channels, height, width = self.values[x].shape
        if channels % 4 == 0:
            self.add("DepthToSpace", [x], blocksize=2, **({"mode": self.choose(["DCR", "CRD"])} if self.opset >= 11 else {}))
        elif height % 2 == 0 and width % 2 == 0:
            self.add("SpaceToDepth", [x], blocksize=2)

    def triangle(self) -> None:
        x = self.pick(lambda a: a.ndim > 1)
        if x is not None and self.opset >= 14:
            more = [self.constant(int(self.random.integers(-2, 3)), np.int64)] if self.chance(0.6) else []
            self.add("Trilu", [x, *more], upper=int(self.random.integers(2)))

    def one_hot(self) -> None:
        x = self.pick(lambda a: a.ndim < 4 and a.size, "i")
        if x is not None and self.opset >= 9:
            self.add("OneHot", [x, self.numbers([int(self.choose([3, 10]))]), self.constant([0.0, 1.0], np.float32)], axis=int(self.choose([-1, 0])))

    def reverse(self) -> None:
        x = self.pick(lambda a: a.ndim > 1 and a.size)
        if x is not None and self.opset >= 10:
            a = self.values[x]
            lengths = self.random.integers(1, a.shape[0] + 1, a.shape[1])
            self.add("ReverseSequence", [x, self.numbers(lengths)], batch_axis=1, time_axis=0)

    def resize(self) -> None:
        x = self.pick(lambda a: a.ndim in (3, 4) and a.size and a.dtype == np.float32)
        if x is None or self.opset < 11:
            return
        a = self.values[x]
        mode = self.choose(["nearest", "linear", "nearest", "linear", "cubic"])
        attributes = {
            "mode": mode, "coordinate_transformation_mode": self.choose(["half_pixel", "asymmetric", "align_corners", "pytorch_half_pixel"]),
        }  # fmt: skip
        if mode == "nearest" and self.chance(0.7):
            attributes["nearest_mode"] = self.choose(["floor", "ceil", "round_prefer_floor", "round_prefer_ceil"])
        roi = self.constant(np.zeros(0), np.float32) if self.opset < 13 else None
        if self.chance(0.5):
            scales = [1.0, 1.0, *(float(self.choose([0.5, 1.0, 1.5, 2.0, 3.0])) for _ in a.shape[2:])]
            self.add("Resize", [x, roi, self.constant(scales, np.float32)], **attributes)
            return
        sizes = [*a.shape[:2], *(int(self.random.integers(1, 9)) for _ in a.shape[2:])]
        blank = self.constant(np.zeros(0), np.float32) if self.opset < 13 else None
        self.add("Resize", [x, roi, blank, self.numbers(sizes)], **attributes)

    # ---- layers ---------------------------------------------------------------------------------------------------

    def image(self) -> str:
        if self.chance(0.8) and (x := self.pick(lambda a: a.dtype == self.float and 3 <= a.ndim <= 5 and a.size)) is not None:
            return x
        rank = int(self.choose([3, 4, 4, 4, 5]))
        channels = int(self.choose([1, 2, 3, 4, 6, 8, 16]))
        return self.input([self.batch, channels, *(int(self.random.integers(3, 8)) for _ in range(rank - 2))])

    def window(self, spatial: Sequence[int]) -> dict[str, Any] | None:
        """Attributes of a window that fits."""
        rank = len(spatial)
        kernel = [int(self.random.integers(1, min(d, 3) + 1)) for d in spatial]
        attributes: dict[str, Any] = {"kernel_shape": kernel}
        if self.chance(0.5):
            attributes["strides"] = [int(self.random.integers(1, 4)) for _ in range(rank)]
        if self.chance(0.2):
            attributes["auto_pad"] = self.choose(["SAME_UPPER", "SAME_LOWER", "VALID"])
        elif self.chance(0.6):
            attributes["pads"] = [int(self.random.integers(0, k)) for _ in range(2) for k in kernel]
        return attributes

    def conv(self) -> str | None:
        x = self.image()
        shape = self.values[x].shape
        attributes = self.window(shape[2:])
        if attributes is None:
            return None
        group = int(self.choose([d for d in range(1, shape[1] + 1) if shape[1] % d == 0])) if shape[1] else 1
        out = group * int(self.random.integers(1, max(2, 17 // group)))
        if self.chance(0.2) and "auto_pad" not in attributes:
            attributes["dilations"] = [int(self.random.integers(1, 3)) for _ in shape[2:]]
        kernel = attributes["kernel_shape"]
        if self.chance(0.2):
            attributes.pop("kernel_shape")
        bias = [self.weight(out)] if self.chance(0.6) else []
        return self.add("Conv", [x, self.weight(out, shape[1] // group, *kernel), *bias], **attributes, group=group)

    def conv_transpose(self) -> None:
        x = self.image()
        shape = self.values[x].shape
        attributes = self.window(shape[2:])
        if attributes is None or shape[1] == 0:
            return
        attributes.pop("auto_pad", None)
        group = int(self.choose([d for d in (1, 2, shape[1]) if shape[1] % d == 0]))
        out = int(self.random.integers(1, 4))
        strides = attributes.get("strides", [1] * len(shape[2:]))
        if self.chance(0.2) and max(strides) > 1:
            attributes["output_padding"] = [int(self.random.integers(0, s)) for s in strides]
        bias = [self.weight(out * group)] if self.chance(0.5) else []
        self.add("ConvTranspose", [x, self.weight(shape[1], out, *attributes["kernel_shape"]), *bias], **attributes, group=group)

    def pool(self) -> None:
        x = self.image()
        attributes = self.window(self.values[x].shape[2:])
        if attributes is None:
            return
        op = self.choose(["MaxPool", "MaxPool", "AveragePool", "AveragePool", "LpPool"])
        if self.opset >= 10 and "auto_pad" not in attributes and op != "LpPool" and self.chance(0.3):
            attributes["ceil_mode"] = 1
        if op == "AveragePool" and self.chance(0.5):
            attributes["count_include_pad"] = 1
        if "auto_pad" not in attributes and (op, self.opset) in DILATED and self.chance(0.2):
            attributes["dilations"] = [2] * len(attributes["kernel_shape"])
        two = op == "MaxPool" and self.chance(0.1)
        self.add(op, [x], 2 if two else 1, **attributes)

    def global_pool(self) -> None:
        self.add(self.choose(["GlobalAveragePool", "GlobalMaxPool"]), [self.image()])

    def gemm(self) -> None:
        x = self.float_of(2)
        rows, depth = self.values[x].shape
        attributes: dict[str, Any] = {}
        if self.chance(0.2):
            attributes["transA"], depth, rows = 1, rows, depth
        out = self.size()
        shape = (depth, out)
        if self.chance(0.4):
            attributes["transB"], shape = 1, (out, depth)
        if self.chance(0.2):
            attributes["alpha"], attributes["beta"] = 0.5, 1.5
        bias = [self.weight(*self.choose([(out,), (1, out), (rows, 1), (rows, out), ()]))] if self.chance(0.7) or self.opset < 11 else []
        self.add("Gemm", [x, self.weight(*shape), *bias], **attributes)

    def matmul(self) -> None:
        x = self.float_of()
        a = self.values[x]
        if a.ndim == 0:
            return
        y = self.pick(lambda b: b.dtype == a.dtype and b.ndim and b.size and b.shape[-2 if b.ndim > 1 else 0] == a.shape[-1])
        if y is None or self.chance(0.6):
            around = list(a.shape[:-2]) if self.chance(0.3) else []
            shape = [*around, a.shape[-1], self.size()] if self.chance(0.9) else [a.shape[-1]]
            y = self.weight(*shape)
        self.add("MatMul", [x, y])

    def normalization(self) -> None:
        op = self.choose(["BatchNormalization", "InstanceNormalization", "LayerNormalization", "LRN", "GroupNormalization",
                          "MeanVarianceNormalization", "LpNormalization", "RMSNormalization"])  # fmt: skip
        if op == "LayerNormalization":
            x = self.float_of()
            a = self.values[x]
            if a.ndim == 0 or self.opset < 17:
                return
            axis = self.axis(x)
            shape = a.shape[axis % a.ndim :]
            self.add(op, [x, self.weight(*shape), *([self.weight(*shape)] if self.chance(0.6) else [])], axis=axis)
            return
        x = self.image()
        a = self.values[x]
        n = a.shape[1]
        if op == "BatchNormalization":
            variance = self.constant(self.random.uniform(0.3, 2, n), self.float)
            self.add(op, [x, self.weight(n), self.weight(n), self.weight(n), variance], epsilon=float(self.choose([1e-5, 1e-3])))
        elif op == "InstanceNormalization":
            self.add(op, [x, self.weight(n), self.weight(n)])
        elif op == "LRN":
            self.add(op, [x], size=int(self.choose([1, 3, 5])), alpha=0.01, bias=1.5)
        elif op == "GroupNormalization" and self.opset >= 21:
            self.add(op, [x, self.weight(n), self.weight(n)], num_groups=int(self.choose([d for d in (1, 2, n) if n % d == 0])))
        elif op == "MeanVarianceNormalization" and a.ndim == 4:
            self.add(op, [x])
        elif op == "LpNormalization":
            self.add(op, [x], axis=self.axis(x), p=int(self.choose([1, 2])))

    def softmax(self) -> None:
        x = self.pick(lambda a: a.ndim)
        if x is not None:
            self.add(self.choose(["Softmax", "Softmax", "LogSoftmax", "Hardmax"]), [x], **({"axis": self.axis(x)} if self.chance(0.8) else {}))

    def einsum(self) -> None:
        x = self.float_of(3)
        if self.opset < 12:
            return
        b, i, j = self.values[x].shape
        equation, shape = self.choose([("bij,bjk->bik", (b, j, 3)), ("bij,bkj->bik", (b, 2, j)), ("bij,bij->b", (b, i, j)), ("bij->bji", None)])
        self.add("Einsum", [x, self.weight(*shape)] if shape else [x], equation=equation)

    def recurrent(self) -> None:
        x = self.float_of(3)
        steps, _, width = self.values[x].shape
        if not 1 <= steps <= 3 or width == 0:
            return
        op, gates = self.choose([("RNN", 1), ("LSTM", 4), ("GRU", 3)])
        hidden, two = int(self.random.integers(1, 4)), self.chance(0.2)
        ways = 2 if two else 1
        w, r = self.weight(ways, gates * hidden, width), self.weight(ways, gates * hidden, hidden)
        bias = [self.weight(ways, 2 * gates * hidden)] if self.chance(0.6) else []
        linear = {"linear_before_reset": 1} if op == "GRU" and self.chance(0.5) else {}
        self.add(op, [x, w, r, *bias], int(self.choose([1, 2])), hidden_size=hidden, direction="bidirectional" if two else "forward", **linear)

    def branch(self) -> None:
        """If, on a constant or on an input."""
        x = self.pick(lambda a: a.ndim)
        if x is None or self.opset < 11:
            return
        flag = np.asarray(self.chance(0.5))
        if self.chance(0.6):
            condition = self.constant(flag)
        else:
            condition = self.fresh("x")
            self.inputs[condition] = self.values[condition] = flag
        info = helper.make_tensor_value_info
        kind, shape = helper.np_dtype_to_tensor_dtype(self.values[x].dtype), self.values[x].shape
        graphs = []
        for op in (self.choose(["Relu", "Tanh", "Identity"]), self.choose(["Neg", "Abs", "Sigmoid"])):
            out = self.fresh("b")
            graphs.append(helper.make_graph([helper.make_node(op, [x], [out])], "branch", [], [info(out, kind, shape)]))
        self.add("If", [condition], then_branch=graphs[0], else_branch=graphs[1])

    # ---- quantized ------------------------------------------------------------------------------------------------

    def quantized_input(self) -> str:
        """A float value that is a DequantizeLinear's, made of one that is at hand."""
        found = [n.output[0] for n in self.nodes if n.op_type == "DequantizeLinear" and self.values[n.output[0]].size]
        if found and self.chance(0.7):
            return str(self.choose(found))
        x = self.pick(lambda a: a.dtype == np.float32 and a.size) or self.input(self.shape(), np.float32)
        return self.through_grid(x) or x

    def grid(self, dtype: str, largest: float) -> tuple[Array, Array]:
        scale = max(largest, 0.1) / (200.0 if dtype.startswith("u") else 110.0)
        if dtype.endswith("16"):
            scale /= 200
        if self.chance(0.4):
            scale = float(2.0 ** np.ceil(np.log2(scale)))
        zero = 0 if self.chance(0.4) else int(self.random.integers(100, 150) if dtype == "uint8" else self.random.integers(-20, 20))
        if dtype == "uint16":
            zero = abs(zero)
        return np.asarray(scale, np.float32), np.asarray(zero, dtype)

    def through_grid(self, x: str) -> str | None:
        """QuantizeLinear, perhaps movement of the integers, DequantizeLinear."""
        if self.opset < 10:
            return None
        dtype = self.choose(["int8", "uint8", "uint8", "int8", "int16", "uint16"] if self.opset >= 21 else ["int8", "uint8"])
        scale, zero = self.grid(dtype, float(np.abs(self.values[x]).max(initial=0)))
        s, z = self.constant(scale, shared=True), self.constant(zero, shared=True)
        q = self.add("QuantizeLinear", [x, s, z])
        if q is None:
            return None
        if self.chance(0.15) and self.values[q].ndim > 1:
            q = self.add("Transpose", [q]) or q
        return self.add("DequantizeLinear", [q, s, z])

    def integer_weight(self, shape: Sequence[int], axis: int) -> tuple[str, Array]:
        """A dequantized int8 weight, one scale or one for each channel along ``axis``; the scale."""
        q = self.random.integers(-127, 128, tuple(shape))
        if self.opset >= 13 and self.chance(0.5):
            scale = self.random.uniform(0.5, 1.5, shape[axis]).astype(np.float32) / 128
            names = [self.constant(q, np.int8), self.constant(scale), self.constant(np.zeros(shape[axis]), np.int8)]
            return self.add("DequantizeLinear", names, axis=axis) or "", scale
        scale = np.asarray(self.choose([1 / 128, 1 / 64, 0.011]), np.float32)
        return self.add("DequantizeLinear", [self.constant(q, np.int8), self.constant(scale), self.constant(0, np.int8)]) or "", scale

    def quantized(self) -> None:
        """An operator between grids."""
        if self.opset < 10 or self.float != np.float32:
            return
        x = self.quantized_input()
        a = self.values[x]
        made: str | None = None
        kind = self.choose(["conv", "matmul", "add", "mul", "table", "pool", "concat", "move", "global", "relu", "softmax"])
        if kind == "conv" and 3 <= a.ndim <= 4:
            attributes = self.window(a.shape[2:]) or {}
            out = int(self.random.integers(1, 9))
            weight, scale = self.integer_weight((out, a.shape[1], *attributes["kernel_shape"]), 0)
            made = self.add("Conv", [x, weight], **attributes) if weight else None
        elif kind == "matmul" and a.ndim >= 2:
            weight, scale = self.integer_weight((a.shape[-1], self.size()), 1)
            made = self.add("MatMul", [x, weight]) if weight else None
        elif kind in ("add", "mul"):
            other = self.quantized_input()
            made = self.add("Add" if kind == "add" else "Mul", [x, other]) if _fits(a.shape, self.values[other].shape) else None
        elif kind == "table":
            made = self.add(self.choose(["Sigmoid", "Tanh", "LeakyRelu", "HardSigmoid", "Abs", "Elu"]), [x])
        elif kind == "pool" and a.ndim == 4:
            made = self.add(self.choose(["MaxPool", "AveragePool"]), [x], **(self.window(a.shape[2:]) or {}))
        elif kind == "global" and a.ndim == 4:
            made = self.add("GlobalAveragePool", [x])
        elif kind == "concat" and a.ndim:
            other = self.quantized_input()
            made = self.add("Concat", [x, other], axis=self.axis(x)) if self.values[other].ndim == a.ndim else None
        elif kind == "move" and a.ndim > 1:
            made = self.add("Transpose", [x])
        elif kind == "relu":
            made = self.add(self.choose(["Relu", "Neg"]), [x])
        elif kind == "softmax" and a.ndim:
            made = self.add("Softmax", [x], axis=-1 if self.opset >= 13 else a.ndim - 1)
        if made is not None:
            if self.chance(0.3):
                made = self.add("Relu", [made]) or made
            self.through_grid(made)

    def integer_operator(self) -> None:
        """The operators that hold integers themselves."""
        if self.opset < 10 or self.float != np.float32:
            return
        x = self.quantized_input()
        q = self.pick(lambda a: a.dtype in (np.int8, np.uint8) and 2 <= a.ndim <= 4 and a.size, "iu")
        kind = self.choose(["dynamic", "matmul_integer", "conv_integer", "qlinear_matmul", "qlinear_conv"])
        if kind == "dynamic" and self.opset >= 11:
            self.add("DynamicQuantizeLinear", [x], 3)
            return
        if q is None:
            return
        a = self.values[q]
        zero = self.constant(int(self.choose([0, 3])), a.dtype)
        scales = [self.constant(v, np.float32) for v in (0.02, 0.01, 0.05)]
        if kind.endswith("matmul") or kind == "matmul_integer":
            weight = self.constant(self.random.integers(-127, 128, (a.shape[-1], self.size())), np.int8)
            none = self.constant(0, np.int8)
            if kind == "matmul_integer":
                self.add("MatMulInteger", [q, weight, zero, none])
            else:
                self.add("QLinearMatMul", [q, scales[0], zero, weight, scales[1], none, scales[2], self.constant(2, a.dtype)])
        elif a.ndim == 4:
            attributes = self.window(a.shape[2:]) or {}
            weight = self.constant(self.random.integers(-127, 128, (3, a.shape[1], *attributes["kernel_shape"])), np.int8)
            if kind == "conv_integer":
                self.add("ConvInteger", [q, weight, zero], **attributes)
            else:
                none = self.constant(0, np.int8)
                self.add("QLinearConv", [q, scales[0], zero, weight, scales[1], none, scales[2], self.constant(2, a.dtype)], **attributes)


def _fits(a: Sequence[int], b: Sequence[int]) -> bool:
    try:
        return int(np.prod(np.broadcast_shapes(tuple(a), tuple(b)))) <= MOST_ELEMENTS
    except ValueError:
        return False


def _finished(
    nodes: Sequence[onnx.NodeProto], inputs: dict[str, Array], constants: dict[str, Array], outputs: Sequence[str],
    values: dict[str, Array], opset: int,
) -> Graph:  # fmt: skip
    """A model of these nodes; inputs and constants that nobody reads are left out."""
    read = {name for node in nodes for name in node.input}
    read |= {name for node in nodes for a in node.attribute for inner in a.g.node for name in inner.input}

    def info(name: str) -> onnx.ValueInfoProto:
        return helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(values[name].dtype), values[name].shape)

    feeds = {name: array for name, array in inputs.items() if name in read or name in outputs}
    weights = [numpy_helper.from_array(array, name) for name, array in constants.items() if name in read]
    graph = helper.make_graph(list(nodes), "random", [info(name) for name in feeds], [info(name) for name in outputs], weights)
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10 if opset >= 21 else 8)
    return Graph(proto, feeds, values)


def part(graph: Graph, keep: Sequence[int]) -> Graph:
    """The graph of some of the nodes, by position: what the others made becomes an input, with its value."""
    nodes = [node for i, node in enumerate(graph.proto.graph.node) if i in set(keep) or node.op_type == "Constant"]
    constants = {t.name: numpy_helper.to_array(t) for t in graph.proto.graph.initializer}
    made = {name for node in nodes for name in node.output if name}
    needed = {name for node in nodes for name in node.input if name}
    needed |= {name for node in nodes for a in node.attribute for inner in a.g.node for name in inner.input if name in graph.values}
    inputs = {name: graph.values[name] for name in graph.values if name in needed and name not in made and name not in constants}
    given = {value.name for value in graph.proto.graph.output}
    outputs = [
        name for node in nodes if node.op_type != "Constant" for name in node.output if name and (name in given or name not in needed)
    ]  # fmt: skip
    return _finished(nodes, inputs, constants, outputs, graph.values, graph.proto.opset_import[0].version)


DILATED = {("MaxPool", opset) for opset in OPSETS if opset >= 10} | {("AveragePool", opset) for opset in OPSETS if opset >= 19}
UNARY = (
    ("Abs", -1e9, 1e9), ("Neg", -1e9, 1e9), ("Relu", -1e9, 1e9), ("Sigmoid", -1e9, 1e9), ("Tanh", -1e9, 1e9), ("Exp", -50, 8),
    ("Log", 0.05, 1e9), ("Sqrt", 1e-3, 1e9), ("Erf", -1e9, 1e9), ("Floor", -1e6, 1e6), ("Ceil", -1e6, 1e6), ("Round", -1e6, 1e6),
    ("Sign", -1e9, 1e9), ("Sin", -50, 50), ("Cos", -50, 50), ("Softplus", -1e9, 1e9), ("Softsign", -1e9, 1e9), ("HardSwish", -1e9, 1e9),
    ("HardSigmoid", -1e9, 1e9), ("LeakyRelu", -1e9, 1e9), ("Elu", -1e9, 1e9), ("Selu", -1e9, 1e9), ("Celu", -1e9, 1e9),
    ("ThresholdedRelu", -1e9, 1e9), ("Mish", -1e9, 1e9), ("Gelu", -1e9, 1e9), ("Reciprocal", 0.1, 1e9), ("Asin", -0.95, 0.95),
    ("Acos", -0.95, 0.95), ("Atan", -1e9, 1e9), ("Tan", -1.3, 1.3), ("Sinh", -6, 6), ("Cosh", -6, 6), ("Asinh", -1e3, 1e3),
    ("Acosh", 1.05, 1e3), ("Atanh", -0.9, 0.9), ("Shrink", -1e9, 1e9), ("IsNaN", -1e9, 1e9), ("IsInf", -1e9, 1e9),
    ("Identity", -1e9, 1e9), ("Dropout", -1e9, 1e9),
)  # fmt: skip
"""Operator, and the range in which it is asked for."""
ATTRIBUTES = {
    "HardSigmoid": ("alpha", "beta"), "LeakyRelu": ("alpha",), "Elu": ("alpha",), "Selu": ("alpha", "gamma"), "Celu": ("alpha",),
    "ThresholdedRelu": ("alpha",), "Shrink": ("lambd", "bias"),
}  # fmt: skip
REDUCTIONS = (
    "ReduceSum", "ReduceMean", "ReduceMax", "ReduceMin", "ReduceProd", "ReduceL1", "ReduceL2", "ReduceLogSum", "ReduceLogSumExp",
    "ReduceSumSquare",
)  # fmt: skip
PROPOSALS = {
    "unary": 6, "binary": 6, "compare": 1, "logic": 0.7, "bits": 0.7, "where": 1, "clip": 1.5, "cast": 1.5, "reduce": 3, "arg": 0.7,
    "cumulative": 0.4, "top": 0.4, "reshape": 2, "transpose": 2, "flatten": 0.7, "squeeze": 0.8, "unsqueeze": 0.8, "concat": 1.5, "slice": 2,
    "split": 1, "pad": 1.2, "expand": 0.8, "tile": 0.7, "gather": 1.5, "scatter": 0.5, "shuffle": 0.6, "triangle": 0.4, "one_hot": 0.3,
    "reverse": 0.2, "resize": 0.8, "conv": 2.5, "conv_transpose": 0.8, "pool": 2, "global_pool": 0.7, "gemm": 1.5, "matmul": 2,
    "normalization": 1.5, "softmax": 1, "einsum": 0.4, "recurrent": 0.3, "branch": 0.3, "quantized": 5, "integer_operator": 0.8,
}  # fmt: skip
"""Methods of Maker, and how often each is tried."""
