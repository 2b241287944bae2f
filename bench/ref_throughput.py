"""Samples per second of ``ref`` on the digits MLP, float and int8, one batch of all 540 test digits repeated to 20,000.

python bench/ref_throughput.py
"""

from __future__ import annotations

import statistics
import time
from importlib.resources import files
from pathlib import Path

import numpy as np

import gatewright as gw
from gatewright.frontend.reference import Reference

SAMPLES, RUNS = 20_000, 9


def main() -> None:
    demo = Path(str(files("gatewright.runtime"))) / "demo_data"
    prepared = {"x": gw.Input(scale=1 / 16)}
    train = gw.Dataset.load(demo / "digits.npz", inputs=prepared, part="train")
    test = gw.Dataset.load(demo / "digits.npz", inputs=prepared)
    model = gw.load(demo / "digits_mlp.onnx")
    for text in ("float", "fuse,quantize{bits=8,grid=pow2}", "fuse,quantize{bits=8,grid=affine,per=channel}"):
        candidate = model if text == "float" else gw.transform(model, text, data=train)
        reference = Reference(candidate)
        x = np.resize(test.feeds(candidate.inputs)["x"], (SAMPLES, 64))
        seconds = []
        for _ in range(RUNS):
            start = time.perf_counter()
            reference.run({"x": x})
            seconds.append(time.perf_counter() - start)
        print(f"{text}: {SAMPLES / statistics.median(seconds):,.0f} samples/s (median of {RUNS} runs of {SAMPLES:,} samples)")


if __name__ == "__main__":
    main()
