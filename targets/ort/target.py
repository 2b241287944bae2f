"""ONNX Runtime as a target."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gatewright.errors import ModelError, UnsupportedOp, UsageError
from gatewright.frontend.batch import batch_reason
from gatewright.frontend.load import load
from gatewright.frontend.model import Model
from gatewright.targets.base import Array, Artifact, Check, Executor, Feeds, Mode, Target, TargetContext

from .defects import defects
from .legalize import for_onnxruntime


@dataclass(frozen=True)
class OrtOptions:
    """``exact``: graph optimizations off, so that no fused int8 kernel saturates (slow). ``threads``: None is every core."""

    exact: bool = False
    threads: int | None = None

    def __post_init__(self) -> None:
        if self.threads is not None and self.threads < 1:
            raise UsageError(f"option 'threads' of ort is {self.threads}; it takes a whole number from 1")


class OrtTarget(Target):
    """ONNX Runtime's CPU provider on this machine."""

    name = "ort"
    builds_on_compile = True
    options_type = OrtOptions
    device_kinds = ("cpu",)

    def check(self, model: Model) -> Check:
        from gatewright.frontend.ortrun import OrtSession

        narrow = [info for info in (*model.inputs, *model.outputs) if info.dtype.name in ("int4", "uint4")]
        if narrow:
            rule = f"{narrow[0].name!r} is of type {narrow[0].dtype}, which it neither takes nor gives"
            return Check(problems=(UnsupportedOp(node=model.name, op="model", target="ort", rule=rule, hint="run it on ref"),))
        wrong = defects(model.graph)
        if wrong:
            return Check(problems=wrong)
        try:
            # With the optimizations that it will run with: some make nodes of types that have no kernel.
            OrtSession(self.legalize(model), optimize=not self.options.exact)
        except ModelError as error:
            return Check(problems=(_refusal(error, model),))
        return Check()

    def legalize(self, model: Model) -> Model:
        return for_onnxruntime(model)

    def lower(self, model: Model, folder: Path, context: TargetContext) -> dict[str, Any]:
        for problem in self.check(model).problems:
            raise problem
        model.save(folder / "model.onnx")
        return {}

    def load(self, artifact: Artifact, mode: Mode, context: TargetContext) -> Executor:
        # Loading brings the canonical form back, with what ONNX Runtime cannot take.
        model = for_onnxruntime(load(artifact.path / "model.onnx", name=str(artifact.manifest["model"]["name"])))
        return OrtExecutor(model, self.options)

    def default_mode(self, artifact: Artifact) -> Mode:
        return "device"

    def tool_versions(self) -> dict[str, str]:
        from importlib.metadata import version

        return {"onnxruntime": version("onnxruntime")}


def _refusal(error: ModelError, model: Model) -> UnsupportedOp:
    """What ONNX Runtime said, by the node that it names ("… implementation for Op(21) node with name 'n'")."""
    named = {node.name or "": node.op_type for node in model.graph}
    node = next((name for name in re.findall(r"'([^']+)'", error.message) if name in named), "")
    said = re.search(r"implementation for (\w+)", error.message)
    op = named.get(node) or (said.group(1) if said else "model")
    return UnsupportedOp(node=node or model.name, op=op, target="ort", rule=error.message, hint="run it on ref")


class OrtExecutor(Executor):
    """A session whose batch is the model's own."""

    mode: Mode = "device"

    def __init__(self, model: Model, options: OrtOptions) -> None:
        from gatewright.frontend.ortrun import OrtSession

        self.inputs, self.outputs = model.inputs, model.outputs
        self.per_sample = batch_reason(model) is None
        self.batch = self.inputs[0].shape[0] if self.per_sample and self.inputs and self.inputs[0].shape else None
        self._model, self._options = model, options
        self._session = OrtSession(model, optimize=not options.exact, threads=options.threads)
        self._tracer: OrtSession | None = None

    def run_native(self, feeds: Feeds) -> dict[str, Array]:
        return self._session.run(feeds)

    def trace_native(self, feeds: Feeds) -> dict[str, Array]:
        """From a second session, in which every inner tensor is an output; fusions that this prevents do not happen there."""
        from gatewright.frontend.ortrun import OrtSession

        if self._tracer is None:
            options = self._options
            self._tracer = OrtSession(_with_inner_outputs(self._model), optimize=not options.exact, threads=options.threads)
        return self._tracer.run(feeds)


def _with_inner_outputs(model: Model) -> Model:
    """Every tensor as a graph output; 4-bit ones apart, which ONNX Runtime does not hand out."""
    edited = model.copy_ir()
    present = {value.name for value in edited.graph.outputs}
    for node in edited.graph:
        for value in node.outputs:
            handed_out = value.dtype is not None and value.shape is not None and value.dtype.bitwidth >= 8
            if value.name and handed_out and value.name not in present:
                edited.graph.outputs.append(value)
    return model.with_ir(edited)
