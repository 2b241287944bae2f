"""The C++ programs around a design: the emulator that g++ compiles here, the testbench that the vendor's simulator runs.

Both take a sample as doubles and give doubles; in between lies the tool's dialect: arrays or streams (AMD, Catapult), a
struct of arrays or streams (Quartus), pipes and a queue (oneAPI), or the words of a shell (shell.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from . import shell
from .backends import BACKENDS
from .network import Network

_TEMPLATES = Path(__file__).resolve().parent / "templates"
Program = Literal["emulator.cpp", "testbench.cpp"]


def source(name: Program, network: Network, interface: Mapping[str, Any]) -> str:
    """templates/emulator.cpp or templates/testbench.cpp with this design's arguments."""
    backend = BACKENDS[network.tool]
    sides = (("in", "inputs"), ("out", "outputs"))
    buffers = [f"double real_{side}_{i}[{p['size']}];" for side, key in sides for i, p in enumerate(interface[key])]
    read = [f"if (!read_all(real_in_{i}, sizeof real_in_{i})) return NULL;" for i, _ in enumerate(interface["inputs"])]
    call, write = shell.calls(network) if network.shell != "none" else _dialect(name, network, interface)
    write += [f"write_all(real_out_{i}, sizeof real_out_{i});" for i, _ in enumerate(interface["outputs"])]
    texts = backend.text_weights and name == "emulator.cpp"
    weights, loads = _loaded_weights(network, interface) if texts else ([], [])
    catapult, oneapi = network.tool == "catapult", network.tool == "oneapi"
    folder = "weights" if name == "emulator.cpp" else "firmware/weights"
    helpers: list[str] = []
    if catapult:
        # Its headers only declare the weights, for synthesis to give them values; the design reads them from text on its first run.
        helpers = [f"{w['type']} {w['name']}[{w['size']}];" for w in interface["weights"]]
        helpers.append(f'const char *get_weights_dir() {{ return "{folder}"; }}')
    queue = _SELECTED if oneapi and name == "testbench.cpp" else ["static sycl::queue queue;"] if oneapi else []
    blocks = {
        "WEIGHTS": weights + (['#include "firmware/design.h"', *helpers] if catapult else []),
        "SAVERS": _SAVERS if oneapi else [],
        "SHELL": _shell_includes(name, network) + (["#include <mc_scverify.h>"] if catapult and name == "testbench.cpp" else []),
        "BUFFERS": buffers + (queue if name == "emulator.cpp" else []),
        "HELPERS": helpers,
        "QUEUE": queue,
        "READ": read, "CALL": call, "WRITE": write,
        "TRACED": [f'write_traced("{t["name"]}", {t["size"]});' for t in interface["traced"]],
        "LOAD": loads,
        "ALLOCATE": [f'(*nnet::trace_outputs)["{t["name"]}"] = calloc({t["size"]}, sizeof(double));' for t in interface["traced"]],
        "MAIN": ["CCS_MAIN(int argc, char *argv[])" if catapult else "int main()"],
        "RETURN": ["CCS_RETURN" if catapult else "return "],
    }  # fmt: skip
    indents = {"READ": 8, "CALL": 8, "WRITE": 8, "TRACED": 8, "LOAD": 4, "ALLOCATE": 4, "QUEUE": 4}
    text = (_TEMPLATES / name).read_text(encoding="utf-8")
    filled = shell.filled(text, {mark: "\n".join(" " * indents.get(mark, 0) + line for line in lines) for mark, lines in blocks.items()})
    return "".join(line for line, before in _with_previous(filled) if line.strip() or before.strip())


