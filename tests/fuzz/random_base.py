"""Graphs that grow node by node, each run as it is added: what random_graphs.py is made on."""

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
UNRELIABLE = frozenset({"AveragePool", "Conv", "ConvTranspose", "Hardmax", "LRN", "LpNormalization", "MaxPool", "Mean", "RNN"})
"""Operators that onnx's reference evaluator gets wrong: auto_pad and groups, the sign of what p = 1 sums, broadcasting, the
channels' axis, a maximum's place, samples of a sequence, older opsets.
(And what a resized axis of one element is in mode pytorch_half_pixel.)"""


def _is_padded_by_itself(node: onnx.NodeProto) -> bool:
    return any(a.name == "auto_pad" and a.s.startswith(b"SAME") for a in node.attribute)


def has_engine_defect(node: onnx.NodeProto, feeds: dict[str, Array]) -> bool:
    """Whether onnx's reference evaluator is to be asked first: what ONNX Runtime is known to get wrong (targets/ort/defects.py)."""
    aligned = any(a.s == b"align_corners" for a in node.attribute)
    if node.op_type == "ConvInteger":
        return not _is_padded_by_itself(node)
    if node.op_type == "Gemm" and any(array.size == 0 for array in feeds.values()):
        return True  # it forgets beta
    return node.op_type == "MaxUnpool" or (node.op_type == "Resize" and aligned)


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
    def is_double(self) -> bool:
        return any(array.dtype == np.float64 for array in (*self.feeds.values(), *self.values.values()))

    @property
    def is_quantized(self) -> bool:
        return any("Quant" in op or "Integer" in op or op.startswith("QLinear") for op in self.operators)


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
    if node.op_type == "ConvInteger" and _is_padded_by_itself(node) and len(node.input) > 2:
        return None  # each engine has another defect
    given = [helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(a.dtype), a.shape) for name, a in feeds.items()]
    graph = helper.make_graph([node], "node", given, [helper.make_empty_tensor_value_info(name) for name in node.output if name])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)
    engines: list[Callable[[], Any]] = [
        lambda: onnxruntime.InferenceSession(model.SerializeToString(), OPTIONS, providers=["CPUExecutionProvider"]),
        lambda: ReferenceEvaluator(model),
    ][: 1 if node.op_type in UNRELIABLE or any(a.s == b"pytorch_half_pixel" for a in node.attribute) else 2]
    for engine in engines[::-1] if has_engine_defect(node, feeds) else engines:
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


class Base:
    """One graph as it grows: its values, and how a node is added."""

    def __init__(self, seed: int) -> None:
        self.random = np.random.default_rng(seed)
        self.opset = int(self.random.choice(OPSETS))
        self.nodes: list[onnx.NodeProto] = []
        self.values: dict[str, Array] = {}
        self.inputs: dict[str, Array] = {}
        self.constants: dict[str, Array] = {}
        self.count = 0
        self.float = np.dtype(self.random.choice(["float32"] * 7 + ["float64"] * 2 + ["float16"]))
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

    def finish(self) -> Graph:
        made = [name for node in self.nodes if node.op_type != "Constant" for name in node.output if name]
        if not made:
            self.add("Identity", [next(iter(self.inputs))])
            made = list(self.nodes[-1].output)
        read = {name for node in self.nodes for name in node.input}
        ends = [name for name in made if name not in read]
        wanted = [name for name in ends if self.chance(0.9)] + [name for name in made if name in read and self.chance(0.1)]
        wanted = (wanted or ends or made[-1:])[:6]
        return finished(self.nodes, self.inputs, self.constants, wanted, self.values, self.opset)


def fits(a: Sequence[int], b: Sequence[int]) -> bool:
    try:
        return int(np.prod(np.broadcast_shapes(tuple(a), tuple(b)))) <= MOST_ELEMENTS
    except ValueError:
        return False


def finished(
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
    return finished(nodes, inputs, constants, outputs, graph.values, graph.proto.opset_import[0].version)
