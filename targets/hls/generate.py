"""network.json + network.npz → an hls4ml project. Runs in a process of its own: ``python -m gatewright.targets.hls.generate IN OUT``.

hls4ml's importers and its ``convert`` passes (which fold, merge and re-type layers) are passed by: the layers and every
type are already what they should be. The top function is written twice, the second time with hls4ml's tracing, which
``emulator.py`` compiles when inner tensors are asked for. ``interface.json`` says what the emulator's C++ needs to know.
"""

from __future__ import annotations

import json
import re
import shutil
import sys
from pathlib import Path
from typing import Any

import hls4ml
import numpy as np

from . import extension
from .backends import BACKENDS
from .network import Io, Tool

TOP = "design"
"""Name of the top function, whatever the model's name is."""


def main(source: Path, destination: Path) -> None:
    """Write ``firmware/``, ``traced.cpp``, ``interface.json`` and what else only g++ needs (``emulation/``) into ``destination``."""
    network = json.loads((source / "network.json").read_text(encoding="utf-8"))
    tool: Tool = network["tool"]
    with np.load(source / "network.npz") as arrays:
        model = build(network, dict(arrays), destination / "raw")
    firmware = destination / "raw" / ("src" if tool == "oneapi" else "") / "firmware"
    model.config.trace_output = True
    model.write()
    traced = _with_own_variables((firmware / f"{TOP}.cpp").read_text(encoding="utf-8"), model, tool, network["io"])
    (destination / "traced.cpp").write_text(traced, encoding="utf-8")
    model.config.trace_output = False
    model.write()
    if BACKENDS[tool].text_weights:
        _write_weights(model, firmware / "weights")
    for name in (f"{TOP}_axi.h", f"{TOP}_axi.cpp"):
        # hls4ml's AXI wrapper casts from float; accelerator.py writes one that carries integers.
        (firmware / name).unlink(missing_ok=True)
    shutil.move(firmware, destination / "firmware")
    if tool == "oneapi":
        _without_literal_padding(destination / "firmware" / "nnet_utils")
        types = Path(hls4ml.__file__).resolve().parent / "templates" / "quartus" / "ac_types"
        shutil.copytree(types, destination / "emulation" / "ac_types")
    shutil.rmtree(destination / "raw")
    (destination / "raw.tar.gz").unlink(missing_ok=True)
    (destination / "interface.json").write_text(json.dumps(_interface(model), indent=1) + "\n", encoding="utf-8")


def build(network: dict[str, Any], arrays: dict[str, Any], output: Path) -> Any:
    """The hls4ml ModelGraph with every pass applied that turns layers into C++ (none that changes what they compute)."""
    from hls4ml.model.graph import HLSConfig, ModelGraph

    backend = BACKENDS[network["tool"]].hls4ml
    extension.register(backend)
    layers, by_name = [], {}
    for entry in network["layers"]:
        data = {f"{key}_data": arrays[f"{entry['name']}.{key}"] for key in entry["arrays"]}
        attributes = {**entry["attributes"], **_for_quartus_writer(entry)} if network["tool"] == "quartus" else entry["attributes"]
        layers.append({"class_name": entry["kind"], "name": entry["name"], "inputs": entry["inputs"], **attributes, **data})
        by_name[entry["name"]] = {
            "Precision": entry["types"], "Strategy": entry["strategy"].capitalize(), "ReuseFactor": entry["reuse"], "Trace": True,
        }  # fmt: skip
    config: dict[str, Any] = {
        "Backend": backend, "ProjectName": TOP, "OutputDir": str(output), "Part": network["part"], "ClockPeriod": network["clock_ns"],
        "IOType": f"io_{network['io']}",
        # Every type is given per layer; a default that was used after all would hold nothing and be seen at once.
        "HLSConfig": {"Model": {"Precision": {"default": "fixed<2,1>"}, "ReuseFactor": 1, "Strategy": "Latency"}, "LayerName": by_name},
        "WriterConfig": {"Namespace": None, "WriteWeightsTxt": True, "WriteTar": False, "TBOutputStream": "both"},
    }  # fmt: skip
    if network["tool"] == "vivadoaccelerator":
        # What its writer asks for; nothing of it reaches the design.
        config["AcceleratorConfig"] = {"Board": "pynq-z2", "Precision": {"Input": "float", "Output": "float"}, "Driver": "python"}
    model = ModelGraph(HLSConfig(config), [p["layer"] for p in network["inputs"]], [p["layer"] for p in network["outputs"]])
    model._make_graph(layers)
    model._applied_flows.append({"parse_qonnx": set(), "convert": set(), "optimize": set()})
    for flow in model.config.flows:
        model.apply_flow(flow)
    return model