def _dialect(name: Program, network: Network, interface: Mapping[str, Any]) -> tuple[list[str], list[str]]:
    """What runs the top function on the buffers, and what fills the buffers of its results."""
    backend = BACKENDS[network.tool]
    if network.tool == "oneapi":
        taken, given = interface["inputs"], interface["outputs"]
        call = [f"nnet::convert_data<double, {p['pipe']}, {p['size']}>(queue, real_in_{i});" for i, p in enumerate(taken)]
        back = [f"nnet::convert_data_back<{p['pipe']}, double, {p['size']}>(queue, real_out_{i});" for i, p in enumerate(given)]
        return [*call, "queue.single_task(Design{});"], back
    structs = backend.structs and network.io == "parallel"
    call, write, arguments = (["static input_data taken;"] if structs else []), [], []
    for side, key, member in (("in", "inputs", "taken"), ("out", "outputs", "given")):
        for i, port in enumerate(interface[key]):
            argument, type_, size = f"argument_{side}_{i}", port["type"], port["size"]
            if structs:
                argument = port["name"].replace(f"{key}.", f"{member}.")
            elif network.io == "stream":
                call.append(f"static {backend.stream}<{type_}> {argument};")
            else:
                call.append(f"static {type_} {argument}[{size}];")
            if side == "in":
                call.append(f"nnet::convert_data<double, {type_}, {size}>(real_in_{i}, {argument});")
            else:
                write.append(f"nnet::{backend.back}<{type_}, double, {size}>({argument}, real_out_{i});")
            arguments.append(argument)
    top = "CCS_DESIGN(design)" if network.tool == "catapult" and name == "testbench.cpp" else "design"
    call += ["static output_data given;", "given = design(taken);"] if structs else [f"{top}({', '.join(arguments)});"]
    return call, write


def _shell_includes(name: Program, network: Network) -> list[str]:
    if network.shell == "none":
        return []
    top = f'#include "firmware/{shell.TOPS[network.shell]}.{"cpp" if name == "emulator.cpp" else "h"}"'
    return [top, '#include "drive.h"']


def _loaded_weights(network: Network, interface: Mapping[str, Any]) -> tuple[list[str], list[str]]:
    """Declarations that take the place of the weights' headers (their include guards are set), and the calls that fill them."""
    declared, arrays = ['#include "firmware/defines.h"'], network.tool == "oneapi"
    for weight in interface["weights"]:
        name, size = weight["name"], "" if arrays else f"[{weight['size']}]"
        declared += [f"#define {name.upper()}_H_", f"static {weight['type']} {name}{size};"]
    data = ".data()" if arrays else ""
    return declared, [f'load({w["name"]}{data}, {w["size"]}, "weights/{w["name"]}.txt");' for w in interface["weights"]]


def _with_previous(text: str) -> list[tuple[str, str]]:
    lines = text.splitlines(keepends=True)
    return list(zip(lines, ["", *lines[:-1]], strict=True))


_SELECTED = [
    "#if defined(FPGA_SIMULATOR)",
    "static sycl::queue queue(sycl::ext::intel::fpga_simulator_selector_v);",
    "#elif defined(FPGA_HARDWARE)",
    "static sycl::queue queue(sycl::ext::intel::fpga_selector_v);",
    "#else",
    "static sycl::queue queue(sycl::ext::intel::fpga_emulator_selector_v);",
    "#endif",
]
_SAVERS = [
    "#ifdef GATEWRIGHT_TRACE",
    '#include "firmware/defines.h"',
    "#include <map>",
    "namespace nnet {",
    "extern std::map<std::string, void *> *trace_outputs;",
    "template <class array_T> void save_array(const array_T &values, const char *name) {",
    "    double *to = (double *)(*trace_outputs)[name];",
    "    for (const auto &value : values)",
    "        *to++ = value.to_double();",
    "}",
    "template <class pipe_T> void save_pipe(const char *name, size_t) {",
    "    double *to = (double *)(*trace_outputs)[name];",
    "    for (const auto &pack : pipe_T::held())",
    "        for (const auto &value : pack)",
    "            *to++ = value.to_double();",
    "}",
    "} // namespace nnet",
    "#endif",
]
