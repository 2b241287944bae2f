"""Our networks beside alkaid's: whole networks synthesized alike at one pipeline depth, and the matrices in them, addition by addition.

    python -m venv build/oracle && build/oracle/bin/pip install alkaid
    python bench/rtl_oracle.py networks --alkaid build/oracle/bin/python [--models DIR …] [--results FILE]
    python bench/rtl_oracle.py matrices --alkaid build/oracle/bin/python [--models DIR …]

alkaid (the successor of da4ml, LGPL) is never a part of the flow: ``rtl_oracle_alkaid.py`` runs in another interpreter.

networks   The same integer network, layer by layer, through alkaid: its own tracing, sharing, pipelining and Verilog, as many register
           stages as ours has at 50 MHz. Both are exact on 50 random samples. Yosys (synth_ecp5) counts both: LUT4, and two for
           each CCU2C. Of ``--variants``, "half up" is alkaid with its cheaper rounding, which is then not the same network. What
           ``--results`` holds is not counted again.
matrices   Only the lists of additions, brought into our network with our exact widths.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import json
import subprocess
import tempfile
import time
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np

import gatewright as gw
from gatewright.frontend.integer import FloatStep, plan
from gatewright.frontend.windows import Window
from gatewright.hw.device import Board, load_device
from gatewright.runtime import driver
from gatewright.targets.rtl import interpret, matrix, pipeline, synthesis, tools, verilog
from gatewright.targets.rtl.lower import lower
from gatewright.targets.rtl.matrix import DEFAULT, Program, Term
from gatewright.targets.rtl.network import Array, Builder, Network, Port

DEMO = Path(str(files("gatewright.runtime"))) / "demo_data"
INT8, INT4 = "fuse,quantize{bits=8,grid=pow2}", "fuse,quantize{bits=4,grid=pow2}"
CLOCK_HZ = 50e6
SAMPLES = 50
LIMIT_S = 4 * 3600.0
"""For one synthesis."""


def models(folders: list[Path]) -> dict[str, gw.Model]:
    """The demo's perceptron at 8 and 4 bits, and of ``folders`` what rtl_train.py and rtl_jet.py wrote."""
    sources: list[tuple[str, Path, str | None, tuple[int, ...] | None]] = [
        ("mlp_int8", DEMO / "digits_mlp.onnx", INT8, None), ("mlp_int4", DEMO / "digits_mlp.onnx", INT4, None),
    ]  # fmt: skip
    for folder in folders:
        sources += [
            ("mlp_int4p", folder / "digits_mlp_pruned.onnx", INT4, None), ("cnn_int4", folder / "digits_cnn_small.onnx", INT4, (1, 8, 8)),
            ("jet_6bit", folder / "jet_6bit.onnx", None, None), ("jet_6bit_pruned", folder / "jet_6bit_pruned.onnx", None, None),
        ]  # fmt: skip
    found = {}
    for name, path, text, shape in sources:
        if path.is_file():
            train = gw.Dataset.load(DEMO / "digits.npz", inputs={"x": gw.Input(scale=1 / 16, reshape=shape)}, part="train")
            found[name] = gw.transform(gw.load(path), text, data=train) if text else gw.load(path)
    return found


# ---- whole networks -------------------------------------------------------------------------------------------------


