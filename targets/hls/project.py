"""The files of an HLS design: the hls4ml project, what stands around it, verification vectors.

In the artifact: ``firmware/`` (the C++ that the vendor's tool compiles, with hls4ml's headers, the weights and the shell),
``emulator.cpp`` and ``traced.cpp`` (the same design for g++; ``emulation/`` takes the place of headers that only the vendor
has), ``testbench.cpp`` and ``tb_data/`` (for the vendor's simulation), ``network.json`` (every layer and type, and which ONNX
node it is), ``interface.json``, ``vectors.npz``, ``model.onnx``, ``host_pre.onnx``, ``host_post.onnx``; from scripts.py the
vendor's scripts, ``Makefile`` and ``README.md``; from hosts.py the host's driver.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from gatewright.interpreter import python
from gatewright.progress import Progress
from gatewright.targets import toolchain

from . import programs, shell
from .network import Array, Network

_TEMPLATES = Path(__file__).resolve().parent / "templates"
GENERATOR_MEMORY_BYTES = 4 << 30


def write_project(
    network: Network, stimuli: Mapping[str, Array], folder: Path, others: Mapping[str, str] | None = None, *,
    log: Path, time_limit_s: float, progress: Progress,
) -> None:  # fmt: skip
    """Write network.json, hls4ml's files, the programs and the shell around them into ``folder``.

    ``stimuli``: verification vectors, as ``vectors.make`` gives them. ``others``: further files by path (scripts.py, hosts.py).
    hls4ml runs in a process of its own: a crash there is ToolFailed.
    """
    with tempfile.TemporaryDirectory(prefix="gatewright-hls-") as scratch:
        source, made = Path(scratch) / "in", Path(scratch) / "out"
        source.mkdir()
        made.mkdir()
        network.save(source)
        command = python("-m", "gatewright.targets.hls.generate", source, made)
        # A fixed hash seed: hls4ml keeps header names in sets.
        toolchain.run(
            command, cwd=Path(scratch), log=log, what="writing the hls4ml project", env={"PYTHONHASHSEED": "0"},
            time_limit_s=time_limit_s, memory_limit_bytes=GENERATOR_MEMORY_BYTES, progress=progress,
        )  # fmt: skip
        shutil.move(source / "network.json", folder / "network.json")
        for entry in sorted(made.iterdir()):
            shutil.move(entry, folder / entry.name)
    interface = json.loads((folder / "interface.json").read_text(encoding="utf-8"))
    written = {
        "emulator.cpp": programs.source("emulator.cpp", network, interface),
        "testbench.cpp": programs.source("testbench.cpp", network, interface),
        **shell.sources(network, interface),
        **_stand_ins(network),
        **(others or {}),
    }
    for name, text in written.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8", newline="\n")
    (folder / "tb_data").mkdir()
    for name, ports, prefix in (("inputs", network.inputs, "in."), ("expected", network.outputs, "out.")):
        real = np.concatenate([port.encode(stimuli[prefix + port.value].astype(np.int64)) for port in ports], axis=1)
        lines = [" ".join(f"{value:.17g}" for value in sample) for sample in real]
        (folder / "tb_data" / f"{name}.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")


def _stand_ins(network: Network) -> dict[str, str]:
    """Headers that only g++ needs where it takes the place of icpx: each of the names that a oneAPI design includes leads to one file."""
    if network.tool != "oneapi":
        return {}
    home = "emulation/sycl"
    included = (
        "sycl.hpp", "ext/intel/fpga_extensions.hpp", "ext/intel/ac_types/ac_fixed.hpp", "ext/intel/ac_types/ac_fixed_math.hpp",
        "ext/intel/ac_types/ac_int.hpp", "ext/intel/experimental/task_sequence.hpp", "ext/intel/prototype/interfaces.hpp",
    )  # fmt: skip
    forwards = {f"{home}/{name}": '#include "sycl_for_gxx.hpp"\n' for name in included}
    return {"emulation/sycl_for_gxx.hpp": (_TEMPLATES / "oneapi" / "sycl_for_gxx.hpp").read_text(encoding="utf-8"), **forwards}
