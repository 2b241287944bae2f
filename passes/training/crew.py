"""Data-parallel training: processes that each compute the gradient of a part of the data, on this machine.

Synchronous: every batch is cut into a share for each worker, and one step is made with the sum of their gradients, added in the
workers' order: what one process would compute, but for the order of a sum. With ``batchnorm=train`` each worker normalizes by its own
share, as is usual (Goyal et al. 2017, arXiv:1706.02677), and the running statistics are their mean.
Asynchronous: a worker gets a batch of its own, and its gradient is applied as soon as it comes, to weights that others have
moved meanwhile (Dean et al. 2012, Large Scale Distributed Deep Networks, "Downpour SGD"); at an epoch's end all are waited for.

A worker that dies is replaced by one that computes the same again; after ``REPLACED`` of them the training ends with its last words.
"""

from __future__ import annotations

import json
import queue
import shutil
import subprocess
import tempfile
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gatewright.errors import PassError
from gatewright.frontend.data import Dataset
from gatewright.frontend.model import Model
from gatewright.interpreter import python

from .batches import Told
from .exchange import Exchange
from .executor import Executor
from .options import Training

REPLACED = 3
"""So many deaths of workers are made up for in one training."""
LAST_LINES = 3


@dataclass(frozen=True)
class Origin:
    """What a worker begins with, to build the same network, loss and batches from it as the training has."""

    options: Training
    model: Model
    """What the pass was given."""
    data: Dataset
    seed: int
    teachers: Sequence[Model] = ()

    def write(self, folder: Path) -> None:
        """As files: no object of Python's goes from process to process."""
        self.model.save(folder / "model.onnx")
        for i, teacher in enumerate(self.teachers):
            teacher.save(folder / f"teacher{i}.onnx")
        arrays = {f"array{i}": array for i, array in enumerate(self.data.arrays.values())}
        for name, array in arrays.items():
            mapped = np.lib.format.open_memmap(folder / f"{name}.npy", "w+", array.dtype, array.shape)
            for start in range(0, len(self.data), 1024):
                mapped[start : start + 1024] = array[start : start + 1024]
        if self.data.labels is not None:
            np.save(folder / "labels.npy", self.data.labels, allow_pickle=False)
        job = {
            "options": str(self.options), "model": self.model.name, "seed": self.seed, "teachers": [t.name for t in self.teachers],
            "arrays": list(self.data.arrays), "labels": self.data.labels is not None, "data": self.data.name,
            "inputs": [given.text(name) for name, given in self.data.preparation.items()], "workers": self.options.workers,
            "threads": max(1, torch.get_num_threads() // self.options.workers),
        }  # fmt: skip
        (folder / "job.json").write_text(json.dumps(job))


@dataclass(eq=False)
class _Worker:
    process: subprocess.Popen[str]
    log: Path
    asked: list[int] = field(default_factory=list)
    """The request it has not answered yet."""
    version: int = 0
    """How many steps had been made when it got its weights."""


class Crew:
    """The workers of one training. A context manager: they end with it."""

    def __init__(self, origin: Origin, net: Executor, extra: Mapping[str, Tensor]) -> None:
        self.options = origin.options
        self.replaced = 0
        self.ages: list[int] = []
        """Of each gradient: how many steps were made between its weights and its use."""
        self._folder = Path(tempfile.mkdtemp(prefix="gatewright-workers-"))
        try:
            origin.write(self._folder)
            self.exchange = Exchange(self._folder, self.options.workers, net, extra, create=True)
            self._answers: queue.Queue[tuple[_Worker, str]] = queue.Queue()
            self._steps = 0
            self.workers = [self._started(i) for i in range(self.options.workers)]
        except BaseException:
            shutil.rmtree(self._folder, ignore_errors=True)
            raise

    def __enter__(self) -> Crew:
        return self

    def __exit__(self, *_: object) -> None:
        for worker in self.workers:
            worker.process.kill()
            worker.process.wait()
        shutil.rmtree(self._folder, ignore_errors=True)

    def gradients(self, epoch: int, steps: int) -> Iterator[Told]:
        """Batch by batch: its gradient lies in the training's tensors when its figures come; before the next, a step is made with it."""
        return self._together(epoch, steps) if self.options.sync else self._apart(epoch, steps)

    def notes(self) -> tuple[str, ...]:
        """What a user should know of how it went."""
        count = self.options.workers
        told = f"{count} workers, each on its share of every batch: the same seed gives the same weights"
        if not self.options.sync:
            mean, most = (sum(self.ages) / len(self.ages), max(self.ages)) if self.ages else (0.0, 0)
            old = f"gradients {mean:.2f} steps old, at most {most}"
            told = f"{count} workers that do not wait for one another: {old}; no two runs are the same"
        elif self.options.batchnorm == "train":
            told += "; BatchNormalization used the statistics of each share"
        return (told, *([f"{self.replaced} of them died and were replaced"] if self.replaced else []))

    def _together(self, epoch: int, steps: int) -> Iterator[Told]:
        count = len(self.workers)
        for step in range(steps):
            for i in range(count):
                self._ask(i, [epoch, step, i, count])
            answers = dict(self._answer() for _ in range(count))
            yield self._taken(range(count), answers)

    def _apart(self, epoch: int, steps: int) -> Iterator[Told]:
        ahead = min(len(self.workers), steps)
        for i in range(ahead):
            self._ask(i, [epoch, i, 0, 1])
        for _ in range(steps):
            i, answer = self._answer()
            yield self._taken([i], {i: answer})
            if ahead < steps:
                self._ask(i, [epoch, ahead, 0, 1])
                ahead += 1

    def _taken(self, indices: Sequence[int], answers: Mapping[int, dict[str, Any]]) -> Told:
        given = [answers[i] for i in indices]
        self.exchange.collect(indices, [a["missing"] for a in given], [float(a["samples"]) for a in given])
        self.ages += [self._steps - self.workers[i].version for i in indices]
        self._steps += 1
        return sum((Told(a["loss"], a["right"], a["samples"]) for a in given), Told())

    # ---- one worker ---------------------------------------------------------------------------------------------

    def _ask(self, index: int, request: list[int]) -> None:
        worker = self.workers[index]
        worker.asked, worker.version = request, self._steps
        self.exchange.publish(index)
        self._send(worker)

    def _send(self, worker: _Worker) -> None:
        assert worker.process.stdin is not None
        try:
            worker.process.stdin.write(json.dumps(worker.asked) + "\n")
            worker.process.stdin.flush()
        except BrokenPipeError:
            return  # it died: the end of its output says so

    def _answer(self) -> tuple[int, dict[str, Any]]:
        """The next answer of any worker, and whose it is."""
        while True:
            worker, line = self._answers.get()
            if worker not in self.workers:
                continue  # last words of one that was replaced
            index = self.workers.index(worker)
            answer = json.loads(line) if line else {}
            if "error" in answer:
                raise PassError(f"worker {index + 1}: {answer['error']}")
            if not line:
                self._replace(index)
            elif "layout" in answer:
                if answer["layout"] != self.exchange.layout:
                    raise PassError(f"worker {index + 1} did not get the network that is trained", hint="workers=1; please report it")
            else:
                worker.asked = []
                return index, answer

    def _replace(self, index: int) -> None:
        worker = self.workers[index]
        code = worker.process.wait()
        self.replaced += 1
        if self.replaced > REPLACED:
            lines = worker.log.read_text(errors="replace").strip().splitlines()[-LAST_LINES:]
            how = f"signal {-code}" if code < 0 else f"exit code {code}"
            told = f"worker {index + 1} of {len(self.workers)} died ({how}), and {REPLACED} before it"
            last = " / ".join(lines) or "none"
            raise PassError(f"{told}; its last words: {last}", hint="fewer workers, or a smaller batch, need less memory")
        fresh = self._started(index)
        fresh.asked, fresh.version = worker.asked, worker.version
        self.workers[index] = fresh
        if fresh.asked:
            self._send(fresh)

    def _started(self, index: int) -> _Worker:
        log = self._folder / f"worker{index}.log"
        words = python("-m", "gatewright.passes.training.worker", self._folder, str(index))
        with open(log, "w") as errors:
            process = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True)
        worker = _Worker(process, log)
        threading.Thread(target=self._listen, args=(worker,), daemon=True).start()
        return worker

    def _listen(self, worker: _Worker) -> None:
        assert worker.process.stdout is not None
        for line in worker.process.stdout:
            if line.endswith("\n"):  # else it died over it
                self._answers.put((worker, line))
        self._answers.put((worker, ""))