def layers(model: gw.Model) -> tuple[list[tuple[int, int]], list[dict[str, Any]]]:
    """Bounds of the inputs, and each layer as ``rtl_oracle_alkaid.py`` takes it: dense or convolution on grids of powers of two."""
    network, parts = lower(model)
    (entry,) = network.inputs
    places = {entry.value: np.arange(entry.size).reshape(entry.shape)}
    found = []
    for step in parts.core:
        if isinstance(step, FloatStep):
            places[step.node.outputs[0].name or ""] = places[step.node.inputs[0].name or ""].reshape(1, -1)
            continue
        (operand,) = step.operands
        if step.kind == "requantize" and step.node is not None:
            places[step.output] = places[operand.name].reshape(step.shape)
            continue
        if step.kind not in ("matmul", "conv") or step.weight is None:
            raise SystemExit(f"the oracle takes no {step.kind}")
        assert int(operand.grid.zero_point) == int(step.grid.zero_point) == 0
        here = places[operand.name]
        if step.kind == "conv":
            assert step.node is not None
            windows = Window.of(step.node, step.weight.shape[2:]).view(here, -1)[0]
            gather = np.moveaxis(windows, 0, 2).reshape(windows.shape[1] * windows.shape[2], -1)
            weight = step.weight.reshape(step.weight.shape[0], -1)
        else:
            gather, weight = here.reshape(1, -1), step.weight.T
        factor, shift = (np.broadcast_to(a, (len(weight),)) for a in (step.multipliers[0].m, step.multipliers[0].k))
        assert all(int(m) & (int(m) - 1) == 0 for m in factor)
        bias = step.bias if step.bias is not None else np.zeros(len(weight), np.int64)
        shifts = [int(k) - int(m).bit_length() + 1 for m, k in zip(factor, shift, strict=True)]
        numbers = {"gather": gather.tolist(), "weight": weight.tolist(), "bias": bias.tolist(), "shift": shifts}
        found.append({**numbers, "lo": step.lo, "hi": step.hi})
        places[step.output] = np.arange(int(np.prod(step.shape))).reshape(step.shape)
    return [(entry.lo, entry.hi)] * entry.size, found


def asked(python: Path, request: dict[str, Any]) -> dict[str, Any]:
    """What alkaid answers."""
    script = Path(__file__).with_name("rtl_oracle_alkaid.py")
    done = subprocess.run([python, script], input=json.dumps(request), capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"alkaid failed:\n{done.stderr[-2000:]}")
    return dict(json.loads(done.stdout))


def counted(sources: dict[str, str], top: str) -> dict[str, int]:
    """LUT4s that Yosys makes of it for ECP5 (a carry cell is two), and flip-flops."""
    context = dataclasses.replace(driver.context(), time_limit_s=LIMIT_S)
    with tempfile.TemporaryDirectory(dir=context.cache_dir) as name:
        folder = Path(name)
        for file, text in {**sources, **synthesis.files("synth_ecp5")}.items():
            (folder / file).write_text(text, encoding="utf-8")
        reads = [f"read_verilog {' '.join(sources)}", f"hierarchy -check -top {top}", "flatten"]
        lines = [*reads, *synthesis.steps("synth_ecp5"), f"synth_ecp5 -top {top}", "tee -q -o cells.json stat -json"]
        tools.run(tools.YOSYS, ["-q", "-p", "; ".join(lines)], cwd=folder, log=folder / "log", what="synthesis", context=context)
        stat = json.loads((folder / "cells.json").read_text(encoding="utf-8"))
    cells = stat["design"]["num_cells_by_type"]
    return {"luts": cells.get("LUT4", 0) + 2 * cells.get("CCU2C", 0), "ffs": cells.get("TRELLIS_FF", 0)}


VARIANTS = {"alkaid": ("RND_CONV", False), "three terms": ("RND_CONV", True), "half up": ("RND", False)}
"""alkaid as it is, with additions of three terms, and with its cheaper rounding: its rounding mode, and whether additions are joined."""


def compare(name: str, model: gw.Model, python: Path, results: Path | None, variants: list[str]) -> None:
    board = load_device("ulx3s-85f")
    assert isinstance(board, Board)
    network, _ = lower(model)
    planned = pipeline.schedule(network, CLOCK_HZ, pipeline.delays_of(board.part))
    bounds, stack = layers(model)
    x = np.random.default_rng(0).integers([lo for lo, _ in bounds], [hi + 1 for _, hi in bounds], (SAMPLES, len(bounds)))
    expected = interpret.run(network, [x])[0]
    designs: dict[str, dict[str, str]] = {"ours": {"network.v": verilog.emit(network, planned)}}
    seconds: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder:
        for who in variants:
            rounding, ternary = VARIANTS[who]
            place = Path(folder) / who.replace(" ", "_")
            request = {"bounds": bounds, "layers": stack, "stages": planned.stages, "x": x.tolist(), "folder": str(place)}
            answer = asked(python, {**request, "rounding": rounding, "ternary": ternary})
            seconds[who] = answer["seconds"]
            if rounding == "RND_CONV":
                assert np.array_equal(np.array(answer["y"]), expected), f"alkaid differs on {name}"
            written = sorted((*(place / "src").glob("*.v"), *(place / "src" / "static").glob("*.v")))
            designs[who] = {file.name: file.read_text(encoding="utf-8") for file in written}
    rows = {}
    for who, sources in designs.items():
        key = f"{name} {who} {hashlib.sha256(json.dumps(sources, sort_keys=True).encode()).hexdigest()[:16]}"
        rows[who] = kept(results, key, lambda s=sources, w=who: counted(s, "network" if w == "ours" else "oracle"))  # type: ignore[misc]
    for who, row in rows.items():
        took = f"; alkaid took {seconds[who]:.1f} s; ours / its LUTs {rows['ours']['luts'] / row['luts']:.3f}" if who in seconds else ""
        print(f"{name:16s} {who:12s} {row['luts']:6d} LUT, {row['ffs']:6d} FF, {planned.stages} stages{took}", flush=True)


