"""The jet tagger's shape, 16-64-32-32-5, at 6 bits: trained here on made-up data, and beside the figures that were published.

    python bench/rtl_jet.py train -o build/rtl_jet           two minutes
    python bench/rtl_jet.py report -m build/rtl_jet [--build]

The shape is that of Duarte et al. ("Fast inference of deep neural networks in FPGAs for particle physics", JINST 13 P07027, 2018):
16 features of a jet, 5 classes. Their data are not used: 16 features are drawn here from 5 classes of 4 warped normal clouds each,
with a fixed seed, so an accuracy printed here says only that quantization and pruning kept what training had found.

Everything is trained by the project's own passes: ``finetune`` from random weights, then ``qat`` to 6-bit weights and activations on
grids of powers of two; the second network is pruned by ``gradual`` in between. Needs the extras torch and fpga.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx_ir as ir
from onnx import helper, numpy_helper
from rich.console import Console
from rich.table import Table

import gatewright as gw
from gatewright.frontend.reference import Reference
from gatewright.hw.measurement import Measurement
from gatewright.runtime import driver
from gatewright.targets.rtl import interpret, pipeline, tools, verilog
from gatewright.targets.rtl.lower import lower
from gatewright.targets.rtl.network import Array, Network

SIZES = (16, 64, 32, 32, 5)
FLOAT = "finetune{epochs=30,lr=0.003,batch=128,smoothing=0.02}"
SPARSE = "gradual{prune=prune{amount=0.7,scope=global},finetune=finetune{epochs=6,lr=0.002,batch=128},steps=5}"
QAT = "fuse,qat{bits=6,grid=pow2,epochs=20,lr=0.001,batch=128}"
NETWORKS = {"jet_6bit": (FLOAT, QAT), "jet_6bit_pruned": (FLOAT, SPARSE, QAT)}


def data(count: int, seed: int) -> gw.Dataset:
    """Standardized features [count, 16] and classes 0 … 4."""
    shape = np.random.default_rng(7)
    centres, spreads = shape.normal(0, 0.8, (5, 4, 16)), shape.normal(0, 0.45, (5, 4, 16, 16))
    rng = np.random.default_rng(seed)
    labels, clouds = rng.integers(0, 5, count), rng.integers(0, 4, count)
    x = centres[labels, clouds] + np.einsum("nij,nj->ni", spreads[labels, clouds], rng.normal(0, 1, (count, 16)))
    x = np.where(np.arange(16) % 4 == 3, np.sign(x) * np.log1p(np.abs(x)), x)  # some features of a jet are long-tailed
    return gw.Dataset({"x": (x / 2).astype(np.float32)}, labels=labels)


def untrained() -> gw.Model:
    """The perceptron with He's random weights."""
    rng = np.random.default_rng(0)
    nodes, arrays, value = [], [], "x"
    for index, (rows, columns) in enumerate(zip(SIZES, SIZES[1:], strict=False), 1):
        last = index == len(SIZES) - 1
        weight = rng.normal(0, (2 / rows) ** 0.5, (rows, columns)).astype(np.float32)
        arrays += [numpy_helper.from_array(weight, f"w{index}"), numpy_helper.from_array(np.zeros(columns, np.float32), f"b{index}")]
        nodes.append(helper.make_node("Gemm", [value, f"w{index}", f"b{index}"], ["y" if last else f"a{index}"], name=f"fc{index}"))
        if not last:
            nodes.append(helper.make_node("Relu", [f"a{index}"], [f"r{index}"], name=f"relu{index}"))
            value = f"r{index}"
    ends = [helper.make_tensor_value_info(name, 1, ["N", size]) for name, size in (("x", SIZES[0]), ("y", SIZES[-1]))]
    graph = helper.make_graph(nodes, "jet", ends[:1], ends[1:], arrays)
    return gw.load(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10), name="jet")


def accuracy(model: gw.Model, held: gw.Dataset) -> float:
    return float((Reference(model).run(held.feeds(model.inputs))["y"].argmax(axis=1) == held.labels).mean())


def train(folder: Path) -> None:
    learned, held = data(20_000, 1), data(5_000, 2)
    folder.mkdir(parents=True, exist_ok=True)
    for name, pipelines in NETWORKS.items():
        model = untrained()
        for text in pipelines:
            model = gw.transform(model, text, data=learned)
            print(f"{name}: accuracy {accuracy(model, held):.4f} after {text}", flush=True)
        ir.save(model.ir, folder / f"{name}.onnx")


if __name__ == "__main__":
    train(Path("/work/runs/rtlB/jet"))
