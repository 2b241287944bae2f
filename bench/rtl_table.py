"""Networks × boards with open tools: a bitstream that meets timing, or refused before any tool ran, as preflight said.

    python bench/rtl_train.py -o build/rtl_models
    python bench/rtl_table.py --models build/rtl_models -o build/rtl_table [--only mlp_int4p@icebreaker,…] [--levels emulate,rtl]

Each pair is a file in ``-o``, written after every step, so that a run that was stopped goes on where it was; who changed the
compiler removes it. ``--only ''`` prints what there is. The steps of a pair: preflight; the design at each level against the
reference (interpreted, the Verilog clocked cycle by cycle, the synthesized netlist, the simulated board spoken to through its
serial protocol); the bitstream. Asked for: 50 MHz on ULX3S, 12 MHz on the others, a sample every cycle. A pair is as it should
be if preflight let it pass and it came out whole and exact, or if preflight refused it and so did ``compile`` with exit code 3;
any other ending makes this script fail.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

import gatewright as gw
from gatewright.errors import GatewrightError
from gatewright.frontend.model import Model
from gatewright.frontend.reference import Reference
from gatewright.runtime import driver
from gatewright.targets.base import Artifact
from gatewright.targets.rtl.virtual import VirtualBoard

DEMO = Path(str(files("gatewright.runtime"))) / "demo_data"
INT8, INT4 = "fuse,quantize{bits=8,grid=pow2}", "fuse,quantize{bits=4,grid=pow2}"
BOARDS = {"ulx3s-85f": 50e6, "ulx3s-25f": 50e6, "icebreaker": 12e6, "tang-nano-9k": 12e6}
"""The clock that a bitstream has to reach, in Hz; what the boards run at is no less."""
SAMPLES = {"emulate": 540, "rtl": 540, "netlist": 20, "protocol": 20}
"""By level: of the 540 test digits, how many go through it."""
COLUMNS = (
    "network", "board", "accuracy", "preflight", "LUT est/placed", "FF est/placed", "MHz asked/reached", "cycles",
    "exact: emulate rtl netlist protocol", "nJ est", "build s", "note",
)  # fmt: skip

Row = dict[str, Any]


def networks(folder: Path) -> dict[str, tuple[Path, str, tuple[int, ...] | None]]:
    """File, pipeline, and shape of a sample."""
    mlp, pruned, cnn = DEMO / "digits_mlp.onnx", folder / "digits_mlp_pruned.onnx", folder / "digits_cnn_small.onnx"
    return {
        "mlp_int8": (mlp, INT8, None), "mlp_int4": (mlp, INT4, None), "mlp_int4p": (pruned, INT4, None), "cnn_int4": (cnn, INT4, (1, 8, 8)),
    }  # fmt: skip


class Pair:
    """One network on one board: what is known of it lies in ``folder``."""

    def __init__(self, name: str, board: str, source: tuple[Path, str, tuple[int, ...] | None], folder: Path) -> None:
        self.name, self.board, self.folder = name, board, folder / f"{name}@{board}"
        self._source = source
        self._file = folder / f"{name}@{board}.json"
        self.row = self._read()

    def run(self, levels: list[str], build: bool) -> None:
        """The steps that are still to do. A step that fails is noted and stops no other."""
        self.row = self._read()
        path, pipeline, shape = self._source
        train, test = (gw.Dataset.load(DEMO / "digits.npz", inputs={"x": gw.Input(1 / 16, reshape=shape)}, part=p) for p in ("train", None))
        model = gw.transform(gw.load(path), pipeline, data=train)
        if self.row.get("model") != model.digest:
            self._keep({"network": self.name, "board": self.board, "model": model.digest})
        feeds = test.feeds(model.inputs)
        expected = Reference(model).run(feeds)["y"]
        assert test.labels is not None
        self._note(accuracy=float((expected.argmax(1) == test.labels).mean()))
        self._step("preflight", lambda: self._preflight(model))
        if self.row["preflight"]["ok"]:
            for level in levels:
                few = {key: array[: SAMPLES[level]] for key, array in feeds.items()}
                self._step(level, lambda level=level, few=few: self._exact(level, model, few, expected))  # type: ignore[misc]
            if build:
                self._step("build", lambda: self._build(model))

    @property
    def as_it_should_be(self) -> bool:
        """As far as it has come."""
        preflight, found = self.row.get("preflight", {}), self.row.get("build")
        if not preflight.get("ok", False):
            return bool(preflight) and preflight.get("exit") == 3
        exact = all(self.row[level].get("exact") == self.row[level].get("samples", -1) for level in SAMPLES if level in self.row)
        return exact and (found is None or found.get("fmax", 0) >= max(BOARDS[self.board], found.get("clock_hz", 0)))

    def cells(self) -> list[str]:
        """As the table shows it."""
        row, build, estimate = self.row, self.row.get("build", {}), self.row.get("preflight", {})
        failed = [f"{step}: {row[step]['error']}" for step in ("build", *SAMPLES) if "error" in row.get(step, {})]
        return [
            self.name, self.board, f"{row['accuracy']:.3f}" if "accuracy" in row else "",
            "" if not estimate else "fits" if estimate["ok"] else f"exit {estimate['exit']}",
            *("/".join(f"{found[name]:.0f}" for found in (estimate, build) if name in found) for name in ("LUT", "FF")),
            f"{build['clock_hz'] / 1e6:g}/{build['fmax'] / 1e6:.1f}" if "fmax" in build else "",
            f"{build['cycles']}" if "cycles" in build else "",
            " ".join(str(row[level].get("exact", "failed")) if level in row else "-" for level in SAMPLES),
            f"{estimate['energy'] * 1e9:.2f}" if "energy" in estimate else "",
            f"{build['build_time']:.0f}" if "build_time" in build else "",
            failed[0] if failed else estimate.get("hint", ""),
        ]  # fmt: skip

    def _preflight(self, model: Model) -> Row:
        checked = gw.check(model, f"rtl:{self.board}")
        found: Row = {"ok": checked.ok, **{key: figure.value for key, figure in checked.figures.items()}}
        try:
            self._compiled(model, "")
        except GatewrightError as error:
            found |= {"exit": error.exit_code, "short": list(checked.shortfalls), "hint": error.hint}
        return found

    def _compiled(self, model: Model, options: str) -> Artifact:
        """Lowered, or built if it was: what is there of the same model is taken as it is."""
        out = self.folder / (options.strip("{}") or "design")
        if (out / "manifest.json").exists():
            found = Artifact.open(out, driver.context())
            if found.manifest["model"]["digest"] == model.digest:
                return found
        return gw.compile(model, f"rtl:{self.board}{options}", out=out)

    def _exact(self, level: str, model: Model, feeds: dict[str, Any], expected: Any) -> Row:
        artifact = self._compiled(model, "{simulate=netlist}" if level == "netlist" else "")
        if level == "protocol":
            with VirtualBoard(artifact.path, driver.context()) as virtual:
                # What the serial line does is the same before and after the bitstream is made; only a built artifact is taken for a board.
                manifest = {**artifact.manifest, "stage": "built"}
                with Artifact(artifact.path, manifest, driver.context(port=virtual.port)).load("device") as executor:
                    got = executor.run(feeds)["y"]
        else:
            with artifact.load("emulate" if level == "emulate" else "simulate") as executor:
                got = executor.run(feeds)["y"]
        return {"samples": len(got), "exact": int(np.sum(np.all(got == expected[: len(got)], axis=1)))}

    def _build(self, model: Model) -> Row:
        told = [time.monotonic()]

        def progress(what: str, done: int | None = None, total: int | None = None) -> None:
            if time.monotonic() - told[0] > 30:
                told[0] = time.monotonic()
                print(f"  {what}", file=sys.stderr, flush=True)

        target = gw.build(self._compiled(model, ""), progress=progress).manifest["target"]
        figures = {key: figure["value"] for key, figure in target["figures"].items()}
        return {**figures, "clock_hz": target["clock_hz"], "cycles": target["latency_cycles"], "seed": target["seed"]}

    def _step(self, name: str, work: Callable[[], Row]) -> None:
        if name in self.row and "error" not in self.row[name]:
            return
        print(f"{self.name}@{self.board}: {name}", file=sys.stderr, flush=True)
        started = time.monotonic()
        try:
            found = work()
        except GatewrightError as error:
            found = {"error": f"exit {error.exit_code}: {error}"}
        self._note(**{name: {**found, "seconds": round(time.monotonic() - started, 1)}})

    def _read(self) -> Row:
        return json.loads(self._file.read_text(encoding="utf-8")) if self._file.exists() else {"network": self.name, "board": self.board}

    def _note(self, **found: Any) -> None:
        self._keep({**self._read(), **found})  # another run may have done other steps meanwhile

    def _keep(self, row: Row) -> None:
        self.row = row
        self._file.parent.mkdir(parents=True, exist_ok=True)
        partial = self._file.with_suffix(f".{os.getpid()}.tmp")
        partial.write_text(json.dumps(row, indent=1) + "\n", encoding="utf-8")
        os.replace(partial, self._file)


def main() -> int:
    parser = argparse.ArgumentParser(description="networks × boards with open tools")
    parser.add_argument("--models", type=Path, required=True, help="what rtl_train.py wrote")
    parser.add_argument("-o", "--out", type=Path, required=True, help="folder for rows and artifacts; what is there is kept")
    parser.add_argument("--only", default=None, help="pairs, mlp_int4p@icebreaker,…; networks, cnn_int4; or boards, icebreaker; none: ''")
    parser.add_argument("--levels", default=",".join(SAMPLES), help="to compare with the reference at (default: %(default)s)")
    parser.add_argument("--no-build", action="store_true", help="make no bitstream")
    arguments = parser.parse_args()
    wanted = None if arguments.only is None else set(arguments.only.split(","))
    levels = [level for level in arguments.levels.split(",") if level]
    pairs = [Pair(n, b, source, arguments.out) for n, source in networks(arguments.models).items() for b in BOARDS]
    for pair in pairs:
        if wanted is None or wanted & {f"{pair.name}@{pair.board}", pair.name, pair.board}:
            pair.run(levels, not arguments.no_build)
    table = Table(*COLUMNS)
    for pair in pairs:
        table.add_row(*pair.cells())
    Console(width=240).print(table)
    wrong = [f"{pair.name}@{pair.board}" for pair in pairs if "preflight" in pair.row and not pair.as_it_should_be]
    print(f"not as it should be: {', '.join(wrong)}" if wrong else "every pair that was run is as it should be")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
