"""Keras models and TensorFlow SavedModels, traced by TensorFlow, converted by tf2onnx, and compared with the model itself.

load(keras_model)    load("model.keras")    load("model.h5")    load("saved model's folder")

A file's layers, weights and operators are looked at before Keras or TensorFlow opens it: code of its own (Lambda, custom objects) and
whatever reads or writes files needs ``trust=True``. Files are read in a process of their own.
Axes without a size are named after their input: ``dims={"tokens.1": 16}``.
"""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from gatewright.errors import ModelError, UsageError

from . import keras_file, saved_model
from .importing import Imported, finish, need
from .limits import Limits
from .model import Model
from .naming import renamed

Array = NDArray[Any]

Input = tuple[str, list[int | None], str]
"""Name, shape with None for an axis without a size, dtype."""

EXTRA = "keras"
_OPSET = 18
"""The newest that tf2onnx writes."""
_SAMPLES = 4
_UNROLLED = 512
"""Steps of a recurrent layer that are traced one by one."""


def from_keras(
    network: Any,
    example_inputs: Any = None,
    *,
    dims: Mapping[str, int] | None = None,
    name: str | None = None,
    limits: Limits | None = None,
    action: str = "keras",
    text: str | None = None,
) -> Model:
    """A built Keras model as a canonical model. ``example_inputs``: an array, a list of them or a dictionary by the inputs' names."""
    tf, keras = need("tensorflow", EXTRA, "a Keras model"), need("keras", EXTRA, "a Keras model")
    title = name or str(network.name)
    if keras.backend.backend() != "tensorflow":
        hint = "save it with model.save('model.keras') and load that file"
        raise ModelError(f"{title} runs on Keras' backend {keras.backend.backend()!r}, its importer needs tensorflow", hint=hint)
    if not network.built or not network.inputs:
        raise ModelError(f"Keras model {title} is not built, so the shapes of its inputs are not known", hint="call it on data once")
    named = [(tensor.name.partition(":")[0], list(tensor.shape), str(tensor.dtype)) for tensor in network.inputs]
    inputs, dims = _bound(named, dims)
    vocabulary = min((layer.input_dim for layer in _layers(network) if hasattr(layer, "embeddings")), default=2)

    def call(*tensors: Any) -> Any:
        given = tensors[0] if len(tensors) == 1 else list(tensors)
        if isinstance(getattr(network, "input", None), dict):
            given = dict(zip(network.input, tensors, strict=True))
        return network(given, training=False)

    # A Sequential has one output, which is its last layer's.
    outputs = [str(output) for output in getattr(network, "output_names", [network.layers[-1].name])]
    source = (action, text or title, f"Keras {keras.__version__}")
    with _unrolled(network):
        imported = traced(tf, call, inputs, outputs, example_inputs, dims, source, vocabulary)
    return finish(imported, dims=dims, name=title, limits=limits)


def read_file(path: str, dims: Mapping[str, int], name: str | None, limits: Limits, trust: bool = False) -> Model:
    """A .keras or .h5 file, or the folder of a SavedModel, in this process."""
    file = Path(path)
    if file.is_dir():
        return _read_saved_model(file, dims, name, limits, trust)
    keras_file.check(file, limits, trust)
    keras = need("keras", EXTRA, file.name)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            network = keras.models.load_model(str(file), compile=False, safe_mode=not trust)
        except Exception as error:
            raise ModelError(f"Keras {keras.__version__} cannot open {file.name}: {_line(error)}") from error
    return from_keras(network, dims=dims, name=name or file.stem, limits=limits, text=file.name)


