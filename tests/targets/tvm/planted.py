"""A compiling process whose matrix products have candidates of their own, one of them bad: ``python planted.py KIND FOLDER``.

The candidates are widths of the panels. The one of 8 columns crashes, hangs or is wrong, as KIND says; every measurement
is told on standard output.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

from gatewright.targets.tvm import search, timing, worker
from gatewright.targets.tvm.kernel import Choice, Kernel
from gatewright.targets.tvm.lazy import Lazy
from gatewright.targets.tvm.ops import matmul

WIDTHS = (64, 32, 16, 8)
BAD = 8


def plant(kind: str) -> None:
    original, chosen = matmul.by_constant, [0]
    compare = timing.Bench.compare

    def by_constant(kernel: Kernel, x: Lazy, weight: Any, dtype: str) -> Lazy:
        choice = kernel.policy.choose(f"matmul {x.shape} {weight.shape} {dtype}", [Choice("panel", (w,)) for w in WIDTHS])
        chosen[0] = choice.blocks[0]
        bad = chosen[0] == BAD
        if bad and kind == "crash":
            os.kill(os.getpid(), signal.SIGSEGV)
        if bad and kind == "hang":
            time.sleep(1000)
        if bad and kind == "refuse":
            raise ValueError("no such width")
        return original(kernel, x, weight * 1.5 if bad and kind == "wrong" else weight, dtype)

    def watched(self: Any, library: Path, trials: Any, tell: Any) -> Any:
        print(f"measured {trials[0].problem}: {[t.choice.blocks[0] for t in trials]}", flush=True)
        for trial in trials:
            if kind == "crash_running" and trial.choice.blocks[0] == BAD:
                tell(trial.name)
                os.kill(os.getpid(), signal.SIGSEGV)
        if kind == "slow":
            time.sleep(1.5)
        found = compare(self, library, trials, tell)
        if kind == "fixed":  # as if the narrower panel had been the faster
            found["seconds"] = {t.name: float(t.choice.blocks[0]) for t in trials}
        return found

    matmul.by_constant = by_constant
    matmul.panel_width = lambda rows, columns, lanes: chosen[0]
    timing.Bench.compare = watched  # type: ignore[method-assign]
    search._LIMIT_S = 2.0
    search._BATCH = 4


plant(sys.argv[1])
sys.exit(worker.main(Path(sys.argv[2])))
