"""TFLite files, float and quantized, read through the format's own schema and compared with its reference interpreter.

A quantized model becomes QDQ with the file's own scales and zero points, so its integers mean what they mean in TFLite. TFLite
requantizes with a 31-bit multiplier and rounds halves away from zero (twice, in older kernels), gatewright with a 24-bit one and
half to even: each rounding may end one step aside. So an output may differ by as many steps as roundings lie on the way to it.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper

from gatewright.errors import ModelError, UnsupportedOp

from .importing import TOLERANCE, Imported, finish, need
from .limits import Limits, raised
from .model import Model
from .tflite_graph import Graph, Tensor, tensors_of
from .tflite_ops import OPERATORS, Call

Array = NDArray[Any]

MAGIC = b"TFL3"
"""At byte 4 of a file."""
_EXTRA = "tflite"
_SAMPLES = 8
_HYBRID_TOLERANCE = 0.05
"""Of a float model with 8-bit weights: the interpreter rounds activations to 8 bits on the way, which ONNX does not."""
_STUMBLES = (ValueError, TypeError, LookupError, AttributeError, ArithmeticError, struct.error, UnicodeError)


def read_file(path: str, dims: Mapping[str, int], name: str | None, limits: Limits, trust: bool = False) -> Model:
    """A .tflite file, in this process."""
    file = Path(path)
    size = file.stat().st_size
    if size > limits.file_bytes:
        raise ModelError(f"{file.name} is {size:,} bytes, the limit is {limits.file_bytes:,}", hint=f"raise it: {raised('file_bytes')}")
    data = file.read_bytes()
    if data[4:8] != MAGIC:
        raise ModelError(f"{file.name} is no TFLite model, or it is cut short", hint="a TFLite file has TFL3 at its fifth byte")
    interpreter = need("ai_edge_litert.interpreter", _EXTRA, file.name)
    schema = need("ai_edge_litert.schema_py_generated", _EXTRA, file.name)
    try:
        parsed = schema.ModelT.InitFromObj(schema.Model.GetRootAs(bytearray(data), 0))
        graph, inputs, outputs = _graph(schema, parsed, limits)
    except _STUMBLES as error:
        what = f"{type(error).__name__}: {str(error)[:200]}"
        raise ModelError(f"{file.name} cannot be read: {what}", hint="the file is damaged, convert the model again") from error
    proto = _proto(graph, inputs, outputs)
    samples = _samples(inputs)
    expected = _expected(interpreter, data, inputs, outputs, samples, file.name)
    tolerance, steps = _allowed(graph, outputs, expected)
    imported = Imported(
        proto, "tflite", file.name, f"TFLite's reference kernels (LiteRT {_version()})", samples, expected, tolerance=tolerance,
        steps=steps, why="TFLite rounds halves away from zero, here they go to even" if steps else "", per_sample=True,
        notes=(_HYBRID_NOTE,) if graph.hybrid else (),
    )  # fmt: skip
    return finish(imported, dims=dims, name=name or file.stem, limits=limits)


def _allowed(graph: Graph, outputs: Mapping[str, Tensor], expected: list[Array]) -> tuple[float, int]:
    """By how much outputs may differ: floats relative to the largest value, and in steps what is quantized."""
    steps = max(graph.depth.get(tensor.index, 0) for tensor in outputs.values())
    tolerance = _HYBRID_TOLERANCE if graph.hybrid else TOLERANCE
    for tensor, value in zip(outputs.values(), expected, strict=True):
        if value.dtype.kind == "f" and tensor.index in graph.step:
            # A float output of a quantized model is a number of steps, too.
            largest = float(np.max(np.abs(value), initial=0.0)) or 1.0
            tolerance = max(tolerance, 1.001 * graph.depth[tensor.index] * graph.step[tensor.index] / largest)
    return tolerance, steps


_HYBRID_NOTE = f"weights of 8 bits with float activations: TFLite rounds the activations too, so up to {_HYBRID_TOLERANCE:g} may differ"


def _graph(schema: Any, parsed: Any, limits: Limits) -> tuple[Graph, dict[str, Tensor], dict[str, Tensor]]:
    """The graph as ONNX nodes, and the tensors that are its inputs and outputs, by name."""
    subgraph = (parsed.subgraphs or [None])[0]
    if subgraph is None or not len(subgraph.outputs if subgraph.outputs is not None else ()):
        raise ModelError("the file holds no graph", hint="convert the model again")
    operators = subgraph.operators or []
    if len(operators) > limits.nodes:
        raise ModelError(f"the model has {len(operators):,} nodes, the limit is {limits.nodes:,}", hint=f"raise it: {raised('nodes')}")
    tensors = tensors_of(subgraph, parsed.buffers or [], limits.tensor_bytes)
    names = {value: key for key, value in vars(schema.BuiltinOperator).items() if not key.startswith("_")}
    graph = Graph(tensors)
    inputs = _named(parsed, tensors, subgraph.inputs, "inputs")
    outputs = _named(parsed, tensors, subgraph.outputs, "outputs")
    for name, tensor in inputs.items():
        graph.put(tensor, name)
    for number, operator in enumerate(operators):
        code = parsed.operatorCodes[operator.opcodeIndex]
        op = names.get(max(code.builtinCode, code.deprecatedBuiltinCode), "?")
        given = [None if i < 0 else tensors[i] for i in (operator.inputs if operator.inputs is not None else ())]
        made = [tensors[i] for i in operator.outputs]
        if op == "DEQUANTIZE" and given[0] is not None and given[0].data is not None and given[0].dtype == np.float16:
            # How weights of 16 bits are stored.
            tensors[made[0].index] = replace(made[0], data=given[0].data.astype(np.float32))
            continue
        if op not in OPERATORS:
            shown = f"CUSTOM {(code.customCode or b'').decode('utf-8', 'replace')}" if op == "CUSTOM" else op
            hint = "convert the model without it, or load it from its own framework, as load(keras_model)"
            raise UnsupportedOp(
                node=made[0].name if made else str(number), op=shown, target="the importer of TFLite", rule="it has no form here", hint=hint
            )
        where = f"node {number} ({op}) of {made[0].name!r}"
        OPERATORS[op](graph, Call(where, operator.builtinOptions, given, made))
    return graph, inputs, outputs


def _named(parsed: Any, tensors: list[Tensor], indices: Any, side: str) -> dict[str, Tensor]:
    """Inputs or outputs by the names of the signature, or their own, made plain and unique."""
    maps = [] if not parsed.signatureDefs else getattr(parsed.signatureDefs[0], side) or []
    said = {entry.tensorIndex: (entry.name or b"").decode("utf-8", "replace") for entry in maps}
    found: dict[str, Tensor] = {}
    for index in indices if indices is not None else ():
        text = said.get(int(index)) or tensors[index].name.partition(":")[0].removeprefix("serving_default_")
        plain = "".join(c if (c.isalnum() and c.isascii()) or c in "_.-" else "_" for c in text) or side[:-1]
        name = next(n for n in (plain, *(f"{plain}_{i}" for i in range(1, len(tensors) + 2))) if n not in found)
        found[name] = tensors[index]
    return found


def _proto(graph: Graph, inputs: dict[str, Tensor], outputs: dict[str, Tensor]) -> onnx.ModelProto:
    def info(name: str, tensor: Tensor) -> onnx.ValueInfoProto:
        return helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(np.dtype(tensor.dtype)), tensor.shape)

    taken = set(inputs)
    shown = {}
    for name, tensor in outputs.items():
        final = name if name not in taken else f"{name}_out"
        taken.add(final)
        graph.nodes.append(helper.make_node("Identity", [graph.held(tensor)], [final], name=f"output_{final}"))
        shown[final] = tensor
    made = helper.make_graph(
        graph.nodes, "tflite", [info(*item) for item in inputs.items()], [info(*item) for item in shown.items()],
        list(graph.initializers.values()),
    )  # fmt: skip
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", 21)], ir_version=10, producer_name="tflite")


def _samples(inputs: Mapping[str, Tensor]) -> dict[str, Array]:
    """Random values: of a quantized input its whole range, of a float one a standard normal, of an integer small numbers."""
    rng = np.random.default_rng(0)
    made: dict[str, Array] = {}
    for name, tensor in inputs.items():
        shape = (_SAMPLES * tensor.shape[0], *tensor.shape[1:]) if tensor.shape else ()
        if np.dtype(tensor.dtype).kind == "f":
            made[name] = rng.normal(size=shape).astype(tensor.dtype)
        elif tensor.grid is not None:
            limits = np.iinfo(tensor.dtype)
            made[name] = rng.integers(limits.min, limits.max, shape, endpoint=True).astype(tensor.dtype)
        else:
            made[name] = rng.integers(0, 2, shape).astype(tensor.dtype)
    return made


def _expected(
    module: Any, data: bytes, inputs: Mapping[str, Tensor], outputs: Mapping[str, Tensor], samples: Mapping[str, Array], label: str
) -> list[Array]:
    """What the reference kernels make of the samples, slice by slice."""
    try:
        resolver = module.OpResolverType.BUILTIN_REF
        interpreter = module.Interpreter(model_content=data, num_threads=1, experimental_op_resolver_type=resolver)
        interpreter.allocate_tensors()
        collected: list[list[Array]] = [[] for _ in outputs]
        for start in range(_SAMPLES if all(tensor.shape for tensor in inputs.values()) else 1):
            for name, tensor in inputs.items():
                rows = tensor.shape[0] if tensor.shape else 0
                interpreter.set_tensor(tensor.index, samples[name][start * rows : (start + 1) * rows] if tensor.shape else samples[name])
            interpreter.invoke()
            for held, tensor in zip(collected, outputs.values(), strict=True):
                held.append(np.array(interpreter.get_tensor(tensor.index)))
    except (ValueError, RuntimeError) as error:
        raise ModelError(f"TFLite's interpreter refuses {label}: {' '.join(str(error).split())[:300]}") from error
    return [np.concatenate(held) if held[0].ndim else held[0] for held in collected]


def _version() -> str:
    from importlib.metadata import version

    return version("ai-edge-litert")
