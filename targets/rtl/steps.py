"""Steps of a build that are done, kept beside the artifact: a build that was stopped goes on after the last of them.

A step is a folder ``<cache>/rtl-builds/<key>/<step>`` with the files that it made; it appears whole or not at all. The key is the hash of
everything that the tools read, so that a changed design never meets another's steps. What a finished build keeps is removed.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Steps:
    """Those of one design. Any number of processes may build it at the same time; the first to finish a step keeps it."""

    root: Path

    @classmethod
    def of(cls, cache_dir: Path, folder: Path, words: Mapping[str, str]) -> Steps:
        """Of the lowered files in ``folder`` and what else shapes the result: options of the tools, their versions."""
        sha = hashlib.sha256()
        for name, content in sorted({**words, **{file.name: file.read_text("utf-8") for file in _sources(folder)}}.items()):
            sha.update(f"{name}\0{len(content)}\0{content}\0".encode())
        return cls(cache_dir / "rtl-builds" / sha.hexdigest()[:32])

    def restore(self, step: str, folder: Path) -> bool:
        """Copy what the step made into ``folder``; False where it is still to be done."""
        try:
            shutil.copytree(self.root / step, folder, dirs_exist_ok=True)
        except (FileNotFoundError, shutil.Error):  # never made, or another process has just finished the build and removed it
            return False
        return True

    def keep(self, step: str, folder: Path, names: Sequence[str], seconds: float) -> None:
        """The step is done, in so long: these files of ``folder``, where they are there, are what it made."""
        partial = self.root / f".{step}.{os.getpid()}.part"
        shutil.rmtree(partial, ignore_errors=True)
        for name in names:
            if (folder / name).exists():
                (partial / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(folder / name, partial / name)
        self.root.mkdir(parents=True, exist_ok=True)
        self._clock(step).write_text(f"{seconds:.3f}\n", encoding="utf-8")
        try:
            os.rename(partial, self.root / step)
        except OSError:  # another process was first, with the same
            shutil.rmtree(partial, ignore_errors=True)

    def seconds(self) -> float:
        """What all steps took that are kept."""
        return sum(float(clock.read_text(encoding="utf-8")) for clock in self.root.glob("*.seconds"))

    def forget(self) -> None:
        """The build is finished, or is to begin anew."""
        shutil.rmtree(self.root, ignore_errors=True)

    def _clock(self, step: str) -> Path:
        return self.root / f"{step}.seconds"


def _sources(folder: Path) -> list[Path]:
    return [file for file in folder.iterdir() if file.suffix in (".v", ".ys", ".pcf", ".lpf", ".cst")]
