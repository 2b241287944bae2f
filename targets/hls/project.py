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
    """templates/emulator.cpp with this design's arguments."""
    stream = network.io == "stream"
    buffers, read, call, write, arguments = [], [], [], [], []
    for port in interface["inputs"]:
        name, type_, size = port["name"], port["type"], port["size"]
        buffers.append(f"double {name}_real[{size}];")
        read.append(f"        if (!read_all({name}_real, sizeof {name}_real)) return NULL;")
        declared = f"static hls::stream<{type_}> {name}_in" if stream else f"static {type_} {name}_in[{size}]"
        call.append(f"        {declared};\n        nnet::convert_data<double, {type_}, {size}>({name}_real, {name}_in);")
        arguments.append(f"{name}_in")
    for port in interface["outputs"]:
        name, type_, size = port["name"], port["type"], port["size"]
        buffers.append(f"double {name}_real[{size}];")
        call.append(f"        static hls::stream<{type_}> {name}_out;" if stream else f"        static {type_} {name}_out[{size}];")
        write.append(f"        nnet::convert_data<{type_}, double, {size}>({name}_out, {name}_real);")
        write.append(f"        write_all({name}_real, sizeof {name}_real);")
        arguments.append(f"{name}_out")
    call.append(f"        design({', '.join(arguments)});")
    write.append("#ifdef GATEWRIGHT_TRACE")
    write += [f'        write_traced("{t["name"]}", {t["size"]});' for t in interface["traced"]]
    write.append("#endif")
    traced = [f'    (*nnet::trace_outputs)["{t["name"]}"] = calloc({t["size"]}, sizeof(double));' for t in interface["traced"]]
    text = (_TEMPLATES / "emulator.cpp").read_text(encoding="utf-8")
    for mark, lines in (("BUFFERS", buffers), ("READ", read), ("CALL", call), ("WRITE", write), ("TRACED", traced)):
        text = text.replace(f"@{mark}@", "\n".join(lines))
    return text
