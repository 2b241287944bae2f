"""The training loop: mini-batches, an optimizer, a schedule, early stopping, checkpoints. What is learned is an ``Objective``.

Deterministic: the order of the samples and their augmentation follow from the seed and the epoch alone, and a run that is
killed goes on from the end of its last epoch to the same weights (on the same machine with the same number of threads).
So it is with several workers that take their shares of every batch; workers that do not wait for one another (sync=false) apply
their gradients in whichever order they come, and no two runs are the same.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from gatewright.errors import DataError, PassError
from gatewright.frontend.data import Dataset
from gatewright.frontend.edit import Array
from gatewright.progress import Progress, silent

from .batches import Batches, Told
from .checkpoint import Checkpoint, State, arrays_of, run_key
from .crew import Crew, Origin
from .executor import Executor
from .optimizer import Optimizer, clip
from .options import Training
from .outset import Outset

MASKED_FROM_AXES = 2
"""Pruned zeros are looked for in tensors of this many axes and more: a bias begins at zero without being pruned."""

REPORT_S = 2.0
"""Within an epoch, progress is told this often."""


@dataclass
class Epoch:
    """One row of the history."""

    loss: float
    """Mean over the training samples, while they were learned from."""
    accuracy: float
    held_out_loss: float | None = None
    held_out_accuracy: float | None = None

    def text(self) -> str:
        shown = f"loss {self.loss:.4f}, accuracy {self.accuracy:.4f}"
        return shown if self.held_out_loss is None else f"{shown}, held out {self.held_out_loss:.4f}, {self.held_out_accuracy:.4f}"


@dataclass
class Outcome:
    """The weights are in the executor; this says how they came about."""

    history: list[Epoch] = field(default_factory=list)
    best: int = 0
    """The epoch whose weights were kept, counted from 1; 0: those from before training."""
    stopped: bool = False
    """Whether patience ended it."""
    workers: tuple[str, ...] = ()
    """How the work was shared, in words."""

    def details(self) -> dict[str, object]:
        """For the model's history."""
        rows = [vars(epoch) for epoch in self.history]
        return {"epochs": [{k: round(v, 6) for k, v in row.items() if v is not None} for row in rows], "kept_epoch": self.best}

    def notes(self) -> tuple[str, ...]:
        kept = f"the weights after epoch {self.best} of {len(self.history)} were kept" + (" (stopped early)" if self.stopped else "")
        best = self.history[self.best - 1].text() if self.best else "no epoch was better than the weights it began with"
        return (kept, best, *self.workers)


