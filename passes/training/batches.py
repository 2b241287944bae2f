"""The mini-batches of training, and the gradient of the loss on one of them, or on a worker's share of one.

Which samples a batch has and how they are augmented follows from the seed, the epoch and the batch's number alone, so that whoever
asks for a batch gets the same one: a resumed run, a worker in another process, one that replaces it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from gatewright.frontend.batch import batch_reason
from gatewright.frontend.data import Dataset
from gatewright.frontend.edit import Array

from .augment import augmentation
from .executor import Executor
from .objective import Objective
from .options import Training


@dataclass(frozen=True)
class Told:
    """Of the samples that a gradient was taken over: the sum of their losses, how many are right, how many there are."""

    loss: float = 0.0
    right: float = 0.0
    samples: int = 0

    def __add__(self, other: Told) -> Told:
        return Told(self.loss + other.loss, self.right + other.right, self.samples + other.samples)


class Batches:
    """Of ``data``, ``options.batch`` samples each, the last one of an epoch what is left."""

    def __init__(self, options: Training, net: Executor, objective: Objective, data: Dataset, seed: int) -> None:
        self.options, self.net, self.objective, self.data, self.seed = options, net, objective, data, seed
        self.infos = net.model.inputs
        self.steps = math.ceil(len(data) / options.batch)
        """Batches of an epoch."""
        self.piece = None if batch_reason(net.model) is None else self.infos[0].shape[0]
        """Samples that one run takes where the model does not treat them independently."""
        self._augment = augmentation(options, net.model)
        self._epoch = -1
        self._order = data
        self._random = np.random.default_rng()
        self._drawn: list[Array] = []

    def gradient(self, epoch: int, step: int, share: int = 0, shares: int = 1) -> Told:
        """Adds the gradient of the batch's mean loss to the parameters' ``.grad``; of ``shares`` that it is cut into, one share's part.

        The parts of all shares add up to the whole.
        """
        part, draws = self._batch(epoch, step)
        told = Told()
        for start, stop in self._bounds(len(part), share, shares):
            piece = part.slice(start, stop)
            feeds = piece.feeds(self.infos)
            if self._augment is not None:
                feeds = self._augment(feeds, draws[:, start:stop])
            with self._precision():
                loss, right = self.objective(self.net, feeds, piece.labels, self.options.batchnorm == "train")
            (loss * (len(piece) / len(part))).backward()
            told += Told(float(loss.detach()) * len(piece), right, len(piece))
        return told

    def evaluate(self, data: Dataset) -> tuple[float, float]:
        """Mean loss, and the fraction of samples that are right."""
        told = Told()
        with torch.no_grad():
            for start in range(0, len(data), self.options.batch):
                part = data.slice(start, min(start + self.options.batch, len(data)))
                for first, last in self._bounds(len(part), 0, 1):
                    piece = part.slice(first, last)
                    loss, right = self.objective(self.net, piece.feeds(self.infos), piece.labels, False)
                    told += Told(float(loss) * len(piece), right, len(piece))
        return told.loss / max(told.samples, 1), told.right / max(told.samples, 1)

    def fault(self, epoch: int, step: int) -> str | None:
        """What in this batch's data is no number, if anything is: then no learning rate helps."""
        part, _ = self._batch(epoch, step)
        held = {f"input {name!r}": array for name, array in part.feeds(self.infos).items()}
        if part.labels is not None:
            held["the labels"] = part.labels
        for what, array in held.items():
            if array.dtype.kind == "f" and (bad := ~np.isfinite(array)).any():
                return f"{what}: {int(bad.reshape(len(part), -1).any(1).sum())} of the batch's {len(part)} samples are NaN or infinite"
        return None

    def _batch(self, epoch: int, step: int) -> tuple[Dataset, Array]:
        """The samples, and what augmentation drew for them, [4, samples]."""
        if epoch != self._epoch:
            self._epoch, self._drawn = epoch, []
            self._order = self.data.shuffled(_mixed(self.seed, epoch, 1))
            self._random = np.random.default_rng([self.seed, epoch])
        size = self.options.batch
        part = self._order.slice(step * size, min((step + 1) * size, len(self._order)))
        if self._augment is None:
            return part, np.zeros((4, len(part)))
        while len(self._drawn) <= step:
            self._drawn.append(self._augment.draw(min(size, len(self._order) - len(self._drawn) * size), self._random))
        return part, self._drawn[step]

    def _bounds(self, samples: int, share: int, shares: int) -> Iterator[tuple[int, int]]:
        """What the model takes at once, of one share. A rest smaller than a fixed batch is left out."""
        unit = self.piece or 1
        units = samples // unit
        first, last = (units * i // shares * unit for i in (share, share + 1))
        if self.piece is not None:
            yield from ((start, start + unit) for start in range(first, last, unit))
        elif first < last:
            yield first, last

    def _precision(self) -> Any:
        return torch.autocast("cpu", dtype=torch.bfloat16) if self.options.precision == "bf16" else nullcontext()


def _mixed(*numbers: int) -> int:
    """One seed of several."""
    return int(np.random.SeedSequence(numbers).generate_state(1)[0])
