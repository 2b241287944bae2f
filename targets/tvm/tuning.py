"""The tuning cache: what was measured once, by problem and by everything else that decides speed. Nothing in it is trusted.

    <folder>/ab/abcdef….json    one problem: {"key": what the name is the hash of, "found": a Measured, "sha256": of both}

A file that does not parse, whose checksum is wrong or that is of another key is removed and its problem measured again.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from gatewright.files import replacing
from gatewright.hw.device import Device

from .kernel import Choice

_HERE = Path(__file__).parent
_SHAPING = ("few_bits.py", "kernel.py", "layout.py", "lazy.py", "machine.py", "timing.py")


@dataclass(frozen=True)
class Measured:
    """What a search found out about a problem."""

    choice: Choice
    """The fastest of those that compute what the others compute."""
    seconds: float
    """Of one run of it."""
    others: Mapping[str, float] = field(default_factory=dict)
    """Seconds of every candidate that ran, by its text."""
    rejected: Mapping[str, str] = field(default_factory=dict)
    """Candidates that could not be built, crashed, hung or computed something else, and why."""

    def to_json(self) -> dict[str, Any]:
        return {
            "algorithm": self.choice.algorithm, "blocks": list(self.choice.blocks), "seconds": self.seconds,
            "others": dict(self.others), "rejected": dict(self.rejected),
        }  # fmt: skip

    @classmethod
    def from_json(cls, table: Mapping[str, Any]) -> Measured:
        choice = Choice(str(table["algorithm"]), tuple(int(b) for b in table["blocks"]))
        return cls(choice, float(table["seconds"]), dict(table["others"]), dict(table["rejected"]))


def text(choice: Choice) -> str:
    """``winograd(4, 6)``"""
    return f"{choice.algorithm}({', '.join(map(str, choice.blocks))})"


def fingerprint(device: Device) -> str:
    """The device's name, and the SHA-256 of all that is known of it."""
    return f"{device.description or device.name} {hashlib.sha256(_canonical(device.to_json())).hexdigest()}"


@cache
def source_digest() -> str:
    """SHA-256 of the code that shapes kernels and of the code that times them."""
    digest = hashlib.sha256()
    for file in [*(_HERE / name for name in _SHAPING), *sorted((_HERE / "ops").glob("*.py")), *sorted((_HERE / "schedules").glob("*.py"))]:
        digest.update(file.name.encode() + b"\0" + file.read_bytes() + b"\0")
    return digest.hexdigest()


@dataclass(frozen=True)
class TuningCache:
    """Entries below ``folder`` that were measured under the same ``basis`` (JSON values: device, threads, versions, code)."""

    folder: Path
    basis: Mapping[str, Any]
    tell: Callable[[str], None]
    """Hears of every damaged entry."""

    def get(self, problem: str, candidates: Sequence[Choice]) -> Measured | None:
        """What was measured, or None. Any number of processes may read and write at the same time."""
        key = self._key(problem, candidates)
        path = self._path(key)
        try:
            raw = path.read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            self.tell(f"an entry of the tuning cache cannot be read and is measured again: {error}")
            return None
        try:
            table = json.loads(raw)
            if table["sha256"] != _checksum(table["key"], table["found"]) or table["key"] != key:
                raise ValueError("its checksum does not match")
            return Measured.from_json(table["found"])
        except (ValueError, KeyError, TypeError, AttributeError):
            self.tell(f"an entry of the tuning cache is damaged and is measured again: {path.name}")
            path.unlink(missing_ok=True)
            return None

    def put(self, problem: str, candidates: Sequence[Choice], found: Measured) -> None:
        """Keep what was measured, whole or not at all. A folder that cannot be written costs a later search, not this one."""
        key, table = self._key(problem, candidates), found.to_json()
        path = self._path(key)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            content = json.dumps({"key": key, "found": table, "sha256": _checksum(key, table)}, sort_keys=True, indent=1)
            with replacing(path) as file:
                file.write(content.encode())
        except OSError as error:
            self.tell(f"the tuning cache cannot be written: {error}")

    def _key(self, problem: str, candidates: Sequence[Choice]) -> dict[str, Any]:
        return {"problem": problem, "candidates": [text(c) for c in candidates], **self.basis}

    def _path(self, key: Mapping[str, Any]) -> Path:
        name = hashlib.sha256(_canonical(key)).hexdigest()
        return self.folder / name[:2] / f"{name}.json"


def _checksum(key: Any, found: Any) -> str:
    return hashlib.sha256(_canonical([key, found])).hexdigest()


def _canonical(value: Any) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()
