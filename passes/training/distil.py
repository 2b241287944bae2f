"""``distil``: a student learns what its teachers think of each sample, not only which answer is right.

    L = α·T²·KL(softmax(z_t/T) ‖ softmax(z_s/T)) + (1 − α)·CE(y, z_s)        (Hinton, Vinyals, Dean 2015, arXiv:1503.02531)

Several teachers: the mean of their softened outputs. Inner tensors may be matched too (Romero et al. 2015, arXiv:1412.6550).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal

from gatewright.errors import PassError, UsageError
from gatewright.frontend.model import Model

from .. import rewrite
from ..base import PassContext, PassResult
from .options import Training
from .require import require_torch

if TYPE_CHECKING:
    from .executor import Executor
    from .outset import Outset


@dataclass(frozen=True)
class Distil(Training):
    """The student is the model itself (pruned, quantized), a smaller copy of it (``width``, ``depth``), or another model.

    A quantized student is trained on its grids, its scales learned, as by ``qat``. With alpha=1 no labels are needed.
    """

    name: ClassVar[str] = "distil"

    teacher: tuple[str, ...] = ()
    """Files of the teachers. None: the model itself teaches a smaller copy."""
    temperature: float = 4.0
    alpha: float = 0.7
    """The teachers' share of the loss."""
    student: str = "self"
    """self, or the file of the model that learns."""
    width: float = 1.0
    """Of a smaller copy: this fraction of the channels."""
    depth: float = 1.0
    """Of a smaller copy: this fraction of the blocks that can be left out."""
    init: Literal["kept", "random"] = "kept"
    """The student's weights to begin with: as they are, or drawn afresh."""
    features: tuple[str, ...] = ()
    """Inner tensors to match, student:teacher (of the first teacher); where channels differ, through a learned projection."""
    beta: float = 1.0
    """Weight of the features' mean squared error."""
    scales: Literal["learned", "fixed"] = "learned"
    scale_lr: float = 0.01

    def __post_init__(self) -> None:
        super().__post_init__()
        self._within("temperature", 0 < self.temperature <= 1000, "more than 0")
        self._within("alpha", 0 <= self.alpha <= 1, "0 to 1")
        self._within("width", 0 < self.width <= 1, "more than 0, up to 1")
        self._within("depth", 0 < self.depth <= 1, "more than 0, up to 1")
        self._within("beta", 0 <= self.beta < float("inf"), "0 or more")
        self._within("scale_lr", 0 < self.scale_lr < 10, "more than 0")
        for pair in self.features:
            if pair.count(":") != 1:
                raise UsageError(f"option 'features' of pass 'distil' has {pair!r}", hint="student:teacher, names of inner tensors")

    def run(self, model: Model, context: PassContext) -> PassResult:
        require_torch(f"pass {self.name!r}")
        from gatewright.frontend.load import load

        teachers = [load(Path(path)) for path in self.teacher]
        same = self.width == 1 and self.depth == 1 and self.init == "kept" and self.student == "self"
        if not teachers and same:
            raise PassError("a model learns nothing from itself", hint="teacher=FILE, or width= or depth= for a smaller copy of the model")
        return self.taught(model, teachers or [model], context)

    def taught(self, model: Model, teachers: Sequence[Model], context: PassContext) -> PassResult:
        """``run`` with teachers that are loaded already."""
        from .crew import Origin
        from .loop import Trainer

        if context.data is None:
            raise PassError("distil needs data to learn from", hint="give data=Dataset.load(…), or --data FILE")
        student, notes = self.begin(model, context.seed)
        begun = self.outset(student, context, teachers)
        trainer = Trainer(
            self, begun, Origin(self, student, context.data, context.seed, teachers), progress=context.progress,
            folder=context.checkpoints, key=(student.digest, *(t.digest for t in teachers)),
            scale_lr=self.scale_lr if self.scales == "learned" else 0.0,
        )  # fmt: skip
        outcome = trainer.fit()
        return PassResult(begun.net.write_back(), True, (*notes, *outcome.notes()), outcome.details())

    def outset(self, model: Model, context: PassContext, teachers: Sequence[Model] = ()) -> Outset:
        """``model``: the student as it begins."""
        from .lesson import Lesson
        from .outset import Outset

        assert context.data is not None
        net = self._executor(model)
        lesson = Lesson.of(self, net, teachers, context.data, context.seed)
        return Outset(net, lesson, lesson.projections)

    def begin(self, model: Model, seed: int = 0) -> tuple[Model, tuple[str, ...]]:
        """The student as it begins to learn, and what was done to make it."""
        from gatewright.frontend.load import load

        from .student import Student

        if self.student != "self":
            model = load(Path(self.student)).renamed(model.name)
        begun = Student(self.width, self.depth, self.init).run(model, PassContext(seed=seed))
        return begun.model, begun.notes

    def _executor(self, student: Model) -> Executor:
        from .executor import Executor
        from .prepare import separate_scales

        if not rewrite.is_quantized(student.graph):
            return Executor(student, freeze=self.freeze)
        return Executor(separate_scales(student), freeze=self.freeze, learn_scales=True)