def _for_quartus_writer(entry: dict[str, Any]) -> dict[str, int]:
    """hls4ml's Quartus writer asks a convolution that shares multipliers for a Dense layer's sizes (1.3.0)."""
    a = entry["attributes"]
    if entry["kind"] != "Conv2D":
        return {}
    return {"n_in": a["filt_height"] * a["filt_width"] * a["n_chan"], "n_out": a["n_filt"]}


def _write_weights(model: Any, folder: Path) -> None:
    """The weights as text beside headers that initialize arrays: g++ takes minutes over arrays of 10^5 initialized fixed-point numbers."""
    for variable in model.get_weight_variables():
        (folder / f"{variable.name}.txt").write_text(", ".join(variable) + "\n", encoding="utf-8")


def _without_literal_padding(folder: Path) -> None:
    """hls4ml's oneAPI convolutions hold their padding as constexpr, which only Intel's ac_fixed can be; g++ takes const."""
    for name in ("nnet_conv1d_stream.h", "nnet_conv2d_stream.h"):
        header = folder / name
        text = header.read_text(encoding="utf-8")
        header.write_text(text.replace("constexpr auto padds = zero_array", "const auto padds = zero_array"), encoding="utf-8")


def _with_own_variables(source: str, model: Any, tool: Tool, io: Io) -> str:
    """hls4ml's Quartus and oneAPI writers trace the last layer's stream under every layer's name (1.3.0): name each layer's own.

    oneAPI's has no function that saves an nnet::array or a pipe; emulator.cpp brings one.
    """
    for layer in model.get_layers():
        variable = layer.get_output_variable()
        size = int(variable.size())
        call = f'save_layer_output<{variable.type.name}>({variable.name}, "{layer.name}", {size});'
        if tool == "oneapi" and io == "stream":
            call = f'save_pipe<{variable.pipe_name}>("{layer.name}", {size});'
        elif tool == "oneapi":
            call = f'save_array({variable.name}, "{layer.name}");'
        source = re.sub(rf'save_layer_output<\w+>\([\w.]+, "{re.escape(layer.name)}", [^)]*\);', call, source)
    return source


def _interface(model: Any) -> dict[str, Any]:
    """Names, types and sizes of the top function's arguments, and of the tensors that the traced version saves."""

    def described(variable: Any) -> dict[str, Any]:
        pipe = {"pipe": variable.pipe_name} if hasattr(variable, "pipe_name") else {}
        return {"name": variable.name, "type": variable.type.name, "size": int(variable.size()), **pipe}

    traced = [
        {"name": layer.name, "size": int(layer.get_output_variable().size())}
        for layer in model.get_layers() if layer.get_attr("function_cpp", None) and layer.get_attr("trace", False)
    ]  # fmt: skip
    return {
        "inputs": [described(v) for v in model.get_input_variables()],
        "outputs": [described(v) for v in model.get_output_variables()],
        "traced": traced,
        # The vendor's logs name layers by hls4ml's number: config5, layer5_out.
        "numbers": {str(layer.index): layer.name for layer in model.get_layers()},
        "weights": [{"name": w.name, "type": w.type.name, "size": int(w.data_length)} for w in model.get_weight_variables()],
    }


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve(), Path(sys.argv[2]).resolve())
