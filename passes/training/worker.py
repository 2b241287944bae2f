"""A worker of a data-parallel training (``crew.py``), as a process: python -m gatewright.passes.training.worker FOLDER INDEX

It builds network, loss and batches from the folder's files as the training did, then answers each line [epoch, step, share, shares]
on its standard input: it fetches the weights, hands in the gradient and says what it saw. It ends with its input.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
import traceback
from pathlib import Path
from typing import Any, TextIO

import numpy as np
import torch

from gatewright.errors import GatewrightError
from gatewright.frontend.data import Dataset, Input
from gatewright.frontend.load import load
from gatewright.spec import parse

from ..base import PassContext
from ..pipeline import make_pass
from .batches import Batches
from .exchange import Exchange
from .loop import split
from .options import Training


def main(folder: Path, index: int, requests: TextIO, answers: TextIO) -> None:
    """Answers until the requests end; then the folder goes too, which nobody else removes where the training was killed."""

    def say(answer: dict[str, Any]) -> None:
        answers.write(json.dumps(answer) + "\n")
        answers.flush()

    try:
        batches, exchange = _prepared(folder)
        say({"layout": exchange.layout})
        for line in requests:
            epoch, step, share, shares = json.loads(line)
            exchange.fetch(index)
            told = batches.gradient(epoch, step, share, shares)
            say({"loss": told.loss, "right": told.right, "samples": told.samples, "missing": exchange.hand_in(index)})
    except GatewrightError as error:
        say({"error": str(error)})
        return
    shutil.rmtree(folder, ignore_errors=True)


def _prepared(folder: Path) -> tuple[Batches, Exchange]:
    job = json.loads((folder / "job.json").read_text())
    torch.set_num_threads(job["threads"])
    options = make_pass(parse(job["options"]))
    assert isinstance(options, Training)
    arrays = {name: np.load(folder / f"array{i}.npy", mmap_mode="r") for i, name in enumerate(job["arrays"])}
    labels = np.load(folder / "labels.npy") if job["labels"] else None
    data = Dataset(arrays, labels, dict(Input.parse(text) for text in job["inputs"]), job["data"])
    teachers = [load(folder / f"teacher{i}.onnx", name=name) for i, name in enumerate(job["teachers"])]
    model = load(folder / "model.onnx", name=job["model"])
    begun = options.outset(model, PassContext(data=data, seed=job["seed"]), teachers)
    batches = Batches(options, begun.net, begun.objective, split(data, options.validation)[0], job["seed"])
    return batches, Exchange(folder, job["workers"], begun.net, begun.extra)


if __name__ == "__main__":
    # What a library prints must not be taken for an answer; an interrupt is the training's to handle.
    given = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        main(Path(sys.argv[1]), int(sys.argv[2]), sys.stdin, given)
    except Exception:
        traceback.print_exc()
        sys.exit(1)
