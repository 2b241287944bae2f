"""ONNX's Backend API (``onnx.backend.base``) for every target: how ONNX's own tests, and tools made for that API, run the project.

    import gatewright.backend as backend
    prepared = backend.prepare(onnx.load("model.onnx"))        # on target cpu
    outputs = prepared.run([x])
    backend.of("cpu{fallback=none}").run_model(model, [x])     # on another one

Three ways lead from a file to a run, tried in this order, and ``prepared.notes`` says which was taken and why:

1. The model as it is, compiled for the target; where the target falls back, parts of it run on other engines (partition.py).
2. Where a shape, or what has to be a constant for the target, hangs on an input: compiled for the values at hand, once for each
   set of values. The first input always stays one. First integers are bound (shapes, axes, indices), then all but the first input.
3. Where no canonical form exists (shapes that depend on data, sequences) and the target falls back: the whole file on ONNX Runtime,
   or on onnx's reference evaluator.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper
from onnx.backend.base import Backend, BackendRep, Device, DeviceType

from gatewright.errors import DataError, GatewrightError, ModelError, UnsupportedError, UsageError
from gatewright.frontend.load import load
from gatewright.frontend.model import Model
from gatewright.targets.base import Executor

from . import partition
from .driver import compile as compile_model
from .targetspec import resolve

Array = NDArray[Any]
Call = Callable[[Mapping[str, Any]], list[Any]]

BOUND_ELEMENTS = 1024
"""An integer tensor larger than this is data, not a shape."""


class TargetBackend(Backend):
    """The API for one target; ``of`` makes those of other targets."""

    target: ClassVar[str] = "cpu"

    @classmethod
    def prepare(cls, model: onnx.ModelProto, device: str = "CPU", **kwargs: Any) -> Prepared:
        """The model ready to run, compiled at once where that needs no input's value. Raises GatewrightError."""
        if not cls.supports_device(device):
            raise UsageError(f"target {cls.target} is no backend for device {device!r}", hint="device='CPU'")
        return Prepared(model, cls.target)

    @classmethod
    def run_node(cls, node: onnx.NodeProto, inputs: Any, device: str = "CPU", outputs_info: Any = None, **kwargs: Any) -> tuple[Any, ...]:
        """One node on ``inputs``, which are in its order; ``opset_version`` among ``kwargs``, the newest by default."""
        super().run_node(node, inputs, device, outputs_info, **kwargs)
        names = [name for name in node.input if name]
        arrays = dict(zip(names, map(np.asarray, inputs), strict=True))
        given = [onnx.helper.make_tensor_value_info(n, onnx.helper.np_dtype_to_tensor_dtype(a.dtype), a.shape) for n, a in arrays.items()]
        wanted = [onnx.helper.make_empty_tensor_value_info(name) for name in node.output if name]
        opset = int(kwargs.get("opset_version", onnx.defs.onnx_opset_version()))
        imports = [onnx.helper.make_opsetid("", opset)]
        if node.domain:
            known = [schema.since_version for schema in onnx.defs.get_all_schemas_with_history() if schema.domain == node.domain]
            imports.append(onnx.helper.make_opsetid(node.domain, max(known, default=1)))
        graph = onnx.helper.make_graph([node], "node", given, wanted)
        model = onnx.shape_inference.infer_shapes(onnx.helper.make_model(graph, opset_imports=imports))
        return cls.prepare(model, device).run(list(arrays.values()))

    @classmethod
    def is_compatible(cls, model: onnx.ModelProto, device: str = "CPU", **kwargs: Any) -> bool:
        """False where ``prepare`` is known to refuse the model."""
        try:
            cls.prepare(model, device)
        except GatewrightError:
            return False
        return True

    @classmethod
    def supports_device(cls, device: str) -> bool:
        """A target is one device, chosen by its name; to this API it is this machine, on which emulators run too."""
        try:
            return bool(Device(device).type == DeviceType.CPU)
        except AttributeError:
            return False


def of(target: str) -> type[TargetBackend]:
    """The backend of another target: ``of("ref")``, ``of("cpu{fallback=none}")``. Raises UsageError for one that does not exist."""
    resolve(target)
    return type("TargetBackend", (TargetBackend,), {"target": target, "__doc__": f"The API for {target}."})


@dataclass(frozen=True)
class _Ready:
    """Something that runs the model."""

    call: Call
    notes: tuple[str, ...]