def kept(results: Path | None, key: str, make: Any) -> dict[str, int]:
    """From the file of results, or made and added to it."""
    known = {}
    if results is not None and results.is_file():
        known = dict(json.loads(line) for line in results.read_text(encoding="utf-8").splitlines())
    if key in known:
        return dict(known[key])
    made = dict(make())
    if results is not None:
        with results.open("a", encoding="utf-8") as file:
            file.write(json.dumps([key, made]) + "\n")
    return made


# ---- matrices -------------------------------------------------------------------------------------------------------


def matrices(folders: list[Path]) -> dict[str, tuple[Array, list[tuple[int, int]]]]:
    """Weights [outputs, inputs] and the inputs' bounds of each dense layer."""
    return {
        f"{name} {op.name}": (op.weight.T, [(op.operands[0].lo, op.operands[0].hi)] * len(op.weight))
        for name, model in models(folders).items() for op in plan(model).integer_ops if op.kind == "matmul" and op.weight is not None
    }  # fmt: skip


def theirs(weight: Array, bounds: list[tuple[int, int]], python: Path) -> tuple[Program, float]:
    """alkaid's additions as a Program of ours."""
    answer = asked(python, {"weight": weight.tolist(), "bounds": bounds})
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


def compare_matrices(name: str, weight: Array, bounds: list[tuple[int, int]], python: Path) -> None:
    start = time.perf_counter()
    pair = {"ours": network_of(matrix.solve(weight, [0] * len(weight), bounds), bounds)}
    seconds = time.perf_counter() - start
    program, their_seconds = theirs(weight, bounds, python)
    pair["alkaid"] = network_of(program, bounds)
    x = np.random.default_rng(0).integers(bounds[0][0], bounds[0][1] + 1, (SAMPLES, len(bounds)))
    for (who, network), took in zip(pair.items(), (seconds, their_seconds), strict=True):
        assert np.array_equal(interpret.run(network, [x])[0], x @ weight.T), f"{who} is wrong on {name}"
        adders = [node for node in network.nodes if node.op == "add"]
        bits = sum(pipeline.adder_width(network, node) for node in adders)
        print(f"{name:20s} {who:7s} {len(adders):5d} additions, {bits:6d} bits, {took:5.1f} s", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description="our networks beside alkaid's")
    parser.add_argument("what", choices=["networks", "matrices"])
    parser.add_argument("--alkaid", type=Path, required=True, help="a Python that has alkaid")
    parser.add_argument("--models", type=Path, action="append", default=[], help="what rtl_train.py or rtl_jet.py wrote")
    parser.add_argument("--results", type=Path, help="a file that keeps what Yosys counted")
    parser.add_argument("--only", default="", help="names, separated by commas")
    parser.add_argument("--variants", default="alkaid", help=", ".join(VARIANTS))
    arguments = parser.parse_args()
    wanted = [name for name in arguments.only.split(",") if name]
    if arguments.what == "matrices":
        for name, (weight, bounds) in matrices(arguments.models).items():
            compare_matrices(name, weight, bounds, arguments.alkaid)
        return
    for name, model in models(arguments.models).items():
        if not wanted or name in wanted:
            compare(name, model, arguments.alkaid, arguments.results, arguments.variants.split(","))


if __name__ == "__main__":
    main()
