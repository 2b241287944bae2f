"""The jet tagger's shape, 16-64-32-32-5, at 6 bits: trained here on made-up data, and beside the figures that were published.

    python bench/rtl_jet.py train build/rtl_jet                    two minutes
    python bench/rtl_jet.py report build/rtl_jet [--quick] [--build ulx3s-85f]

The shape is that of Duarte et al. ("Fast inference of deep neural networks in FPGAs for particle physics", JINST 13 P07027, 2018):
16 features of a jet, 5 classes. Their data are not used: 16 features are drawn here from 5 classes of 4 warped normal clouds each,
with a fixed seed, so an accuracy printed here says only what quantization and pruning kept of what training had found.

Everything is trained by the project's own passes: ``finetune`` from random weights, then ``qat`` to 6-bit weights and activations on
grids of powers of two; the second network is pruned by ``gradual`` in between. ``report`` counts what Yosys makes of them, in
six-input tables (Xilinx) and in four-input ones (ECP5), beside the published figures; what it has counted is kept in the folder.
``--quick`` runs no Yosys: the tables are preflight's estimate, of Xilinx one table per bit of an addition.
Needs the extras torch and fpga.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import itertools
import json
import tempfile
from pathlib import Path

import numpy as np
from onnx import helper, numpy_helper
from rich.console import Console
from rich.table import Table

import gatewright as gw
from gatewright.frontend.reference import Reference
from gatewright.hw.device import Board, load_device
from gatewright.hw.measurement import Measurement
from gatewright.runtime import driver
from gatewright.targets.rtl import interpret, pipeline, synthesis, tools, verilog
from gatewright.targets.rtl.estimate import estimate
from gatewright.targets.rtl.lower import lower
from gatewright.targets.rtl.network import Network

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
    for index, (rows, columns) in enumerate(itertools.pairwise(SIZES), 1):
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


def held_out() -> gw.Dataset:
    return data(5_000, 2)


def accuracy(model: gw.Model) -> float:
    held = held_out()
    return float((Reference(model).run(held.feeds(model.inputs))["y"].argmax(axis=1) == held.labels).mean())


def train(folder: Path) -> None:
    learned = data(20_000, 1)
    folder.mkdir(parents=True, exist_ok=True)
    for name, pipelines in NETWORKS.items():
        model = untrained()
        for text in pipelines:
            model = gw.transform(model, text, data=learned)
            print(f"{name}: accuracy {accuracy(model):.4f} after {text}", flush=True)
        model.save(folder / f"{name}.onnx")


# ---- beside what was published --------------------------------------------------------------------------------------

PUBLISHED = {
    "da4ml: Sun et al., arXiv:2507.04535": {"accuracy": 0.769, "LUT": 12_250, "FF": 1_502, "DSP": 0, "MHz": 212, "ns": 18.9},
    "hls4ml: Fahim et al., arXiv:2103.05579": {"accuracy": 0.762, "LUT": 63_251, "FF": 4_394, "DSP": 38, "MHz": 200, "ns": 45.0},
}
"""JSC OpenML, after place and route out of context on an UltraScale+ part: Hoang, Gupta and Harris, "KANELÉ: Kolmogorov-Arnold
Networks for Efficient LUT-based Evaluation", FPGA 2026 (arXiv:2512.12850), table 3, which collects both from their authors."""
REMARK = """\
Published: JSC OpenML in table 3 of Hoang, Gupta, Harris (FPGA 2026, arXiv:2512.12850), which takes both rows from their authors.
Not comparable: the accuracies (theirs on real jets, ours on made-up data); the networks (bits and sparsity are their authors', ours
have 6 bits everywhere); fabric and tools (theirs after Vivado's placement on an UltraScale+, ours counted by Yosys before any; our
latency at 200 MHz rests on assumed delays). Alike: an input every cycle, fully unrolled."""
ULTRASCALE = pipeline.Delays(level=0.6, carry=0.015, chain=0.3, register=0.6)
"""Assumed, to plan stages with: no open tool places on such a part, so nothing here says that the clock is met."""
LUT6, LUT4 = "synth_xilinx -family xcup -noiopad -noclkbuf", "synth_ecp5"