class Prepared(BackendRep):
    """A model on a target. ``notes``: what differs from "the whole model, as it is, on that target"."""

    def __init__(self, model: onnx.ModelProto, target: str) -> None:
        self._proto, self._target, self._bound = model, target, resolve(target)
        initializers = {tensor.name for tensor in model.graph.initializer}
        self._inputs = [value.name for value in model.graph.input if value.name not in initializers]
        self._outputs = [value.name for value in model.graph.output]
        self.notes: tuple[str, ...] = ()
        self._for_values: dict[str, _Ready] = {}
        self._problem: GatewrightError | None = None
        self._ready = self._as_it_is()
        if self._problem is not None and len(self._inputs) < 2:
            self._ready = self._whole_file(self._problem)

    def run(self, inputs: Any, **kwargs: Any) -> tuple[Any, ...]:
        """The outputs in the file's order. ``inputs``: arrays in the file's order, or by name. Raises GatewrightError."""
        feeds = self._feeds(inputs)
        if self._ready is None:
            self._ready_for(feeds)
        ready = self._ready or self._ready_for(feeds)
        self.notes = ready.notes
        return tuple(ready.call(feeds))

    def _feeds(self, inputs: Any) -> dict[str, Any]:
        if isinstance(inputs, Mapping):
            return dict(inputs)
        given = list(inputs) if isinstance(inputs, list | tuple) else [inputs]
        if len(given) != len(self._inputs):
            raise DataError(f"the model takes {len(self._inputs)} inputs ({', '.join(self._inputs)}), got {len(given)}")
        return dict(zip(self._inputs, given, strict=True))

    def _as_it_is(self) -> _Ready | None:
        try:
            return self._compiled(load(self._proto), ())
        except (ModelError, UnsupportedError) as error:
            self._problem = error
            return None

    def _ready_for(self, feeds: Mapping[str, Any]) -> _Ready:
        """Compiled for the values of ``feeds``, or the whole file elsewhere."""
        assert self._problem is not None
        for names in self._bindings(feeds):
            sha = hashlib.sha256()
            for name in names:
                sha.update(f"{name} {feeds[name].dtype} {feeds[name].shape} ".encode() + np.ascontiguousarray(feeds[name]).tobytes())
            key = sha.hexdigest()
            if key in self._for_values:
                return self._for_values[key]
            try:
                model = load(_with_constants(self._proto, {name: feeds[name] for name in names}))
                ready = self._compiled(model, names)
            except (ModelError, UnsupportedError) as error:
                if isinstance(error, UnsupportedError) or not isinstance(self._problem, UnsupportedError):
                    self._problem = error
                continue
            return self._for_values.setdefault(key, ready)
        self._ready = self._whole_file(self._problem)
        return self._ready

    def _bindings(self, feeds: Mapping[str, Any]) -> list[tuple[str, ...]]:
        """Which inputs to make constants, from few to many; never the first."""
        others = [name for name in self._inputs[1:] if isinstance(feeds.get(name), np.ndarray)]
        shapes = [name for name in others if feeds[name].dtype.kind in "iub" and feeds[name].size <= BOUND_ELEMENTS]
        return list(dict.fromkeys(tuple(names) for names in (shapes, others) if names))

    def _compiled(self, model: Model, bound: Sequence[str]) -> _Ready:
        problems = partition.check(model, self._bound).problems
        if problems:
            raise problems[0]
        artifact = compile_model(model, self._target)
        executor = artifact.load()
        notes = [f"compiled for the values of {', '.join(bound)}"] if bound else []
        shared = artifact.manifest["target"]["notes"] if artifact.parts else ()
        return _Ready(_executing(executor, self._outputs), (*notes, *shared))

    def _whole_file(self, problem: GatewrightError) -> _Ready:
        """On ONNX Runtime or onnx's reference evaluator. Raises ``problem`` where the target does not fall back."""
        if not self._bound.falls_back:
            if isinstance(problem, UnsupportedError):
                raise problem
            raise UnsupportedError(f"{self._target} takes models of known shapes: {problem.message}", hint=problem.hint) from None
        engines = [("ONNX Runtime", self._on_onnxruntime()), ("onnx's reference evaluator", self._on_reference())]
        if any(node.op_type in partition.BETTER_EXACT for node in self._proto.graph.node):
            engines.reverse()
        calls = [(name, call) for name, call in engines if call is not None]
        if not calls:
            raise problem

        def call(feeds: Mapping[str, Any]) -> list[Any]:
            for name, one in calls:
                self.notes = (f"the whole model runs on {name}: {problem.message}",)
                try:
                    return one(feeds)
                except Exception:  # an engine may refuse only when it runs, in words of its own
                    if name == calls[-1][0]:
                        raise
            raise problem

        return _Ready(call, ())

    def _on_onnxruntime(self) -> Call | None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4
        proto = onnx.ModelProto()
        proto.CopyFrom(self._proto)
        try:
            session = onnxruntime.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
        except Exception:
            # Whatever it lacks, the next engine may have.
            return None
        return lambda feeds: list(session.run(self._outputs, dict(feeds)))

    def _on_reference(self) -> Call | None:
        from onnx.reference import ReferenceEvaluator

        try:
            session = ReferenceEvaluator(self._proto)
        except Exception:
            return None
        return lambda feeds: list(session.run(self._outputs, dict(feeds)))


def _executing(executor: Executor, outputs: Sequence[str]) -> Call:
    names = [info.name for info in executor.inputs]

    def call(feeds: Mapping[str, Any]) -> list[Array]:
        found = executor.run({name: np.asarray(feeds[name]) for name in names})
        return [found[name] for name in outputs]

    return call


def _with_constants(proto: onnx.ModelProto, values: Mapping[str, Array]) -> onnx.ModelProto:
    """The model in which those inputs are constants."""
    bound = onnx.ModelProto()
    bound.CopyFrom(proto)
    kept = [value for value in bound.graph.input if value.name not in values]
    del bound.graph.input[:]
    bound.graph.input.extend(kept)
    bound.graph.initializer.extend(numpy_helper.from_array(np.asarray(array), name) for name, array in values.items())
    return bound


prepare = TargetBackend.prepare
run_model = TargetBackend.run_model
run_node = TargetBackend.run_node
supports_device = TargetBackend.supports_device
is_compatible = TargetBackend.is_compatible
