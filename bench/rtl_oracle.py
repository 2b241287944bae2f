"""Our additions beside alkaid's, matrix by matrix: additions, full-adder bits, and on request the LUTs that Yosys makes of both.

    python -m venv build/oracle && build/oracle/bin/pip install alkaid
    python bench/rtl_oracle.py --alkaid build/oracle/bin/python [--models build/rtl_models] [--synthesize]

alkaid (the successor of da4ml, LGPL) is never a part of the flow: it runs in another interpreter and only its list of
additions comes back. It is brought into our network, with our exact widths, so both are emitted, pipelined and synthesized alike.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import tempfile
import time
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np

import gatewright as gw
from gatewright.frontend.integer import plan
from gatewright.hw.device import Board, load_device
from gatewright.runtime import driver
from gatewright.targets.rtl import interpret, matrix, pipeline, tools, verilog
from gatewright.targets.rtl.matrix import DEFAULT, Program, Term
from gatewright.targets.rtl.network import Array, Builder, Network, Port

DEMO = Path(str(files("gatewright.runtime"))) / "demo_data"
INT8, INT4 = "fuse,quantize{bits=8,grid=pow2}", "fuse,quantize{bits=4,grid=pow2}"
THERE = """
import json, sys, time
import numpy as np
from alkaid._binary import cmvm_solve
given = json.load(sys.stdin)
start = time.perf_counter()
stages = cmvm_solve(np.array(given["weight"], np.float32).T.copy(), qintervals=[(lo, hi, 1.0) for lo, hi in given["bounds"]])
json.dump({"seconds": time.perf_counter() - start, "stages": [
    {"shifts": [int(v) for v in s.inp_shifts], "out": [int(v) for v in s.out_idxs], "out_shifts": [int(v) for v in s.out_shifts],
     "out_negs": [bool(v) for v in s.out_negs], "ops": [[o.opcode, list(o.addr), list(o.data)] for o in s.ops]} for s in stages
]}, sys.stdout)
"""


def matrices(models: Path | None) -> dict[str, tuple[Array, list[tuple[int, int]]]]:
    """Weights [outputs, inputs] and the inputs' bounds of each dense layer of the digits MLP in three precisions."""
    train = gw.Dataset.load(DEMO / "digits.npz", inputs={"x": gw.Input(scale=1 / 16)}, part="train")
    sources = [("int8", DEMO / "digits_mlp.onnx", INT8), ("int4", DEMO / "digits_mlp.onnx", INT4)]
    if models is not None:
        sources.append(("int4p", models / "digits_mlp_pruned.onnx", INT4))
    found = {}
    for name, path, pipeline_text in sources:
        model = gw.transform(gw.load(path), pipeline_text, data=train)
        for op in plan(model).integer_ops:
            if op.kind == "matmul" and op.weight is not None:
                found[f"{name} {op.name}"] = (op.weight.T, [(op.operands[0].lo, op.operands[0].hi)] * len(op.weight))
    return found


def theirs(weight: Array, bounds: list[tuple[int, int]], python: Path) -> tuple[Program, float]:
    """alkaid's additions as a Program of ours."""
    given = json.dumps({"weight": weight.tolist(), "bounds": bounds})
    done = subprocess.run([python, "-c", THERE], input=given, capture_output=True, text=True, check=True)
    answer = json.loads(done.stdout)
    solver = matrix._Solver(list(bounds), DEFAULT)
    values: list[Term | None] = [Term(index) for index in range(len(bounds))]
    for stage in answer["stages"]:
        inputs = [_scaled(value, shift) for value, shift in zip(values, stage["shifts"], strict=True)]
        made: list[Term | None] = []
        for opcode, addresses, data in stage["ops"]:
            if opcode == -1:
                made.append(inputs[data[0]])
            elif opcode in (0, 1):
                a, b = made[addresses[0]], _scaled(made[addresses[1]], data[0])
                made.append(_added(solver, a, _scaled(b, 0, opcode == 1)))
            else:
                raise SystemExit(f"alkaid's operation {opcode} is not known here")
        rows = zip(stage["out"], stage["out_shifts"], stage["out_negs"], strict=True)
        values = [None if index < 0 else _scaled(made[index], shift, negative) for index, shift, negative in rows]
    width = len(bounds) + 1
    coefficients = np.stack(solver.coefficients[len(bounds) :]) if solver.steps else np.zeros((0, width), np.int64)
    return Program(tuple(solver.steps), tuple(values), (), coefficients), float(answer["seconds"])