def counted(text: str, command: str, kept: Path) -> tuple[int, int]:
    """Look-up tables and flip-flops that Yosys makes of the module ``text``; ``kept`` holds what was counted before."""
    key = hashlib.sha256(f"{command}\0{text}".encode()).hexdigest()[:16]
    known = json.loads(kept.read_text(encoding="utf-8")) if kept.is_file() else {}
    if key not in known:
        context = dataclasses.replace(driver.context(), time_limit_s=4 * 3600.0)
        with tempfile.TemporaryDirectory(dir=context.cache_dir) as name:
            folder = Path(name)
            for file, content in {"network.v": text, **synthesis.files(command)}.items():
                (folder / file).write_text(content, encoding="utf-8")
            lines = [*synthesis.script(["network.v"], command, "network"), "tee -q -o cells.json stat -json"]
            tools.run(tools.YOSYS, ["-q", "-p", "; ".join(lines)], cwd=folder, log=folder / "log", what="synthesis", context=context)
            cells = json.loads((folder / "cells.json").read_text(encoding="utf-8"))["design"]["num_cells_by_type"]
        luts = sum(count for cell, count in cells.items() if cell.startswith("LUT")) + 2 * cells.get("CCU2C", 0)
        known[key] = [luts, sum(count for cell, count in cells.items() if cell.startswith(("TRELLIS_FF", "FD")))]
        kept.write_text(json.dumps(known), encoding="utf-8")
    luts, registers = known[key]
    return int(luts), int(registers)


def samples_exact(model: gw.Model, network: Network) -> int:
    """How many held-out samples the network computes as the reference does."""
    values = Reference(model).run(held_out().feeds(model.inputs), trace=True)
    (entry,), (leave,) = network.inputs, network.outputs
    got = interpret.run(network, [values[entry.value].astype(np.int64).reshape(-1, entry.size)])[0]
    return int(np.all(got == values[leave.value].reshape(-1, leave.size), axis=1).sum())


def report(folder: Path, quick: bool) -> None:
    board = load_device("ulx3s-85f")
    assert isinstance(board, Board)
    shown = Table("network", "accuracy", "LUT", "FF", "DSP", "MHz", "stages", "latency ns")
    for name in NETWORKS:
        model = gw.load(folder / f"{name}.onnx", name=name)
        network, _ = lower(model)
        print(f"{name}: {samples_exact(model, network)} of 5000 samples as the reference computes them", flush=True)
        flows = (("LUT6", LUT6, ULTRASCALE, 200e6), ("LUT4", LUT4, pipeline.delays_of(board.part), 50e6))
        for fabric, command, delays, clock_hz in flows:
            planned = pipeline.schedule(network, clock_hz, delays)
            if quick:
                guess = estimate(network, planned, board.part if fabric == "LUT4" else None, wrapped=False)
                luts, registers, source = guess.luts, guess.ffs, "estimated"
            else:
                luts, registers = counted(verilog.emit(network, planned), command, folder / "counted.json")
                source = "synthesized"
            latency = Measurement(planned.stages / clock_hz * 1e9, "ns", "estimated")
            shown.add_row(
                name, f"{accuracy(model):.3f}", f"{luts} {fabric} ({source})", f"{registers}", "0", f"{clock_hz / 1e6:g}",
                f"{planned.stages}", f"{latency.value:.0f} ({latency.source})",
            )  # fmt: skip
    for who, row in PUBLISHED.items():
        latency = Measurement(row["ns"], "ns", "published")
        shown.add_row(
            who, f"{row['accuracy']:.3f}", f"{row['LUT']} LUT6 (published)", f"{row['FF']}", f"{row['DSP']}", f"{row['MHz']}", "",
            f"{latency.value:g} ({latency.source})",
        )  # fmt: skip
    Console(width=160).print(shown)
    print(REMARK)


def build(folder: Path, board: str) -> None:
    """Both networks to a bitstream with the open tools."""
    for name in NETWORKS:
        with tempfile.TemporaryDirectory() as out:
            made = gw.build(gw.compile(gw.load(folder / f"{name}.onnx", name=name), f"rtl:{board}", out=Path(out) / name))
            target = made.manifest["target"]
            figures = {key: figure["value"] for key, figure in target["figures"].items()}
            print(
                f"{name} on {board}: {figures['LUT']:.0f} LUT, {figures['FF']:.0f} FF, {figures['fmax'] / 1e6:.1f} MHz reached of "
                f"{target['clock_hz'] / 1e6:g}, {target['latency_cycles']} cycles, {figures['build_time']:.0f} s", flush=True
            )  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description="the jet tagger's shape at 6 bits")
    parser.add_argument("what", choices=["train", "report"])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--build", metavar="BOARD", help="also make bitstreams for a board with open tools")
    parser.add_argument("--quick", action="store_true", help="estimates, no synthesis")
    arguments = parser.parse_args()
    if arguments.what == "train":
        train(arguments.folder)
        return
    report(arguments.folder, arguments.quick)
    if arguments.build:
        build(arguments.folder, arguments.build)


if __name__ == "__main__":
    main()
