"""The reference as a target."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gatewright.errors import UnsupportedOp
from gatewright.frontend.load import load
from gatewright.frontend.model import Model
from gatewright.frontend.reference import Reference
from gatewright.targets.base import Array, Artifact, Check, Executor, Feeds, Mode, Target, TargetContext


@dataclass(frozen=True)
class RefOptions:
    """The reference has no options: there is one definition."""


class RefTarget(Target):
    """Runs ``frontend/reference.py``."""

    name = "ref"
    builds_on_compile = True
    options_type = RefOptions

    def check(self, model: Model) -> Check:
        try:
            notes = Reference(model).plan.notes
        except UnsupportedOp as error:
            return Check(problems=(error,))
        return Check(notes=notes)

    def lower(self, model: Model, folder: Path, context: TargetContext) -> dict[str, Any]:
        model.save(folder / "model.onnx")
        return {}

    def load(self, artifact: Artifact, mode: Mode, context: TargetContext) -> Executor:
        return RefExecutor(load(artifact.path / "model.onnx", name=str(artifact.manifest["model"]["name"])))


class RefExecutor(Executor):
    """Any number of samples at once where the model is per-sample."""

    def __init__(self, model: Model) -> None:
        self._reference = Reference(model)
        self.inputs, self.outputs = model.inputs, model.outputs
        self.per_sample = self._reference.per_sample
        self.batch = None

    def run_native(self, feeds: Feeds) -> dict[str, Array]:
        return self._reference.run(feeds)

    def trace_native(self, feeds: Feeds) -> dict[str, Array]:
        return self._reference.run(feeds, trace=True)

    @property
    def saturations(self) -> dict[str, int]:
        return self._reference.saturations
