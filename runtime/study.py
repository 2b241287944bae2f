"""The folder of a search: what it is a search of, and every evaluation as it comes.

study.json          what decides the figures: another model, data, target or metric is another study, and is refused by name
evaluations.jsonl   a candidate a line, flushed to the disk before the next is tried
teacher.onnx        the uncompressed model, where candidates learn from it
folds/              networks learned afresh for the folds, where the model has seen the data
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gatewright.errors import UsageError

from .atomic import write_file
from .driver import context
from .front import Candidate

STUDY, EVALUATIONS, TEACHER, FOLDS = "study.json", "evaluations.jsonl", "teacher.onnx", "folds"
_WORDS = {"gatewright": "version of gatewright", "seen": "answer to whether the model has seen the data", "folds": "number of folds"}
"""Of what a study differs in, where its key says too little."""


@dataclass(frozen=True)
class Study:
    """A folder that is a study's, or may become it: nothing is written before ``begin``."""

    folder: Path
    described: Mapping[str, Any]

    @classmethod
    def at(cls, out: str | Path | None, described: Mapping[str, Any]) -> Study:
        """The study in ``out`` (in the cache where None). Raises UsageError where something else is there."""
        if out is None:
            key = hashlib.sha256(json.dumps(described, sort_keys=True).encode()).hexdigest()[:32]
            out = context().cache_dir / "studies" / key
        folder = Path(out)
        if folder.exists() and not folder.is_dir():
            raise UsageError(f"{folder} is a file", hint="give a folder, -o DIR")
        file = folder / STUDY
        if file.exists():
            _refuse_another(file, described)
        elif folder.exists() and any(folder.iterdir()):
            raise UsageError(f"{folder} is not empty and holds no study", hint="give a new or an empty folder, -o DIR")
        return cls(folder, described)

    def begin(self) -> None:
        """Make the folder."""
        self.folder.mkdir(parents=True, exist_ok=True)
        write_file(self.folder / STUDY, json.dumps(self.described, indent=1).encode())

    @property
    def teacher(self) -> Path:
        return self.folder / TEACHER

    def fold(self, number: int) -> Path:
        """Where the network that was learned afresh for a fold is."""
        return self.folder / FOLDS / f"{number}.onnx"

    def evaluations(self) -> list[Candidate]:
        """Those so far. A line that a kill or a bad disk has damaged is none: it is evaluated again."""
        store = self.folder / EVALUATIONS
        if not store.exists():
            return []
        found = []
        for line in store.read_text(encoding="utf-8", errors="replace").splitlines():
            try:
                found.append(Candidate.from_json(json.loads(line)))
            except (ValueError, KeyError, TypeError, AttributeError):
                continue
        return found

    def keep(self, found: Candidate) -> None:
        """Append an evaluation."""
        store = self.folder / EVALUATIONS
        # A line of its own even behind one that was torn.
        torn = store.exists() and store.stat().st_size > 0 and store.read_bytes()[-1:] != b"\n"
        with open(store, "ab") as file:
            file.write((b"\n" if torn else b"") + json.dumps(found.to_json()).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())


def _refuse_another(file: Path, described: Mapping[str, Any]) -> None:
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
        changed = [name for name, value in described.items() if found.get(name) != value]
    except (OSError, ValueError, AttributeError):
        raise UsageError(f"{file} is damaged", hint="give another folder, or remove this one") from None
    if changed:
        told = ", ".join(_told(name, found.get(name), described[name]) for name in changed)
        raise UsageError(
            f"{file.parent} holds another study: {told}", hint="give another folder, -o DIR, or what that study was begun with"
        )


def _told(name: str, then: Any, now: Any) -> str:
    short = [str(value) for value in (then, now)]
    values = f" (it has {short[0]}, this is {short[1]})" if all(len(text) <= 40 for text in short) else ""
    return f"another {_WORDS.get(name, name)}{values}"
