"""``gradual``: prune in steps, with training in between, so that what is left can take over what went.

Each step prunes a little more; the share that is pruned after step i of n follows a·(1 − (1 − i/n)³), fast at first and slow
towards the end (Zhu and Gupta 2017, To Prune, or Not to Prune, arXiv:1710.01878), or grows evenly. The accuracy before and after each
training is in the history. A run that is killed goes on where it was: a step's training is found in the checkpoints' folder.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import numpy as np

from gatewright.errors import UsageError
from gatewright.frontend.data import Dataset
from gatewright.frontend.model import Model
from gatewright.spec import parse

from .base import Effect, Pass, PassContext, PassResult
from .cluster import tuning
from .prune import Prune

_COUNTED = {"count": "units", "macs": "macs", "device": "macs"}
"""What the history says of a step that removes units, before and after; LUTs fall about as the multiply-accumulates do."""


@dataclass(frozen=True)
class Gradual(Pass):
    """gradual{prune=prune{amount=0.9},finetune=finetune{epochs=2},steps=4}. Lossy; with ``finetune`` it needs labelled data."""

    name: ClassVar[str] = "gradual"
    effect: ClassVar[Effect] = "lossy"

    prune: str = "prune"
    """The pruning that the last step reaches."""
    finetune: str = ""
    """What trains after each step; none: nothing does."""
    steps: int = 4
    schedule: Literal["cubic", "linear"] = "cubic"

    def __post_init__(self) -> None:
        if not 1 <= self.steps <= 1000:
            raise UsageError(f"option 'steps' of pass 'gradual' is {self.steps}; it takes 1 to 1000")
        if self.finetune:
            tuning(self.finetune, self.name)
        target = self.target()
        if target.kind == "nm" or target.threshold is not None:
            which = "kind=nm" if target.kind == "nm" else "threshold"
            raise UsageError(f"pass 'gradual' raises the amount step by step; {which} has none", hint="prune{…},finetune{…} in one step")

    def target(self) -> Prune:
        from .pipeline import make_pass

        found = make_pass(parse(self.prune))
        if not isinstance(found, Prune):
            raise UsageError(f"option 'prune' of pass 'gradual' is {self.prune!r}; it takes a prune{{…}}")
        return found

    def amounts(self) -> list[float]:
        """The share pruned after each step."""
        left = [1 - (i + 1) / self.steps for i in range(self.steps)]
        return [self.target().amount * (1 - x ** (3 if self.schedule == "cubic" else 1)) for x in left]

    def run(self, model: Model, context: PassContext) -> PassResult:
        target, tune = self.target(), tuning(self.finetune, self.name) if self.finetune else None
        judged = _held_out(context.data, tune.validation if tune is not None else 0.0)
        removes = target.kind in ("channel", "head", "neuron", "layer")
        rows: list[dict[str, object]] = []
        notes: list[str] = []
        gone = 0.0
        whole: float | None = None
        details: dict[str, object] = {}
        for step, amount in enumerate(self.amounts()):
            context.progress(f"gradual: step {step + 1} of {self.steps}: {amount:.1%}", step, self.steps)
            # What was removed is gone: the rest loses its share of what remains. Zeros are still there and count.
            share = max(0.0, 1 - (1 - amount) / (1 - gone)) if removes else amount
            result = replace(target, amount=share).run(model, context)
            details, model = dict(result.details), result.model
            if removes:
                counted = details[_COUNTED[target.measure]]
                assert isinstance(counted, list)
                whole = whole or float(counted[0])
                gone = 1 - float(counted[1]) / whole
            row: dict[str, object] = {"amount": round(amount, 6), "pruned": accuracy(model, judged)}
            if tune is not None:
                trained = tune.run(model, context)
                model = trained.model
                row["tuned"] = accuracy(model, judged)
            rows.append(row)
            told = [f"{row[when]:.4f} {when}" for when in ("pruned", "tuned") if row.get(when) is not None]
            notes.append(f"step {step + 1}, {amount:.1%}: " + (f"accuracy {', '.join(told)}" if told else result.notes[0]))
        return PassResult(model, True, (*notes, *result.notes), {**details, "steps": rows})


def accuracy(model: Model, data: Dataset | None) -> float | None:
    """The share of labels that the largest output is, over samples (and positions); None without class labels or such an output."""
    from .calibrate import traces

    if data is None or data.labels is None or data.labels.dtype.kind not in "iu":
        return None
    positions, most = data.labels.shape[1:], int(data.labels.max())
    output = next((o for o in model.outputs if o.dtype.kind == "f" and o.shape[1:-1] == positions and o.shape[-1] > most), None)
    if output is None:
        return None
    found = [traced[output.name].argmax(axis=-1) for _, traced in traces(model, [output.name], data)]
    return round(float(np.mean(np.concatenate(found) == data.labels)), 6)


def _held_out(data: Dataset | None, validation: float) -> Dataset | None:
    """What training holds out, as its loop splits it; all of the data where it holds out nothing."""
    if data is None or not validation:
        return data
    return data.split(max(2, round(1 / validation)))[0][1]
