"""Networks × tools of `hls`: the project written, the design emulated against the reference, its files checked with what is at hand.

    python bench/hls_backends.py --results build/hls_backends --shared ../shared [--only digits@vitis,…]

A pair that is in the results folder is not done again. "equal" counts samples in which every output value is the reference's;
"checked" is each file that something here can parse or run: Tcl against noted stand-ins, testbench and XRT host by g++ against
stand-ins, Makefile by make -n, the PYNQ driver by Python (the design's own C++ is compiled whole for the emulation). None of
these projects holds RTL: the vendors' tools make it. Seconds are of writing, of g++ on the emulator, of running the samples.
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
from gatewright.targets.hls import lint

DEMO = Path(str(files("gatewright.runtime"))) / "demo_data"
PIPELINE = "fuse,quantize{bits=8,grid=pow2}"
TOOLS = ("vitis", "vivado", "vivadoaccelerator", "quartus", "oneapi", "catapult")
COLUMNS = ("network", "tool", "board", "design", "written", "equal", "preflight", "checked", "s written/compiled/run", "note")


def digits(_: Path) -> tuple[gw.Model, gw.Dataset]:
    data = gw.Dataset.load(DEMO / "digits.npz", inputs={"x": gw.Input(scale=1 / 16)})
    return gw.load(DEMO / "digits_mlp.onnx"), data


def tiny_ad01(shared: Path) -> tuple[gw.Model, gw.Dataset]:
    rng = np.random.default_rng(0)
    frames = (rng.normal(size=(48, 640)) * 8 - 20).astype(np.float32)  # log-mel energies as its training data has them
    return gw.load(shared / "models" / "tiny_ad01_fp32.onnx"), gw.Dataset({"input_1": frames})


def mnist_cntk(shared: Path) -> tuple[gw.Model, gw.Dataset]:
    prepared = {"Input3": gw.Input(reshape=(1, 28, 28), dtype="float32")}
    data = gw.Dataset.load(shared / "data" / "mnist_test_10k.npz", inputs=prepared).take(100)
    return gw.load(shared / "models" / "mnist_cntk.onnx"), data


NETWORKS = {"digits": digits, "tiny_ad01": tiny_ad01, "mnist_cntk": mnist_cntk}


def board_of(network: str, tool: str) -> str:
    if tool in ("quartus", "oneapi"):
        return "10ax115"
    return "zcu102" if network == "tiny_ad01" else "pynq-z2"


def row(network: str, tool: str, shared: Path, folder: Path) -> dict[str, Any]:
    model, data = NETWORKS[network](shared)
    model = gw.transform(model, PIPELINE, data=data.take(min(len(data), 200)))
    board = board_of(network, tool)
    found: dict[str, Any] = {"network": network, "tool": tool, "board": board, "written": "no", "equal": "", "checked": "", "note": ""}
    started = time.monotonic()
    try:
        artifact = gw.compile(model, f"hls:{board}{{tool={tool}}}", out=folder / "artifact", data=data)
        written = time.monotonic() - started
        described = artifact.manifest["target"]
        found |= {"written": "yes", "design": f"{described['io']}, {'IP' if described['shell'] == 'none' else described['shell']}"}
        figures = {name: figure["value"] for name, figure in described["figures"].items()}
        found["preflight"] = ", ".join(f"{figures[name]:.0f} {name}" for name in ("LUT", "DSP", "BRAM", "interval"))
        checks = lint.check(artifact.path, folder)
        wrong = [f"{finding.file}: {finding.wrong}" for finding in checks if finding.wrong]
        found["checked"] = "; ".join(wrong)[:200] if wrong else f"{len(checks)} clean: {', '.join(finding.file for finding in checks)}"
        started = time.monotonic()
        with artifact.load("emulate") as executor:
            compiled = time.monotonic() - started
            feeds = data.feeds(executor.inputs)
            expected = Reference(model).run(feeds)
            started = time.monotonic()
            got = executor.run(feeds)
            ran = time.monotonic() - started
        differs = np.any([np.any((got[name] != expected[name]).reshape(len(data), -1), axis=1) for name in expected], axis=0)
        found["equal"] = f"{len(data) - int(differs.sum())} of {len(data)}"
        found["s written/compiled/run"] = f"{written:.0f} / {compiled:.0f} / {ran:.1f}"
    except GatewrightError as error:
        found["note"] = f"exit {error.exit_code}: {error.message}"[:300]
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description="networks × tools of hls")
    parser.add_argument("--results", type=Path, required=True, help="where finished pairs are kept")
    parser.add_argument("--shared", type=Path, required=True, help="the folder with models/ and data/")
    parser.add_argument("--only", default="", help="pairs: digits@vitis,…")
    chosen = parser.parse_args()
    chosen.results.mkdir(parents=True, exist_ok=True)
    pairs = [tuple(pair.split("@")) for pair in chosen.only.split(",") if pair] or [(n, t) for n in NETWORKS for t in TOOLS]
    table = Table(*COLUMNS)
    for network, tool in pairs:
        kept = chosen.results / f"{network}-{tool}.json"
        if not kept.exists():
            with tempfile.TemporaryDirectory(prefix="gatewright-bench-") as scratch:
                found = row(network, tool, chosen.shared.resolve(), Path(scratch))
            kept.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
            print(json.dumps(found), flush=True)
        values = json.loads(kept.read_text(encoding="utf-8"))
        table.add_row(*(str(values.get(column, "")) for column in COLUMNS))
    Console(width=240).print(table)


if __name__ == "__main__":
    main()
