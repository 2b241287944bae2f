"""A compiling process whose matrix products have candidates of their own: ``python planted.py KIND LOG FOLDER``.

The candidates are widths of the panels; KIND says what is wrong with some of them (``FAULTS``), or with something else.
Every measurement is a line of LOG.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import tvm

from gatewright.targets.tvm import search, timing, worker
from gatewright.targets.tvm.kernel import Choice, Kernel
from gatewright.targets.tvm.lazy import Lazy
from gatewright.targets.tvm.ops import matmul
from gatewright.targets.tvm.schedules.matmul import PackedMatmul

WIDTHS = (64, 32, 16, 8, 4, 2)
FAULTS = {32: "crash", 16: "hang", 8: "wrong", 4: "refuse", 2: "crash running"}


def plant(kind: str, log: Path) -> None:
    """Put the candidates, the watch over measurements and the fault into the compiler."""
    plain, width = matmul.by_constant, [0]

    def by_constant(kernel: Kernel, x: Lazy, weight: Any, dtype: str) -> Lazy:
        widths = (32,) if kind == "bad first" else WIDTHS
        choice = kernel.policy.choose(f"matmul {x.shape} {weight.shape} {dtype}", [Choice("panel", (w,)) for w in widths])
        width[0] = choice.blocks[0]
        fault = FAULTS.get(width[0]) if kind in ("bad", "bad first") else None
        if fault == "crash":
            os.kill(os.getpid(), signal.SIGSEGV)
        if fault == "hang":
            time.sleep(1000)
        if fault == "refuse":
            raise ValueError("no such width")
        return plain(kernel, x, weight * 1.5 if fault == "wrong" else weight, dtype)

    matmul.by_constant = by_constant
    # What it would have chosen from is the one that was chosen here: rows and columns of a register block.
    matmul.blocks = lambda *arguments: [Choice("block", (1, width[0]))]
    _watch(kind, log)
    if kind == "crash in LLVM":
        _crash_in_llvm()
    search._LIMIT_S = 2.0
    search._BATCH = len(WIDTHS)


def _watch(kind: str, log: Path) -> None:
    compare = timing.Bench.compare

    def watched(self: Any, library: Path, trials: Any, tell: Any) -> Any:
        seen = log.read_text(encoding="utf-8").count("\n") if log.exists() else 0
        with open(log, "a", encoding="utf-8") as file:
            file.write(f"{trials[0].problem}: {[t.choice.blocks[0] for t in trials]}\n")
        if kind == "die" and seen == 1:
            os.kill(os.getppid(), signal.SIGKILL)
            time.sleep(1000)
        if kind == "slow":
            time.sleep(1.5)
        for trial in trials:
            if kind == "bad" and FAULTS.get(trial.choice.blocks[0]) == "crash running":
                tell(trial.name)
                os.kill(os.getpid(), signal.SIGSEGV)
        found = compare(self, library, trials, tell)
        if kind == "narrow":  # as if a narrower panel were always the faster
            found["seconds"] = {t.name: t.choice.blocks[0] * 1e-6 for t in trials}
        return found

    timing.Bench.compare = watched  # type: ignore[method-assign]


def _crash_in_llvm() -> None:
    """Whatever was scheduled as a matrix product kills LLVM."""
    schedule_it, build = PackedMatmul.__call__, tvm.tirx.build

    def marked(self: Any, schedule: Any, machine: Any) -> None:
        schedule_it(self, schedule, machine)
        schedule.annotate(schedule.get_sblock("out"), "planted", 1)

    def deadly(module: Any, **options: Any) -> Any:
        if "planted" in str(module):
            os.kill(os.getpid(), signal.SIGSEGV)
        return build(module, **options)

    PackedMatmul.__call__ = marked  # type: ignore[method-assign]
    tvm.tirx.build = deadly


if __name__ == "__main__":
    plant(sys.argv[1], Path(sys.argv[2]))
    sys.exit(worker.main(Path(sys.argv[3])))