class Trainer:
    """Trains ``begun.net`` in place. ``origin``: what ``begun`` was made from, with the data; the workers begin with it too.

    ``folder``: where checkpoints go, None for none. ``key``: what else decides the run, for its name.

    ``pruned``: whether zeros of latent weights are pruned ones; None: where the model's history says so. ``tied``: by weight, what
    makes of its gradient the one that it is moved by.
    """

    def __init__(
        self, options: Training, begun: Outset, origin: Origin, *, progress: Progress = silent, folder: Path | None = None,
        key: tuple[object, ...] = (), scale_lr: float | None = None, pruned: bool | None = None,
        tied: Mapping[str, Callable[[Tensor], Tensor]] | None = None,
    ) -> None:  # fmt: skip
        net, data = begun.net, origin.data
        self.options, self.net, self.extra, self.origin, self.progress = options, net, begun.extra, origin, progress
        train, self.held_out = split(data, options.validation)
        self.batches = Batches(options, net, begun.objective, train, origin.seed)
        self.tied = dict(tied or {})
        self.masks = {} if options.zeros == "free" else _masks(net, pruned)
        self.optimizer = _optimizer(options, net, self.extra, options.lr if scale_lr is None else scale_lr)
        identity = [net.model.digest, data.digest, str(options), origin.seed, *key]
        self.checkpoint = Checkpoint(folder, f"{options.name}-{run_key(*identity)}")
        self.last_good = self.checkpoint.path.with_suffix(".last_good.onnx") if self.checkpoint.path else None

    def fit(self) -> Outcome:
        """Raises PassError where the loss is no longer finite; the weights of the last good epoch are in the net, and on disk."""
        if self.options.workers == 1:
            return self._fitted(self._gradients)
        with Crew(self.origin, self.net, self.extra) as crew:
            outcome = self._fitted(lambda epoch: crew.gradients(epoch, self.batches.steps))
            outcome.workers = crew.notes()
            return outcome

    def _fitted(self, gradients: Callable[[int], Iterator[Told]]) -> Outcome:
        """``gradients``: of an epoch, batch by batch; a batch's lies in the tensors when its figures come."""
        options, outcome = self.options, Outcome()
        best = self._weights()
        score = self._score(self.batches.evaluate(self.held_out)) if self.held_out is not None else None
        state = self.checkpoint.load()
        first = 0
        if state is not None:
            first = state.epoch
            best, score = self._restore(state, outcome)
            self.progress(f"{options.name}: going on after epoch {first} of {options.epochs}", first, options.epochs)
        for epoch in range(first, options.epochs):
            if outcome.stopped:
                break
            good = self._weights()
            row = self._epoch(epoch, gradients(epoch), good)
            outcome.history.append(row)
            if self.held_out is None:
                outcome.best, best = epoch + 1, self._weights()
            else:
                found = self.batches.evaluate(self.held_out)
                row.held_out_loss, row.held_out_accuracy = found
                if score is None or self._score(found) > score:
                    outcome.best, best, score = epoch + 1, self._weights(), self._score(found)
                outcome.stopped = bool(options.patience) and epoch + 1 - outcome.best >= options.patience
            self.progress(f"{options.name}: epoch {epoch + 1} of {options.epochs}: {row.text()}", epoch + 1, options.epochs)
            self._save(epoch + 1, outcome, best, score)
        self._assign(best)
        return outcome

    # ---- one epoch ----------------------------------------------------------------------------------------------

    def _epoch(self, epoch: int, gradients: Iterator[Told], good: dict[str, dict[str, Array]]) -> Epoch:
        told, reported, steps = Told(), time.monotonic(), self.batches.steps
        for step, part in enumerate(gradients):
            if not math.isfinite(part.loss):
                self._diverged("the loss is not a number", epoch, step, good)
            if not all(bool(torch.isfinite(p.grad.sum())) for p in self.optimizer.tensors.values() if p.grad is not None):
                self._diverged("a gradient is not finite", epoch, step, good)
            told += part
            self._step(rate(self.options, epoch * steps + step, steps * self.options.epochs))
            if time.monotonic() - reported > REPORT_S:
                reported = time.monotonic()
                where = f"epoch {epoch + 1} of {self.options.epochs}, step {step + 1} of {steps}"
                so_far = f"loss {told.loss / max(told.samples, 1):.4f}, accuracy {told.right / max(told.samples, 1):.4f}"
                self.progress(f"{self.options.name}: {where}: {so_far}", epoch, self.options.epochs)
        if not all(bool(torch.isfinite(p).all()) for p in self.optimizer.tensors.values()):
            self._diverged("a weight is not finite", epoch, steps - 1, good)
        return Epoch(told.loss / max(told.samples, 1), told.right / max(told.samples, 1))

    def _gradients(self, epoch: int) -> Iterator[Told]:
        """Computed here."""
        for step in range(self.batches.steps):
            self.optimizer.clear()
            yield self.batches.gradient(epoch, step)

    def _step(self, factor: float) -> None:
        options = self.options
        for name, tie in self.tied.items():
            gradient = self.net.parameters[name].grad
            if gradient is not None:
                self.net.parameters[name].grad = tie(gradient)
        if options.l1 or options.l2:
            weights = [p for p in self._decayed() if p.grad is not None]
            with torch.no_grad():
                for p in weights:
                    p.grad += options.l1 * torch.sign(p) + options.l2 * p
        if options.clip:
            clip(self.optimizer.tensors, options.clip)
        self.optimizer.step(factor)
        with torch.no_grad():
            for name, mask in self.masks.items():
                self.net.parameters[name].mul_(mask)

    def _decayed(self) -> Iterator[Tensor]:
        """Weights, not biases, norms or scales."""
        return (p for p in self.net.parameters.values() if p.ndim >= MASKED_FROM_AXES)

    def _score(self, found: tuple[float, float]) -> tuple[float, float]:
        """Larger is better: accuracy, then loss."""
        return found[1], -found[0] if math.isfinite(found[0]) else -math.inf

    # ---- stopping and going on ----------------------------------------------------------------------------------

    def _diverged(self, what: str, epoch: int, step: int, good: dict[str, dict[str, Array]]) -> None:
        self._assign(good)
        where = f"{what} in epoch {epoch + 1}, step {step + 1}"
        hint = f"a lower lr than {self.options.lr:g}, or clip=1"
        if not epoch:
            kept = "the weights from before training are unchanged"
        elif self.last_good is not None:
            self.net.write_back().save(self.last_good)
            kept = f"the model after epoch {epoch} is in {self.last_good}"
        else:
            kept, hint = "no checkpoint was kept", f"{hint}; --checkpoints DIR keeps the last good model"
        if fault := self.batches.fault(epoch, step):
            raise DataError(f"{where}: {fault}; {kept}", hint="leave such samples out, or look at their preparation (--input)")
        raise PassError(f"{where}; {kept}", hint=hint)

    def _weights(self) -> dict[str, dict[str, Array]]:
        parameters, running, extra = (arrays_of(group) for group in (self.net.parameters, self.net.running, self.extra))
        return {"parameters": parameters, "running": running, "extra": extra}

    def _assign(self, weights: Mapping[str, Mapping[str, Array]]) -> None:
        with torch.no_grad():
            for group, tensors in (("parameters", self.net.parameters), ("extra", self.extra)):
                for name, array in weights.get(group, {}).items():
                    tensors[name].copy_(torch.from_numpy(array))
            self.net.running.update({name: torch.from_numpy(array.copy()) for name, array in weights.get("running", {}).items()})

    def _save(self, epoch: int, outcome: Outcome, best: Mapping[str, Mapping[str, Array]], score: tuple[float, float] | None) -> None:
        if self.checkpoint.path is None:
            return
        arrays = {**self._weights(), "optimizer": arrays_of(self.optimizer.state)}
        arrays |= {f"best_{group}": dict(found) for group, found in best.items()}
        record = {"history": [vars(row) for row in outcome.history], "best": outcome.best, "stopped": outcome.stopped, "score": score}
        self.checkpoint.save(State(epoch, arrays, record))

    def _restore(self, state: State, outcome: Outcome) -> tuple[dict[str, dict[str, Array]], tuple[float, float] | None]:
        groups = ("parameters", "running", "extra")
        self._assign({group: state.arrays.get(group, {}) for group in groups})
        self.optimizer.state = {name: torch.from_numpy(array) for name, array in state.arrays.get("optimizer", {}).items()}
        outcome.history = [Epoch(**row) for row in state.record["history"]]
        outcome.best, outcome.stopped = state.record["best"], state.record["stopped"]
        score = state.record["score"]
        return {group: state.arrays.get(f"best_{group}", {}) for group in groups}, None if score is None else (score[0], score[1])


