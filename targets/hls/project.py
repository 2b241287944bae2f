"""The files of an HLS design: the hls4ml project, the host's sub-models, verification vectors, the vendor's script.

In the artifact: ``firmware/`` (the C++ that the vendor's tool compiles, with hls4ml's headers and the weights),
``emulator.cpp`` and ``traced.cpp`` (the same design for g++), ``network.json`` (every layer and type, and which ONNX node it
is), ``interface.json``, ``vectors.npz``, ``model.onnx``, ``host_pre.onnx``, ``host_post.onnx``, ``build.tcl`` or ``Makefile``.
"""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

from gatewright.progress import Progress
from gatewright.targets import toolchain

from .network import Network

_TEMPLATES = Path(__file__).resolve().parent / "templates"
GENERATOR_MEMORY_BYTES = 4 << 30


def write_project(network: Network, folder: Path, *, log: Path, time_limit_s: float, progress: Progress) -> None:
    """Write network.json and hls4ml's files into ``folder``. hls4ml runs in a process of its own: a crash there is ToolFailed."""
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
    (folder / "emulator.cpp").write_text(emulator_source(network, interface), encoding="utf-8")


def emulator_source(network: Network, interface: dict[str, Any]) -> str:
    """templates/emulator.cpp with this design's arguments.

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
    call.append("static output_data given;\ngiven = design(taken);" if structs else f"design({', '.join(arguments)});")
    allocate = [f'(*nnet::trace_outputs)["{t["name"]}"] = calloc({t["size"]}, sizeof(double));' for t in interface["traced"]]
    traced = [f'write_traced("{t["name"]}", {t["size"]});' for t in interface["traced"]]
    text = (_TEMPLATES / "emulator.cpp").read_text(encoding="utf-8")
    blocks = {"BUFFERS": buffers, "READ": read, "CALL": call, "WRITE": write, "TRACED": traced, "ALLOCATE": allocate}
    for mark, lines in blocks.items():
        indent = {"BUFFERS": 0, "ALLOCATE": 4}.get(mark, 8)
        text = text.replace(f"@{mark}@", "\n".join(" " * indent + line for line in "\n".join(lines).split("\n")))
    return text