def _scaled(term: Term | None, shift: int, negative: bool = False) -> Term | None:
    return None if term is None else Term(term.value, term.shift + shift, -term.sign if negative else term.sign)


def _added(solver: Any, a: Term | None, b: Term | None) -> Term | None:
    return solver.add(a, b) if a is not None and b is not None else a or b


def network_of(program: Program, bounds: list[tuple[int, int]]) -> Network:
    builder = Builder()
    builder.layer("matrix")
    inputs = [builder.input(0, index, lo, hi) for index, (lo, hi) in enumerate(bounds)]
    outputs = program.apply(builder, inputs)
    ends = [builder.bounds(node) for node in outputs]
    entry = Port("x", (1, len(bounds)), "int16", *bounds[0])
    leave = Port("y", (1, len(outputs)), "int32", min(low for low, _ in ends), max(high for _, high in ends))
    return Network((entry,), (leave,), tuple(builder.nodes), (tuple(outputs),), tuple(builder.layers)).pruned()


def luts(network: Network, board: Board, clock_hz: float) -> tuple[int, int]:
    """LUT4s that Yosys makes of it (a carry cell of ECP5 is two) and pipeline stages."""
    planned = pipeline.schedule(network, clock_hz, pipeline.delays_of(board.part))
    with tempfile.TemporaryDirectory(dir=driver.context().cache_dir) as name:
        folder = Path(name)
        (folder / "network.v").write_text(verilog.emit(network, planned), encoding="utf-8")
        script = "read_verilog network.v; synth_ecp5 -top network; tee -q -o cells.json stat -json"
        tools.run(tools.YOSYS, ["-q", "-p", script], cwd=folder, log=folder / "log", what="synthesis", context=driver.context())
        cells = json.loads((folder / "cells.json").read_text(encoding="utf-8"))["design"]["num_cells_by_type"]
    return cells.get("LUT4", 0) + 2 * cells.get("CCU2C", 0), planned.stages


def main() -> None:
    parser = argparse.ArgumentParser(description="our additions beside alkaid's")
    parser.add_argument("--alkaid", type=Path, required=True, help="a Python that has alkaid")
    parser.add_argument("--models", type=Path, help="what rtl_train.py wrote")
    parser.add_argument("--synthesize", action="store_true", help="LUTs by Yosys for ECP5, too")
    arguments = parser.parse_args()
    board = load_device("ulx3s-25f")
    assert isinstance(board, Board)
    for name, (weight, bounds) in matrices(arguments.models).items():
        start = time.perf_counter()
        pair = {"ours": network_of(matrix.solve(weight, [0] * len(weight), bounds), bounds)}
        seconds = time.perf_counter() - start
        program, their_seconds = theirs(weight, bounds, arguments.alkaid)
        pair["alkaid"] = network_of(program, bounds)
        x = np.random.default_rng(0).integers(bounds[0][0], bounds[0][1] + 1, (50, len(bounds)))
        for who, network in pair.items():
            assert np.array_equal(interpret.run(network, [x])[0], x @ weight.T), f"{who} is wrong on {name}"
        for who, took in (("ours", seconds), ("alkaid", their_seconds)):
            network = pair[who]
            adders = [node for node in network.nodes if node.op == "add"]
            bits = sum(pipeline.adder_width(network, node) for node in adders)
            made = luts(network, board, 50e6) if arguments.synthesize else None
            synthesized = f", {made[0]:5d} LUT in {made[1]} stages" if made else ""
            print(f"{name:14s} {who:7s} {len(adders):5d} additions, {bits:6d} bits, {took:5.1f} s{synthesized}", flush=True)


if __name__ == "__main__":
    main()