def _read_saved_model(folder: Path, dims: Mapping[str, int], name: str | None, limits: Limits, trust: bool) -> Model:
    tf = need("tensorflow", EXTRA, f"the SavedModel {folder.name}")
    saved_model.check(folder, limits, trust)
    try:
        loaded = tf.saved_model.load(str(folder))
        signatures = dict(loaded.signatures)
    except Exception as error:
        raise ModelError(f"TensorFlow {tf.__version__} cannot open {folder.name}: {_line(error)}") from error
    if not signatures:
        raise ModelError(f"{folder.name} has no signature to run", hint="export it with one: model.export(folder), tf.saved_model.save(…)")
    function = signatures.get("serving_default") or next(iter(signatures.values()))
    specs = function.structured_input_signature[1]
    names = list(specs)
    named = [(key, [None] if specs[key].shape.rank is None else specs[key].shape.as_list(), specs[key].dtype.name) for key in names]
    inputs, dims = _bound(named, dims)
    outputs = sorted(function.structured_outputs)

    def call(*tensors: Any) -> Any:
        made = function(**dict(zip(names, tensors, strict=True)))
        return [made[key] for key in outputs]

    source = ("savedmodel", folder.name, f"TensorFlow {tf.__version__}")
    imported = traced(tf, call, inputs, outputs, None, dims, source, 2)
    return finish(imported, dims=dims, name=name or folder.name, limits=limits)


def traced(
    tf: Any,
    call: Callable[..., Any],
    inputs: Sequence[Input],
    outputs: Sequence[str],
    example_inputs: Any,
    dims: Mapping[str, int] | None,
    source: tuple[str, str, str],
    vocabulary: int,
) -> Imported:
    """``call`` on tensors of ``inputs`` (name, shape with None, dtype) as ONNX with its answers. ``source``: action, text, framework."""
    converter = need("tf2onnx", EXTRA, source[1])
    specs = [tf.TensorSpec(shape, dtype, name=name) for name, shape, dtype in inputs]
    samples = _samples(inputs, example_inputs, (dims or {}).get("batch", _SAMPLES), vocabulary)
    _quiet(converter)
    try:
        with tf.device("cpu"):
            expected = [np.asarray(tensor) for tensor in tf.nest.flatten(call(*map(tf.constant, samples.values())))]
            function = tf.function(_inlined(tf, call), input_signature=specs, autograph=False)
            proto, _ = converter.convert.from_function(function, input_signature=specs, opset=_OPSET)
            _hold(proto, function.get_concrete_function())
    except Exception as error:
        hint = "layers that TensorFlow cannot trace or ONNX has no operator for must be replaced"
        raise ModelError(f"tf2onnx cannot convert {source[1]}: {_line(error)}", hint=hint) from error
    _without_erfc(proto)
    _require_plain(proto, source[1])
    found = [output.name for output in proto.graph.output]
    wanted = list(outputs) if len(set(outputs)) == len(found) else [f"output_{i}" for i in range(len(found))]
    names = {old: _plain(new) for old, new in zip(found, wanted, strict=True)}
    names |= {tensor.name: spec.name for tensor, spec in zip(proto.graph.input, specs, strict=False) if tensor.name != spec.name}
    proto = renamed(proto, names)
    _name_axes(proto)
    action, text, framework = source
    return Imported(proto, action, text, framework, samples, expected, per_sample=True)


def _inlined(tf: Any, call: Callable[..., Any]) -> Callable[..., Any]:
    """``call`` whose own compiled functions (Keras has some for grouped convolutions) become part of the graph that is traced."""

    def traced_call(*tensors: Any) -> Any:
        before = tf.config.functions_run_eagerly()
        tf.config.run_functions_eagerly(True)
        try:
            return call(*tensors)
        finally:
            tf.config.run_functions_eagerly(before)

    return traced_call


def _hold(proto: onnx.ModelProto, concrete: Any) -> None:
    """Tensors that layers hold outside of variables (Normalization its mean), which tf2onnx leaves as inputs, become constants."""
    captured = {inner.name: outer for outer, inner in concrete.graph.captures if inner.dtype.name != "resource"}
    for given in [tensor for tensor in proto.graph.input if tensor.name in captured]:
        proto.graph.initializer.append(onnx.numpy_helper.from_array(np.asarray(captured[given.name]), given.name))
        proto.graph.input.remove(given)


def _bound(inputs: Sequence[Input], dims: Mapping[str, int] | None) -> tuple[list[Input], dict[str, int]]:
    """Inputs with plain names and a size for every axis but the first, and what is left of ``dims``. Recurrent layers need to know it."""
    left = dict(dims or {})
    made: list[Input] = []
    for name, shape, dtype in inputs:
        name, sizes = _plain(name), list(shape)
        for axis, size in enumerate(shape):
            if size is None and axis:
                key = f"{name}.{axis}"
                if key not in left:
                    raise ModelError(f"axis {axis} of input {name!r} has no size", hint=f"bind it: dims={{'{key}': 16}}, --dims {key}=16")
                sizes[axis] = left.pop(key)
        made.append((name, sizes, dtype))
    return made, left


