"""Int8 models as they come: ``cpu`` against ``ref`` bit for bit, and ONNX Runtime's unoptimized run counted against ``ref``.

    python bench/int8_files.py --shared ../shared [--samples 64]

Real inputs where the data is there (KWS, CIFAR), else random integers over the whole range. ONNX Runtime goes through
float32, so its differences are counted: samples, values, the largest step, changed top-1.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

import gatewright as gw
from gatewright.errors import GatewrightError
from gatewright.frontend.reference import Reference

NAMES = (
    "tiny_kws_dscnn_int8", "tiny_ic_resnet8_int8", "tiny_vww_int8", "tiny_ad01_int8", "tiny_sww_int8", "tflm_micro_speech_int8",
)  # fmt: skip


def inputs_of(name: str, model: gw.Model, shared: Path, samples: int) -> tuple[np.ndarray[Any, Any], str]:
    """Samples for the model's one input, and where they are from."""
    info = model.inputs[0]
    try:
        if name.startswith("tiny_kws"):
            prepared = {info.name: gw.Input(reshape=info.shape[1:])}
            return gw.Dataset.load(shared / "data/kws01_mfcc_int8_1000.npz", inputs=prepared).take(samples).feeds([info])[info.name], "KWS"
        if name.startswith("tiny_ic"):
            prepared = {info.name: gw.Input(offset=128, dtype="int8")}
            return gw.Dataset.load(shared / "data/cifar10_recovered.npz", inputs=prepared).take(samples).feeds([info])[info.name], "CIFAR"
    except GatewrightError as error:
        print(f"{name}: random inputs, since {error}")
    return np.random.default_rng(0).integers(-128, 128, (samples, *info.shape[1:])).astype(info.dtype), "random"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--shared", type=Path, default=Path("../shared"))
    parser.add_argument("--samples", type=int, default=64)
    arguments = parser.parse_args()
    table = Table("model", "inputs", "samples", "cpu ≠ ref", "ort: samples ≠", "values ≠", "largest step", "top-1 changed")
    for name in NAMES:
        try:
            model = gw.load(arguments.shared / f"models/{name}.onnx")
        except GatewrightError as error:
            print(f"skipped {name}: {error}")
            continue
        x, source = inputs_of(name, model, arguments.shared, arguments.samples)
        feeds, output = {model.inputs[0].name: x}, model.outputs[0].name
        wanted = Reference(model).run(feeds)[output].astype(int).reshape(len(x), -1)
        got = {}
        for target in ("cpu", "ort{exact=true}"):
            with gw.compile(model, target).load() as executor:
                got[target] = executor.run(feeds)[output].astype(int).reshape(len(x), -1)
        steps = np.abs(got["ort{exact=true}"] - wanted)
        table.add_row(
            name, source, str(len(x)), str(int((got["cpu"] != wanted).any(axis=1).sum())), str(int(steps.any(axis=1).sum())),
            f"{np.count_nonzero(steps)} of {steps.size}", str(int(steps.max())),
            str(int((got["ort{exact=true}"].argmax(axis=1) != wanted.argmax(axis=1)).sum())),
        )  # fmt: skip
    Console(width=140).print(table)


if __name__ == "__main__":
    main()