def rate(options: Training, step: int, steps: int) -> float:
    """What lr is multiplied by at ``step`` of ``steps``."""
    warm = options.warmup * steps
    if step < warm:
        return (step + 1) / (warm + 1)
    done = (step - warm) / max(steps - warm, 1)
    if options.schedule == "cosine":
        return 0.5 * (1 + math.cos(math.pi * done))
    if options.schedule == "step":
        return 1.0 if done < 0.6 else 0.1 if done < 0.85 else 0.01
    return 1.0


def _optimizer(options: Training, net: Executor, extra: Mapping[str, Tensor], scale_lr: float) -> Optimizer:
    if not net.parameters:
        raise PassError(f"{net.model.name} has no weights to train", hint="check freeze=")
    tensors = {**net.parameters, **{f"{name} projected": tensor for name, tensor in extra.items()}}
    rates = {name: scale_lr if name in net.grids.scales else options.lr for name in tensors}
    return Optimizer(options.optimizer, tensors, rates, options.momentum)


def _masks(net: Executor, pruned: bool | None) -> dict[str, Tensor]:
    """1 where a weight may move, for weights that have zeros. A weight that comes from a grid may be zero without being pruned."""
    if pruned is None:
        pruned = any(step.action == "pass" and step.text.startswith(("prune", "gradual")) for step in net.model.history)
    found = {}
    for name, parameter in net.parameters.items():
        grid = net.grids.weights.get(name)
        looked_at = parameter.ndim >= MASKED_FROM_AXES and name not in net.grids.scales and not (grid is not None and grid.binary)
        if looked_at and (pruned or grid is None) and bool((parameter == 0).any()):
            found[name] = (parameter.detach() != 0).to(parameter.dtype)
    return found


def split(data: Dataset, fraction: float) -> tuple[Dataset, Dataset | None]:
    """What is learned from, and what is held out. Raises DataError where there are too few samples."""
    if not fraction:
        return data, None
    folds = max(2, round(1 / fraction))
    if len(data) < folds:
        raise DataError(f"{len(data)} samples are too few to hold out {fraction:g} of them", hint="more data, or validation=0")
    return data.split(folds)[0]
