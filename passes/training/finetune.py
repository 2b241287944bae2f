"""``finetune``: train the weights of a model further, to win back what pruning took or to fit other data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from gatewright.errors import PassError
from gatewright.frontend.model import Model

from ..base import PassContext, PassResult
from .options import Training
from .require import require_torch


@dataclass(frozen=True)
class Finetune(Training):
    """Minimizes the loss against the labels. A quantized model is trained on its grids, whose scales stay (``qat`` learns them)."""

    name: ClassVar[str] = "finetune"

    def run(self, model: Model, context: PassContext) -> PassResult:
        require_torch(f"pass {self.name!r}")
        from .executor import Executor
        from .loop import Trainer
        from .objective import Task
        from .prepare import unpacked

        if context.data is None:
            raise PassError("finetune needs labelled data to train on", hint="give data=Dataset.load(…), or --data FILE")
        model, unstored = unpacked(model)
        task = Task.of(model, context.data, self)
        net = Executor(model, freeze=self.freeze)
        trainer = Trainer(self, net, task, context.data, seed=context.seed, progress=context.progress, folder=context.checkpoints)
        outcome = trainer.fit()
        notes = (f"{unstored} weights that were stored as integers are float now",) if unstored else ()
        return PassResult(net.write_back(), True, (*outcome.notes(), *notes), outcome.details())
