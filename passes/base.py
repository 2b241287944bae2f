"""What a pass is: a frozen dataclass whose fields are its options, with a name, an effect and one method.

@dataclass(frozen=True)
class Fold(Pass):
    name: ClassVar[str] = "fold"
    effect: ClassVar[Effect] = "exact"
    def run(self, model: Model, context: PassContext) -> PassResult: ...
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, Literal

from gatewright.frontend.data import Dataset
from gatewright.frontend.model import Model
from gatewright.progress import Progress, silent
from gatewright.spec import describe

Effect = Literal["exact", "lossy"]


@dataclass(frozen=True)
class PassContext:
    """What a pass may use besides the model: calibration data, a seed, somebody to tell about progress."""

    data: Dataset | None = None
    seed: int = 0
    progress: Progress = silent
    checkpoints: Path | None = None
    """Folder where a pass that takes long (training) keeps where it is, so that a killed run goes on; None: nowhere."""


@dataclass(frozen=True)
class PassResult:
    """The model after the pass, whether it was changed, and what a user should know about it."""

    model: Model
    modified: bool
    notes: tuple[str, ...] = ()
    details: dict[str, object] = field(default_factory=dict)
    """JSON values that go into the model's history beside the pass's text (calibration ranges, sparsity per layer …)."""


@dataclass(frozen=True)
class Pass(ABC):
    """A rewrite of the model. Its dataclass fields are its options, in Python and in pipeline text alike."""

    name: ClassVar[str]
    effect: ClassVar[Effect]
    needs_data: ClassVar[bool] = False
    data_for: ClassVar[str] = "data to calibrate on"
    """What it needs, in words."""

    @abstractmethod
    def run(self, model: Model, context: PassContext) -> PassResult:
        """The rewritten model; ``model`` itself is left as it was.

        Does not append to the history: ``Pipeline.run`` does, from ``str(self)`` and the result's notes and details.
        """

    def __str__(self) -> str:
        return describe(self, self.name)
