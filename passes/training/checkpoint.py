"""Checkpoints of a training run: one .npz of arrays and text per run, written whole or not at all, read without pickle.

The file's name holds a hash of everything that decides the run, so a run finds its own checkpoint and no other.
"""

from __future__ import annotations

import hashlib
import json
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from gatewright.errors import PassError
from gatewright.files import replacing
from gatewright.frontend.edit import Array

VERSION = 1


@dataclass
class State:
    """Where a run stands after ``epoch`` epochs: ``arrays[group][name]``, and ``record``, JSON values."""

    epoch: int
    arrays: dict[str, dict[str, Array]]
    record: dict[str, Any] = field(default_factory=dict)


def run_key(*parts: object) -> str:
    """A name for the run that these parts decide."""
    return hashlib.sha256(json.dumps([VERSION, *parts], default=str).encode()).hexdigest()[:16]


class Checkpoint:
    """The checkpoint of one run in ``folder``; None: nothing is kept."""

    def __init__(self, folder: Path | None, name: str) -> None:
        self.path = None if folder is None else folder / f"{name}.npz"

    def save(self, state: State) -> None:
        """Replaces the earlier one when it is on the disk. Raises PassError where the folder cannot be written."""
        if self.path is None:
            return
        names: list[tuple[str, str]] = [(group, name) for group, arrays in state.arrays.items() for name in arrays]
        # Names of weights may be anything; file names inside the archive are numbers.
        text = json.dumps({"epoch": state.epoch, "names": names, "record": state.record})
        held: dict[str, Any] = {f"a{i}": state.arrays[group][name] for i, (group, name) in enumerate(names)}
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with replacing(self.path) as file:
                np.savez(file, text=np.frombuffer(text.encode(), np.uint8), **held)
        except OSError as error:
            raise PassError(f"the checkpoint {self.path} cannot be written: {error.strerror}") from error

    def load(self) -> State | None:
        """The state that was saved, or None. Raises PassError for a damaged file."""
        if self.path is None or not self.path.exists():
            return None
        try:
            with np.load(self.path, allow_pickle=False) as file:
                text = json.loads(file["text"].tobytes())
                arrays: dict[str, dict[str, Array]] = {}
                for i, (group, name) in enumerate(text["names"]):
                    arrays.setdefault(group, {})[name] = file[f"a{i}"]
            return State(int(text["epoch"]), arrays, dict(text["record"]))
        except (OSError, ValueError, KeyError, TypeError, zipfile.BadZipFile) as error:
            raise PassError(f"the checkpoint {self.path} is damaged: {error}", hint="delete it, and training begins anew") from error


def arrays_of(tensors: Mapping[str, Any]) -> dict[str, Array]:
    """Copies of tensors as arrays."""
    return {name: np.array(tensor.detach().cpu().numpy()) for name, tensor in tensors.items()}
