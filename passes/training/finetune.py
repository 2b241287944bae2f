"""``finetune``: train the weights of a model further, to win back what pruning took or to fit other data."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from gatewright.errors import PassError
from gatewright.frontend.model import Model

from ..base import PassContext, PassResult
from .options import Training
from .require import require_torch

if TYPE_CHECKING:
    from .outset import Outset


@dataclass(frozen=True)
class Finetune(Training):
    """Minimizes the loss against the labels. A quantized model is trained on its grids, whose scales stay (``qat`` learns them).

    Class numbers may stand for samples, [N] for logits [N, classes], or for positions: [N, S] for a language model's [N, S, words].
    """

    name: ClassVar[str] = "finetune"

    def run(self, model: Model, context: PassContext) -> PassResult:
        require_torch(f"pass {self.name!r}")
        from .crew import Origin
        from .loop import Trainer
        from .prepare import unpacked

        if context.data is None:
            raise PassError("finetune needs labelled data to train on", hint="give data=Dataset.load(…), or --data FILE")
        model, unstored = unpacked(model)
        begun = self.outset(model, context)
        origin = Origin(self, model, context.data, context.seed)
        outcome = Trainer(self, begun, origin, progress=context.progress, folder=context.checkpoints).fit()
        notes = (f"{unstored} weights that were stored as integers are float now",) if unstored else ()
        return PassResult(begun.net.write_back(), True, (*outcome.notes(), *notes), outcome.details())

    def outset(self, model: Model, context: PassContext, teachers: Sequence[Model] = ()) -> Outset:
        from .executor import Executor
        from .objective import Task
        from .outset import Outset

        assert context.data is not None
        task = Task.of(model, context.data, self)
        return Outset(Executor(model, freeze=self.freeze), task)