def _samples(inputs: Sequence[Input], given: Any, count: int, vocabulary: int) -> dict[str, Array]:
    """The user's examples, or random numbers of the inputs' shapes: standard normal floats, integers below ``vocabulary``."""
    names = [name for name, _, _ in inputs]
    if given is not None:
        held = (
            given if isinstance(given, Mapping) else dict(zip(names, given if isinstance(given, list | tuple) else [given], strict=False))
        )
        if set(held) != set(names):
            raise UsageError(f"example_inputs are for {', '.join(map(str, held))}, the model's inputs are {', '.join(names)}")
        return {name: np.asarray(held[name], dtype) for name, _, dtype in inputs}
    rng = np.random.default_rng(0)
    made: dict[str, Array] = {}
    for name, shape, dtype in inputs:
        sizes, kind = [size or count for size in shape], np.dtype(dtype).kind
        made[name] = (rng.normal(size=sizes) if kind == "f" else rng.integers(0, max(vocabulary, 2), sizes)).astype(dtype)
    return made


def _name_axes(proto: onnx.ModelProto) -> None:
    """The first axis is the batch, by which name the user binds it."""
    for tensor in proto.graph.input:
        for dim in tensor.type.tensor_type.shape.dim[:1]:
            if not dim.dim_value:
                dim.dim_param = "batch"


def _without_erfc(proto: onnx.ModelProto) -> None:
    """The exact GELU is written with erfc(x), which tf2onnx leaves as it is: 1 − erf(x)."""
    found = [(at, node) for at, node in enumerate(proto.graph.node) if node.op_type == "Erfc"]
    for at, node in reversed(found):
        one = onnx.helper.make_node("Constant", [], [f"{node.output[0]}_one"], value_float=1.0)
        inner = onnx.helper.make_node("Erf", list(node.input), [f"{node.output[0]}_erf"])
        outer = onnx.helper.make_node("Sub", [one.output[0], inner.output[0]], list(node.output), name=node.name)
        node.CopyFrom(outer)
        for new in (inner, one):
            proto.graph.node.insert(at, new)


def _require_plain(proto: onnx.ModelProto, text: str) -> None:
    """tf2onnx leaves what it does not know as an operator of its own domain."""
    for node in proto.graph.node:
        if node.domain not in ("", "ai.onnx", "ai.onnx.ml") or not onnx.defs.has(node.op_type, node.domain):
            hint = "replace the layer that it comes from, or compute it before the model"
            raise ModelError(f"{text}: TensorFlow's op {node.op_type!r} (node {node.name!r}) has no form in ONNX", hint=hint)


@contextlib.contextmanager
def _unrolled(network: Any) -> Iterator[None]:
    """Recurrent layers step by step while they are traced: TensorFlow's loops hide how often they run. Longer ones stay loops."""
    changed = []
    for layer in network._flatten_layers():
        steps = getattr(getattr(layer, "input_spec", None), "shape", None)
        if getattr(layer, "unroll", None) is False and (steps is None or (steps[1] or 0) <= _UNROLLED):
            layer.unroll = True
            changed.append(layer)
    try:
        yield
    finally:
        for layer in changed:
            layer.unroll = False


def _layers(network: Any) -> list[Any]:
    return [layer for layer in network._flatten_layers() if hasattr(layer, "input_dim")]


def _plain(name: str) -> str:
    """Letters, digits and what TensorFlow takes in a name."""
    text = "".join(c if (c.isalnum() and c.isascii()) or c in "_.-" else "_" for c in name)
    return text if text[:1].isalnum() else f"x{text}"


def _quiet(converter: Any) -> None:
    """tf2onnx tells of its progress through the root of its loggers."""
    logging.getLogger(converter.__name__).setLevel(logging.CRITICAL)
    warnings.filterwarnings("ignore", module=converter.__name__)


def _line(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:400]}"
