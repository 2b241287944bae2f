"""The host's side of a shell: a PYNQ driver in Python, or a program for XRT in C++, and the facts they work from.

Both are the same text for every model; what differs is data: host.json, or numbers in host_ports.h. So no name of a model
becomes code.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .network import Network
from .shell import BUS_BITS, Field, fields

_TEMPLATES = Path(__file__).resolve().parent / "templates" / "hosts"


def files(network: Network, *, model_outputs: Sequence[str], host_pre: str | None, host_post: str | None) -> dict[str, str]:
    """Path in the artifact to text; none without a shell."""
    if network.shell == "none":
        return {}
    sides = {"inputs": fields(network, network.inputs), "outputs": fields(network, network.outputs)}
    if network.shell == "xrt":
        return {"host.cpp": (_TEMPLATES / "host.cpp").read_text(encoding="utf-8"), "host_ports.h": _ports(network, sides)}
    about = {
        "bus_bits": BUS_BITS[network.shell], "model_outputs": list(model_outputs), "host_pre": host_pre, "host_post": host_post,
        **{side: [_described(f) for f in found] for side, found in sides.items()},
    }  # fmt: skip
    return {"driver.py": (_TEMPLATES / "driver.py.in").read_text(encoding="utf-8"), "host.json": json.dumps(about, indent=1) + "\n"}


def _described(f: Field) -> dict[str, Any]:
    p = f.port
    # Values of four bits lie in bytes on the host.
    dtype = p.dtype if p.dtype not in ("int4", "uint4") else p.dtype.replace("4", "8")
    return {
        "name": p.value, "shape": list(p.shape), "axes": list(p.axes), "dtype": dtype, "lo": p.lo, "hi": p.hi,
        "zero_point": p.zero_point, "exponent": p.exponent, "bits": f.bits, "signed": f.signed, "beats": f.beats,
    }  # fmt: skip


def _ports(network: Network, sides: dict[str, tuple[Field, ...]]) -> str:
    lines = [
        "// What goes into the kernel and what comes out: numbers only.", "", "#ifndef HOST_PORTS_H_", "#define HOST_PORTS_H_", "",
        "#include <cstddef>", "#include <vector>", "", "struct Port {",
        "    size_t size, beats; // values of a sample, words that they take",
        "    unsigned bits;      // of each value in a word",
        "    bool is_signed;", "    int exponent, zero_point, rank;",
        "    size_t shape[8]; // in ONNX's layout", "    int axes[8];     // the transposition that gives the design's",
        "};", "", f"static const unsigned BUS_BITS = {BUS_BITS[network.shell]};",
    ]  # fmt: skip
    for side, found in sides.items():
        rows = [
            f"    {{{f.size}, {f.beats}, {f.bits}, {'true' if f.signed else 'false'}, {f.port.exponent}, {f.port.zero_point}, "
            f"{len(f.port.shape)}, {{{', '.join(map(str, f.port.shape)) or '1'}}}, {{{', '.join(map(str, f.port.axes)) or '0'}}}}},"
            for f in found
        ]
        lines += [f"static const std::vector<Port> {side.upper()} = {{", *rows, "};"]
    return "\n".join([*lines, "", "#endif", ""])
