"""What stands between a design and its board: AXI4-Stream words for a DMA (Zynq), or a kernel that reads memory (Alveo).

A sample is each input in turn, padded to whole words; a result likewise. Values travel as integers v = q − z of 8, 16, 32 or
64 bits in the design's layout, so nothing is rounded on the way. The host's side of it is driver.py.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .network import Network, Port, Shell

_TEMPLATES = Path(__file__).resolve().parent / "templates" / "amd"
BUS_BITS: Mapping[Shell, int] = {"dma": 64, "xrt": 512}
TOPS: Mapping[Shell, str] = {"none": "design", "dma": "design_axi", "xrt": "design_kernel"}
"""The top function that the vendor's tool is told."""


@dataclass(frozen=True)
class Field:
    """How one port's values lie in words."""

    port: Port
    size: int
    width: int
    """Bits of the design's type."""
    signed: bool
    bits: int
    """Bits of each in a word: 8, 16, 32 or 64."""
    beats: int
    """Words of one sample."""


def fields(network: Network, ports: Sequence[Port]) -> tuple[Field, ...]:
    """Of the ports of one direction, in order."""
    bus, found = BUS_BITS[network.shell], []
    for port in ports:
        type_ = network.layer(port.layer).types["result"]
        bits = next(b for b in (8, 16, 32, 64) if b >= type_.width)
        found.append(Field(port, port.size, type_.width, type_.signed, bits, math.ceil(port.size / (bus // bits))))
    return tuple(found)


def transfer_cycles(network: Network) -> int:
    """Cycles in which one sample passes the slower side of the shell; 0 without one."""
    if network.shell == "none":
        return 0
    sides = (fields(network, network.inputs), fields(network, network.outputs))
    return max(sum(f.size if network.io == "stream" else f.beats for f in side) for side in sides)


def sources(network: Network, interface: Mapping[str, Any]) -> dict[str, str]:
    """Files of the artifact by path; none without a shell."""
    if network.shell == "none":
        return {}
    top, bus = TOPS[network.shell], BUS_BITS[network.shell]
    taken, given = fields(network, network.inputs), fields(network, network.outputs)
    beats_in, beats_out = sum(f.beats for f in taken), sum(f.beats for f in given)
    values = {
        "TOP": top, "BUS": str(bus), "BEATS_IN": str(beats_in), "BEATS_OUT": str(beats_out),
        "SAMPLE": _sample(network, interface, taken, given), "RUN": _RUN[network.shell],
    }  # fmt: skip
    written = {
        f"firmware/{top}.h": f"{top}.h", f"firmware/{top}.cpp": f"{top}.cpp", "firmware/words.h": "words.h",
        "drive.h": "drive.h", "emulation/ap_axi_sdata.h": "ap_axi_sdata.h",
    }  # fmt: skip
    return {path: filled((_TEMPLATES / template).read_text(encoding="utf-8"), values) for path, template in written.items()}


def calls(network: Network) -> tuple[list[str], list[str]]:
    """For emulator.cpp and testbench.cpp: what takes the buffers through the top function, and what fills the results' buffers."""
    call, write, at = ["static word_t words_in[BEATS_IN], words_out[BEATS_OUT];"], [], 0
    for index, f in enumerate(fields(network, network.inputs)):
        call.append(f"gatewright::fill(words_in + {at}, real_in_{index}, {f.size}, {f.bits}, {f.port.exponent});")
        at += f.beats
    call.append("gatewright::run(words_in, words_out);")
    at = 0
    for index, f in enumerate(fields(network, network.outputs)):
        signed = "true" if f.signed else "false"
        write.append(f"gatewright::drain(words_out + {at}, real_out_{index}, {f.size}, {f.bits}, {f.port.exponent}, {signed});")
        at += f.beats
    return call, write


def filled(text: str, values: Mapping[str, str]) -> str:
    """``text`` with each @NAME@ replaced; every value is ours or was checked, none is a name from the model."""
    for name, value in values.items():
        text = text.replace(f"@{name}@", value)
    return text


def _sample(network: Network, interface: Mapping[str, Any], taken: Sequence[Field], given: Sequence[Field]) -> str:
    """The functions ``take``, ``give`` and ``sample``: one sample from words to words."""
    bus, stream = BUS_BITS[network.shell], network.io == "stream"

    def declared(entry: Mapping[str, Any], name: str) -> str:
        return f"hls::stream<{entry['type']}> &{name}" if stream else f"{entry['type']} {name}[{entry['size']}]"

    def local(entry: Mapping[str, Any], name: str) -> list[str]:
        if stream:
            return [f'hls::stream<{entry["type"]}> {name}("{name}");', f"#pragma HLS STREAM variable={name} depth=2"]
        return [f"{entry['type']} {name}[{entry['size']}];", f"#pragma HLS ARRAY_PARTITION variable={name} complete"]

    ins = [(entry, f"in_{i}", f) for i, (entry, f) in enumerate(zip(interface["inputs"], taken, strict=True))]
    outs = [(entry, f"out_{i}", f) for i, (entry, f) in enumerate(zip(interface["outputs"], given, strict=True))]
    take = [f"gatewright::unpack<{e['type']}, {f.size}, {f.bits}, {bus}>(words, {n});" for e, n, f in ins]
    give = [f"gatewright::pack<{e['type']}, {f.size}, {f.bits}, {bus}, {'true' if f.signed else 'false'}>({n}, words);" for e, n, f in outs]
    body = ["#pragma HLS DATAFLOW", *(line for e, n, _ in (*ins, *outs) for line in local(e, n))]
    body += [f"take(words_in, {', '.join(n for _, n, _ in ins)});", f"design({', '.join(n for _, n, _ in (*ins, *outs))});"]
    body += [f"give({', '.join(n for _, n, _ in outs)}, words_out);"]
    arguments_in, arguments_out = (", ".join(declared(e, n) for e, n, _ in side) for side in (ins, outs))
    functions = {
        f"take(hls::stream<word_t> &words, {arguments_in})": take,
        f"give({arguments_out}, hls::stream<word_t> &words)": give,
        "sample(hls::stream<word_t> &words_in, hls::stream<word_t> &words_out)": body,
    }
    return "\n\n".join(f"static void {head} {{\n" + "\n".join(f"    {line}" for line in lines) + "\n}" for head, lines in functions.items())


_RUN: Mapping[Shell, str] = {
    "dma": """inline void run(const word_t *words_in, word_t *words_out) {
    static hls::stream<beat_t> taken, given;
    for (unsigned i = 0; i < BEATS_IN; i++) {
        beat_t beat;
        beat.data = words_in[i];
        beat.keep = -1;
        beat.strb = -1;
        beat.last = i == BEATS_IN - 1;
        taken.write(beat);
    }
    design_axi(taken, given);
    for (unsigned i = 0; i < BEATS_OUT; i++) {
        beat_t beat = given.read();
        words_out[i] = beat.data;
        if (beat.last != (i == BEATS_OUT - 1)) {
            std::fprintf(stderr, "TLAST is wrong on word %u\\n", i);
            std::exit(6);
        }
    }
}""",
    "xrt": """inline void run(const word_t *words_in, word_t *words_out) { design_kernel(words_in, words_out, 1); }""",
}
