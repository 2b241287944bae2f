"""Numbers that a training and its workers share, in mapped files: a row of weights and a row of gradients for each worker.

The training writes a worker's weights before it asks for a gradient, and reads the gradient after the answer: nobody reads
what somebody else is writing.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from .executor import Executor


class Exchange:
    """float32. A row: the parameters, ``extra`` (what is learned along), the running statistics; in the order of their names' dicts."""

    def __init__(self, folder: Path, workers: int, net: Executor, extra: Mapping[str, Tensor], create: bool = False) -> None:
        self.net = net
        self.tensors = [*net.parameters.values(), *extra.values()]
        held = [*self.tensors, *net.running.values()]
        self._bounds = np.cumsum([0, *(t.numel() for t in held)])
        names = [*net.parameters, *extra, *net.running]
        said = [f"{name} {list(t.shape)}" for name, t in zip(names, held, strict=True)]
        self.layout = hashlib.sha256("\n".join([net.model.digest, *said]).encode()).hexdigest()
        """Equal for two who read the same numbers in the same places."""
        self._weights, self._gradients = (self._rows(folder / name, workers, create) for name in ("weights.f32", "gradients.f32"))

    def publish(self, worker: int) -> None:
        """The training's weights to a worker's row."""
        for place, tensor in zip(self._places(self._weights, worker), [*self.tensors, *self.net.running.values()], strict=True):
            place.copy_(tensor.detach().reshape(-1))

    def fetch(self, worker: int) -> None:
        """A worker's row to its own weights; its gradients begin anew."""
        places = self._places(self._weights, worker)
        with torch.no_grad():
            for place, tensor in zip(places, self.tensors, strict=False):
                tensor.copy_(place.reshape(tensor.shape))
                tensor.grad = None
        for name, place in zip(self.net.running, places[len(self.tensors) :], strict=True):
            self.net.running[name] = place.reshape(self.net.running[name].shape).clone()

    def hand_in(self, worker: int) -> list[int]:
        """A worker's gradients and running statistics to its row; which tensors have no gradient."""
        places = self._places(self._gradients, worker)
        for place, tensor in zip(places, self.tensors, strict=False):
            if tensor.grad is not None:
                place.copy_(tensor.grad.reshape(-1))
        for place, statistic in zip(places[len(self.tensors) :], self.net.running.values(), strict=True):
            place.copy_(statistic.reshape(-1))
        return [i for i, tensor in enumerate(self.tensors) if tensor.grad is None]

    def collect(self, workers: Sequence[int], missing: Sequence[Sequence[int]], weights: Sequence[float]) -> None:
        """The sum of these workers' gradients, in this order, to the training's tensors; the mean of their running statistics."""
        rows = [self._places(self._gradients, worker) for worker in workers]
        for i, tensor in enumerate(self.tensors):
            given = [row[i] for row, none in zip(rows, missing, strict=True) if i not in none]
            tensor.grad = torch.stack(given).sum(0).reshape(tensor.shape) if given else None
        if sum(weights):
            for i, name in enumerate(self.net.running, len(self.tensors)):
                mean = sum(row[i] * (w / sum(weights)) for row, w in zip(rows, weights, strict=True))
                assert isinstance(mean, Tensor)
                self.net.running[name] = mean.reshape(self.net.running[name].shape)

    def _rows(self, path: Path, workers: int, create: bool) -> list[Tensor]:
        count = int(self._bounds[-1])
        if create:
            with open(path, "wb") as file:
                file.truncate(4 * workers * max(count, 1))
        mapped = np.memmap(path, np.float32, "r+", shape=(workers, max(count, 1)))
        return [torch.from_numpy(np.asarray(row)) for row in mapped]

    def _places(self, rows: Sequence[Tensor], worker: int) -> list[Tensor]:
        return [rows[worker][a:b] for a, b in zip(self._bounds[:-1].tolist(), self._bounds[1:].tolist(), strict=True)]
