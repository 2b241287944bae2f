"""Networks × boards with open tools: a bitstream that meets its clock, or refused before any tool ran, as preflight said.

    python bench/rtl_train.py -o build/rtl_models
    python bench/rtl_table.py --models build/rtl_models [--only mlp_int4p@icebreaker,…] [--simulate 540]

Per pair: what preflight said, LUT and FF (estimated / placed), the clock asked and reached, exactness of the simulated
design against the reference, accuracy, energy estimate, wall time. Rows go to standard output as they are done.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

import gatewright as gw
from gatewright.errors import GatewrightError
from gatewright.frontend.reference import Reference

DEMO = Path(str(files("gatewright.runtime"))) / "demo_data"
INT8, INT4 = "fuse,quantize{bits=8,grid=pow2}", "fuse,quantize{bits=4,grid=pow2}"
BOARDS = ("ulx3s-85f", "ulx3s-25f", "icebreaker", "tang-nano-9k")
COLUMNS = (
    "network", "board", "accuracy", "preflight", "LUT est/placed", "FF est/placed", "MHz asked/reached", "exact", "nJ", "seconds", "note",
)  # fmt: skip


def networks(folder: Path) -> dict[str, tuple[Path, str, tuple[int, ...] | None]]:
    """File, pipeline, and shape of a sample."""
    mlp, pruned, cnn = DEMO / "digits_mlp.onnx", folder / "digits_mlp_pruned.onnx", folder / "digits_cnn_small.onnx"
    return {
        "mlp_int8": (mlp, INT8, None), "mlp_int4": (mlp, INT4, None), "mlp_int4p": (pruned, INT4, None), "cnn_int4": (cnn, INT4, (1, 8, 8)),
    }  # fmt: skip


def row(name: str, board: str, source: tuple[Path, str, tuple[int, ...] | None], simulate: int, folder: Path) -> dict[str, Any]:
    path, pipeline, shape = source
    prepared = {"x": gw.Input(scale=1 / 16, reshape=shape)}
    train, test = (gw.Dataset.load(DEMO / "digits.npz", inputs=prepared, part=part) for part in ("train", None))
    model = gw.transform(gw.load(path), pipeline, data=train)
    feeds = test.feeds(model.inputs)
    expected = Reference(model).run(feeds)["y"]
    found: dict[str, Any] = {"network": name, "board": board, "accuracy": f"{float((expected.argmax(1) == test.labels).mean()):.3f}"}
    started = time.monotonic()
    checked = gw.check(model, f"rtl:{board}")
    figures = {key: figure.value for key, figure in checked.figures.items()}
    found |= {"preflight": "fits" if checked.ok else "does not fit", "nJ": f"{figures['energy'] * 1e9:.2f}"}
    found |= {"LUT est/placed": f"{figures['LUT']:.0f}", "FF est/placed": f"{figures['FF']:.0f}"}
    try:
        artifact = gw.compile(model, f"rtl:{board}", out=folder / f"{name}-{board}")
        with artifact.load("emulate") as executor:
            exact = [int(np.array_equal(executor.run(feeds)["y"], expected))]
        if simulate:
            some = {key: array[:simulate] for key, array in feeds.items()}
            with artifact.load("simulate") as executor:
                exact.append(int(np.sum(np.all(executor.run(some)["y"] == expected[:simulate], axis=1))))
        found["exact"] = f"emulated {'all' if exact[0] else 'NO'}" + (f", simulated {exact[1]} of {simulate}" if simulate else "")
        target = gw.build(artifact).manifest["target"]
    except GatewrightError as error:
        return found | {"note": f"exit {error.exit_code}: {error.message}"[:160], "seconds": f"{time.monotonic() - started:.0f}"}
    placed = {key: figure["value"] for key, figure in target["figures"].items()}
    found["LUT est/placed"] += f"/{placed['LUT']:.0f}"
    found["FF est/placed"] += f"/{placed['FF']:.0f}"
    found["MHz asked/reached"] = f"{target['clock_hz'] / 1e6:g}/{placed['fmax'] / 1e6:.1f}"
    return found | {"note": f"{target['latency_cycles']} stages", "seconds": f"{time.monotonic() - started:.0f}"}


def main() -> None:
    parser = argparse.ArgumentParser(description="networks × boards with open tools")
    parser.add_argument("--models", type=Path, required=True, help="what rtl_train.py wrote")
    parser.add_argument("--only", default="", help="pairs: mlp_int4p@icebreaker,…")
    parser.add_argument("--simulate", type=int, default=0, metavar="N", help="samples to run through the simulated Verilog, too")
    arguments = parser.parse_args()
    wanted = [pair for pair in arguments.only.split(",") if pair]
    known = networks(arguments.models)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for name, source in known.items():
            for board in BOARDS:
                if not wanted or f"{name}@{board}" in wanted:
                    rows.append(row(name, board, source, arguments.simulate, Path(folder)))
                    print(json.dumps(rows[-1]), flush=True)
    table = Table(*COLUMNS)
    for entry in rows:
        table.add_row(*(str(entry.get(column, "")) for column in COLUMNS))
    Console(width=220).print(table)


if __name__ == "__main__":
    main()
