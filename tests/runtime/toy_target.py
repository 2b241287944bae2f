"""A target whose behaviour a test chooses: slow, failing, needing a tool, and one that takes only quantized models."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gatewright.errors import DoesNotFit, ToolFailed, ToolMissing, UnsupportedOp
from gatewright.frontend.integer import IntegerOp, plan
from gatewright.frontend.load import load
from gatewright.frontend.model import Model
from gatewright.hw.measurement import Measurement
from gatewright.targets.base import Artifact, Check, Executor, Mode, Target, TargetContext
from gatewright.targets.ref.target import RefExecutor

MADE: list[str] = []
"""The names of models that were lowered, in this process."""


@dataclass(frozen=True)
class ToyOptions:
    """``does``: what happens in ``lower``. ``seconds``: how long it takes."""

    does: str = "work"
    seconds: float = 0.0
    off: float = 0.0


class ToyTarget(Target):
    """Runs the reference, after whatever the options say."""

    name = "toy"
    builds_on_compile = False
    options_type = ToyOptions

    def check(self, model: Model) -> Check:
        short = ("LUT: needs 9, toy has 1",) if self.options.does == "shortfall" else ()
        return Check(figures={"latency": Measurement(1e-6, "s", "estimated"), "LUT": Measurement(7, "LUT", "estimated")}, shortfalls=short)

    def lower(self, model: Model, folder: Path, context: TargetContext) -> dict[str, Any]:
        (folder / "first").write_text("half", encoding="utf-8")
        time.sleep(self.options.seconds)
        match self.options.does:
            case "refuse":
                raise UnsupportedOp(node="n", op="Relu", target="toy", rule="it is refused for the test")
            case "overflow":
                raise DoesNotFit("the model needs 9 LUT, toy has 1")
            case "tool":
                raise ToolMissing("toy needs hammer", hint="buy one")
            case "break":
                (folder / "work.log").write_text("the last words", encoding="utf-8")
                raise ToolFailed(f"hammer failed; the whole log: {folder / 'work.log'}")
            case "crash":
                raise ZeroDivisionError("a bug")
            case "interrupt":
                raise KeyboardInterrupt
        MADE.append(model.name)
        model.save(folder / "model.onnx")
        return {"toy": True}

    def build(self, artifact: Artifact, folder: Path, context: TargetContext) -> dict[str, Any]:
        if self.options.does == "nobuild":
            raise ToolFailed("the hammer broke")
        (folder / "built.bin").write_bytes(b"bits")
        return {"bits": 4}

    def load(self, artifact: Artifact, mode: Mode, context: TargetContext) -> Executor:
        return ToyExecutor(load(artifact.path / "model.onnx"), self.options)


class ToyExecutor(RefExecutor):
    """The reference, off by ``off`` in every output value of the last sample."""

    def __init__(self, model: Model, options: ToyOptions) -> None:
        super().__init__(model)
        self._off = options.off

    def run_native(self, feeds: Any) -> dict[str, Any]:
        outputs = super().run_native(feeds)
        if self._off:
            for array in outputs.values():
                array[-1] += self._off
        return outputs

    def trace_native(self, feeds: Any) -> dict[str, Any]:
        values = super().trace_native(feeds)
        if self._off:
            for info in self.outputs:
                values[info.name] = values[info.name] + np_like(values[info.name], self._off)
        return values


def np_like(array: Any, value: float) -> Any:
    return array.dtype.type(value)


class QuantizedToy(ToyTarget):
    """Takes only quantized models."""

    name = "qtoy"
    quantization = "fuse,quantize{bits=8,grid=pow2}"


class BuiltToy(ToyTarget):
    """Ends built, as a target whose compiler is a library does."""

    name = "built"
    builds_on_compile = True


@dataclass(frozen=True)
class PickyOptions:
    """``refuses``: operators, or kinds of integer operations, that it does not run; "half": every second step; "integers": of those
    the integer ones."""

    refuses: tuple[str, ...] = ()
    fallback: bool = True


class PickyTarget(ToyTarget):
    """The reference, for a choice of operators; what it refuses falls back."""

    name = "picky"
    builds_on_compile = True
    options_type = PickyOptions

    @property
    def falls_back(self) -> bool:
        return bool(self.options.fallback)

    def alone(self) -> Target:
        return PickyTarget(self.device, PickyOptions(self.options.refuses, fallback=False))

    def check(self, model: Model) -> Check:
        found = []
        for number, step in enumerate(plan(model).steps):
            node = (step.node or step.nodes[-1]) if isinstance(step, IntegerOp) else step.node
            words = {step.kind, step.op} if isinstance(step, IntegerOp) else {node.op_type}
            half = "half" in self.options.refuses or ("integers" in self.options.refuses and isinstance(step, IntegerOp))
            if words & set(self.options.refuses) or (half and number % 2 and self.falls_back):
                found.append(UnsupportedOp(node=node.name or "", op=node.op_type, target="picky", rule="it is too picky"))
        return Check(problems=tuple(found))

    def lower(self, model: Model, folder: Path, context: TargetContext) -> dict[str, Any]:
        for problem in self.check(model).problems:
            raise problem
        model.save(folder / "model.onnx")
        return {}

    def build(self, artifact: Artifact, folder: Path, context: TargetContext) -> dict[str, Any]:
        return {}

    def load(self, artifact: Artifact, mode: Mode, context: TargetContext) -> Executor:
        return RefExecutor(load(artifact.path / "model.onnx"))
