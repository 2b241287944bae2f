"""The files of an HLS design: the hls4ml project, the host's sub-models, verification vectors, the vendor's script.

In the artifact: ``firmware/`` (the C++ that the vendor's tool compiles, with hls4ml's headers and the weights),
``emulator.cpp`` and ``traced.cpp`` (the same design for g++), ``testbench.cpp`` and ``tb_data/`` (for the vendor's simulation),
``network.json`` (every layer and type, and which ONNX node it is), ``interface.json``, ``vectors.npz``, ``model.onnx``,
``host_pre.onnx``, ``host_post.onnx``, ``build.tcl`` (Vitis) or ``Makefile`` (Quartus).
"""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from gatewright.progress import Progress
from gatewright.targets import toolchain

from .network import Array, Network

_TEMPLATES = Path(__file__).resolve().parent / "templates"
GENERATOR_MEMORY_BYTES = 4 << 30


def write_project(
    network: Network, stimuli: Mapping[str, Array], folder: Path, *, log: Path, time_limit_s: float, progress: Progress
) -> None:
    """Write network.json, hls4ml's files, the programs around them and the vendor's script into ``folder``.

    ``stimuli``: verification vectors, as ``vectors.make`` gives them. hls4ml runs in a process of its own: a crash there is
    ToolFailed.
    """
    with tempfile.TemporaryDirectory(prefix="gatewright-hls-") as scratch:
        source, made = Path(scratch) / "in", Path(scratch) / "out"
        source.mkdir()
        made.mkdir()
        network.save(source)
        command: list[str | Path] = [sys.executable, "-m", "gatewright.targets.hls.generate", source, made]
        # A fixed hash seed: hls4ml keeps header names in sets.
        toolchain.run(
            command, cwd=Path(scratch), log=log, what="writing the hls4ml project", env={"PYTHONHASHSEED": "0"},
            time_limit_s=time_limit_s, memory_limit_bytes=GENERATOR_MEMORY_BYTES, progress=progress,
        )  # fmt: skip
        shutil.move(source / "network.json", folder / "network.json")
        for entry in sorted(made.iterdir()):
            shutil.move(entry, folder / entry.name)
    interface = json.loads((folder / "interface.json").read_text(encoding="utf-8"))
    for name in ("emulator.cpp", "testbench.cpp"):
        (folder / name).write_text(program_source(name, network, interface), encoding="utf-8")
    (folder / "tb_data").mkdir()
    for name, ports, prefix in (("inputs", network.inputs, "in."), ("expected", network.outputs, "out.")):
        real = np.concatenate([port.encode(stimuli[prefix + port.value].astype(np.int64)) for port in ports], axis=1)
        lines = [" ".join(f"{value:.17g}" for value in sample) for sample in real]
        (folder / "tb_data" / f"{name}.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    script = {"vitis": "build.tcl", "quartus": "quartus/Makefile"}[network.tool]
    values = {"PART": network.part, "CLOCK_NS": f"{network.clock_ns:g}", "CLOCK_MHZ": f"{1e3 / network.clock_ns:g}"}
    (folder / Path(script).name).write_text(_filled(script, values), encoding="utf-8")


def program_source(name: str, network: Network, interface: dict[str, Any]) -> str:
    """templates/emulator.cpp or templates/testbench.cpp with this design's arguments.

    Vitis's top function takes arrays or streams; Quartus's takes streams, or a struct of arrays and returns one.
    """
    structs = network.tool == "quartus" and network.io == "parallel"
    back = "convert_data_back" if network.tool == "quartus" else "convert_data"
    stream = {"vitis": "hls::stream", "quartus": "stream"}[network.tool]
    buffers, read, call, write, arguments = [], [], [], [], []
    if structs:
        call.append("static input_data taken;")
    for index, port in enumerate(interface["inputs"]):
        buffer, argument, type_, size = f"real_in_{index}", f"argument_in_{index}", port["type"], port["size"]
        buffers.append(f"double {buffer}[{size}];")
        read.append(f"if (!read_all({buffer}, sizeof {buffer})) return NULL;")
        if structs:
            argument = port["name"].replace("inputs.", "taken.")
        else:
            call.append(f"static {stream}<{type_}> {argument};" if network.io == "stream" else f"static {type_} {argument}[{size}];")
        call.append(f"nnet::convert_data<double, {type_}, {size}>({buffer}, {argument});")
        arguments.append(argument)
    for index, port in enumerate(interface["outputs"]):
        buffer, argument, type_, size = f"real_out_{index}", f"argument_out_{index}", port["type"], port["size"]
        buffers.append(f"double {buffer}[{size}];")
        if structs:
            argument = port["name"].replace("outputs.", "given.")
        else:
            call.append(f"static {stream}<{type_}> {argument};" if network.io == "stream" else f"static {type_} {argument}[{size}];")
        write.append(f"nnet::{back}<{type_}, double, {size}>({argument}, {buffer});")
        write.append(f"write_all({buffer}, sizeof {buffer});")
        arguments.append(argument)
    call += ["static output_data given;", "given = design(taken);"] if structs else [f"design({', '.join(arguments)});"]
    weights, loads = _loaded_weights(interface) if network.tool == "quartus" else ([], [])
    allocate = [f'(*nnet::trace_outputs)["{t["name"]}"] = calloc({t["size"]}, sizeof(double));' for t in interface["traced"]]
    traced = [f'write_traced("{t["name"]}", {t["size"]});' for t in interface["traced"]]
    blocks = {
        "WEIGHTS": weights, "BUFFERS": buffers, "READ": read, "CALL": call, "WRITE": write, "TRACED": traced,
        "LOAD": loads, "ALLOCATE": allocate,
    }  # fmt: skip
    indents = {"WEIGHTS": 0, "BUFFERS": 0, "LOAD": 4, "ALLOCATE": 4}
    return _filled(name, {mark: "\n".join(" " * indents.get(mark, 8) + line for line in lines) for mark, lines in blocks.items()})


def _loaded_weights(interface: dict[str, Any]) -> tuple[list[str], list[str]]:
    """Declarations that take the place of the weights' headers (their include guards are set), and the calls that fill them."""
    declared = ['#include "firmware/defines.h"']
    for weight in interface["weights"]:
        declared += [f"#define {weight['name'].upper()}_H_", f"static {weight['type']} {weight['name']}[{weight['size']}];"]
    loads = [f'load({w["name"]}, {w["size"]}, "weights/{w["name"]}.txt");' for w in interface["weights"]]
    return declared, loads


def _filled(template: str, values: Mapping[str, str]) -> str:
    """A template with each @NAME@ replaced; every value is ours or was checked, none is a name from the model."""
    text = (_TEMPLATES / template).read_text(encoding="utf-8")
    for name, value in values.items():
        text = text.replace(f"@{name}@", value)
    return text
