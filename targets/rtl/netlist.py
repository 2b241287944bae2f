"""The synthesized network, clocked cycle by cycle: Yosys' netlist of the part's own cells, with the vendor's models of them.

Yosys reads the netlist beside the vendor's cell models and brings both down to AND gates and flip-flops, which numpy clocks
(``aiger.py``): a netlist as one C++ function keeps a compiler busy for longer than synthesis did.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from gatewright.errors import ToolFailed
from gatewright.targets.base import TargetContext

from . import synthesis, tools, vcd
from .aiger import LANES, Circuit
from .board import FAMILIES
from .network import Array, Network
from .simulate import pack, unpack
from .verilog import width

MOST_IDLE_CYCLES = 1 << 12

# Cell models are derived on use (-defer): those of large memories alone take longer than everything else.
_MODELS = """\
read_verilog netlist.v
read_verilog -defer -overwrite -D NO_ICE40_DEFAULT_ASSIGNMENTS +/{cells}
hierarchy -check -top network
proc
flatten
async2sync
techmap
dffunmap
simplemap
opt_expr
opt_clean
select -assert-none t:$_DFF_N_
aigmap
write_aiger -zinit -symbols netlist.part.aig
"""


def gates(text: str, family: str, context: TargetContext) -> Path:
    """The circuit of ``text``, the network's Verilog, as an AIGER file; ``netlist.v`` is beside it. Made once per content and kept.

    Raises ToolMissing, ToolFailed.
    """
    chosen = FAMILIES[family]
    lines = synthesis.script(["network.v"], chosen.synthesis, "network")
    parts = {"network.v": text, **synthesis.files(chosen.synthesis)}
    key = hashlib.sha256("\0".join([*parts.values(), *lines, _MODELS, tools.YOSYS.version() or ""]).encode()).hexdigest()[:32]
    folder = context.cache_dir / "rtl" / f"netlist-{key}"
    finished = folder / "netlist.aig"
    if not finished.exists():
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in parts.items():
            (folder / name).write_text(content, encoding="utf-8", newline="\n")
        steps = (
            ("netlist", "\n".join([*lines, "write_verilog -noattr -noexpr netlist.v"]) + "\n", "synthesizing the netlist"),
            ("models", _MODELS.format(cells=chosen.cells), "reading the netlist"),
        )
        for name, script, what in steps:
            (folder / f"{name}.ys").write_text(script, encoding="utf-8", newline="\n")
            words = ["-q", "-l", f"{name}.log", "-s", f"{name}.ys"]
            tools.run(tools.YOSYS, words, cwd=folder, log=folder / f"{name}.out", what=what, context=context)
        os.replace(folder / "netlist.part.aig", finished)
    return finished


class NetlistSimulator:
    """A network's netlist in simulation: arrays in, arrays out, as ``interpret.run``. Samples are dealt to ``LANES`` copies of it."""

    def __init__(self, network: Network, circuit: Circuit, what: str, *, pauses: int = 0, waves: Path | None = None) -> None:
        """``pauses``: seed of random pauses at both ends of the handshake, 0 for none. ``waves``: a VCD file of the first copy."""
        graph = circuit.graph
        self._what = what
        self._circuit, self._inputs, self._outputs = circuit, network.inputs, network.outputs
        self._random = np.random.default_rng(pauses) if pauses else None
        where = {name: number for number, name in enumerate(graph.inputs)}
        gone = {name: number for number, name in enumerate(graph.outputs)}
        self._rst, self._in_valid, self._out_ready = (where[name] for name in ("rst", "in_valid", "out_ready"))
        self._in_ready, self._out_valid = gone["in_ready"], gone["out_valid"]
        self._in_data = [where[name] for name in _bits("in_data", width(network.inputs))]
        self._out_data = [gone[name] for name in _bits("out_data", width(network.outputs))]
        self._waves = None if waves is None else vcd.Writer(waves, (*graph.inputs, *graph.outputs, *graph.latches), clock="clk")
        self._given = np.zeros(len(graph.inputs), np.uint64)
        self._given[self._rst] = ~np.uint64(0)
        self._cycle()
        self._given[self._rst] = 0

    def run(self, arrays: Sequence[Array]) -> list[Array]:
        """int64 [n, elements] per input port → int64 [n, elements] per output port."""
        samples = len(arrays[0])
        bits = np.unpackbits(pack(self._inputs, arrays, -(-len(self._in_data) // 32)), axis=1, bitorder="little")[:, : len(self._in_data)]
        results = np.zeros((samples, len(self._out_data)), np.uint8)
        lane = np.arange(LANES)
        mine = (samples - lane + LANES - 1) // LANES
        """How many samples each copy has: number l has l, l + LANES and so on."""
        sent, received = np.zeros(LANES, np.int64), np.zeros(LANES, np.int64)
        idle = 0
        while (received < mine).any():
            offer, take = (sent < mine) & self._unpaused(), self._unpaused()
            self._given[self._in_valid], self._given[self._out_ready] = _word(offer), _word(take)
            self._given[self._in_data] = _words(bits[np.minimum(lane + sent * LANES, samples - 1)] * offer[:, None])
            got = self._cycle()
            takes, gives = offer & _lanes(got[[self._in_ready]])[0].astype(bool), take & _lanes(got[[self._out_valid]])[0].astype(bool)
            if (gives & (received >= mine)).any():
                raise ToolFailed(f"{self._what} gave a result that nobody asked for")
            which = (lane + received * LANES)[gives]
            results[which] = _lanes(got[self._out_data])[:, gives].T
            sent, received = sent + takes, received + gives
            idle = 0 if takes.any() or gives.any() else idle + 1
            if idle > MOST_IDLE_CYCLES:
                raise ToolFailed(f"{self._what} does not answer")
        self._given[self._in_valid] = 0
        return unpack(self._outputs, np.packbits(results, axis=1, bitorder="little"))

    def close(self) -> None:
        """Waves are complete then."""
        if self._waves is not None:
            self._waves.close()

    def _cycle(self) -> Array:
        got = self._circuit.settle(self._given)
        if self._waves is not None:
            self._waves.sample(np.concatenate([self._given, got, self._circuit.state]) & np.uint64(1))
        self._circuit.clock()
        return got

    def _unpaused(self) -> Array:
        return np.ones(LANES, bool) if self._random is None else self._random.random(LANES) < 0.75


def _bits(name: str, count: int) -> list[str]:
    return [name] if count == 1 else [f"{name}[{bit}]" for bit in range(count)]


def _word(lanes: Array) -> np.uint64:
    """bool [LANES] → one word."""
    return np.uint64(np.packbits(lanes, bitorder="little").view("<u8")[0])


def _words(bits: Array) -> Array:
    """uint8 [LANES, n] of 0 and 1 → uint64 [n]."""
    return np.ascontiguousarray(np.packbits(bits, axis=0, bitorder="little").T).view("<u8")[:, 0].astype(np.uint64)


def _lanes(words: Array) -> Array:
    """uint64 [n] → uint8 [n, LANES] of 0 and 1."""
    return np.unpackbits(words.astype("<u8").view(np.uint8).reshape(len(words), 8), axis=1, bitorder="little")
