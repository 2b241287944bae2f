"""The network as plain Verilog-2001: one module, one wire per node, a register per value and stage that it crosses.

Every expression is on unsigned vectors of one stated width, extended by hand, so that no rule of signedness or context width
is relied on. The only names are generated here; the model's own never reach the text, comments included.

    module network(clk, rst, in_valid, in_ready, in_data, out_valid, out_ready, out_data)

A sample is taken in every cycle in which in_valid and in_ready are 1, a result is given where out_valid and out_ready are 1,
results in the order of the samples. in_data and out_data hold the ports' elements in C order, the first one lowest.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from .network import Network, Node, Port
from .pipeline import Schedule

HANDSHAKE = """\
  // One enable for the whole pipeline: it stands still while a result waits for its reader.
  reg [{last}:0] valid;
  wire enable = out_ready | ~valid[{last}];
  assign in_ready = enable;
  assign out_valid = valid[{last}];
  always @(posedge clk)
    if (rst) valid <= {stages}'d0;
    else if (enable) valid <= {shifted};
"""


def emit(network: Network, schedule: Schedule, name: str = "network") -> str:
    """The module's text. The same network and schedule give the same bytes."""
    return "\n".join(_lines(network, schedule, name)) + "\n"


def width(ports: Sequence[Port]) -> int:
    """Bits of all elements of the ports together."""
    return sum(port.size * port.bits for port in ports)


def wire(node: Node, index: int) -> str:
    """A node's wire: L<operation>_<node>, so that a tool's report leads back to the operation."""
    return f"L{node.layer}_{index}"


def layer_of(wire_name: str) -> int | None:
    """The operation in a wire's name, as a tool may have decorated it."""
    head, _, _ = wire_name.rpartition(".")[2].partition("_")
    return int(head[1:]) if head[:1] == "L" and head[1:].isdigit() else None


def _lines(network: Network, schedule: Schedule, name: str) -> Iterator[str]:
    stages, last = schedule.stages, schedule.stages - 1
    yield f"// {len(network.nodes)} values in {stages} pipeline stages; written by gatewright, not meant to be edited."
    yield f"module {name} ("
    yield "  input wire clk, input wire rst,"
    yield f"  input wire in_valid, output wire in_ready, input wire [{width(network.inputs) - 1}:0] in_data,"
    yield f"  output wire out_valid, input wire out_ready, output wire [{width(network.outputs) - 1}:0] out_data"
    yield ");"
    shifted = f"{{valid[{last - 1}:0], in_valid}}" if last else "in_valid"
    yield HANDSHAKE.format(last=last, stages=stages, shifted=shifted)
    writer = _Writer(network, schedule)
    uses = schedule.last_use(network)
    by_stage: list[list[int]] = [[] for _ in range(stages)]
    for index, node in enumerate(network.nodes):
        if node.op != "constant":
            by_stage[schedule.stage[index]].append(index)
    for stage, made in enumerate(by_stage):
        yield f"  // stage {stage}"
        for index in made:
            yield from writer.value(index)
        kept = [i for i, node in enumerate(network.nodes) if node.op != "constant" and schedule.stage[i] <= stage < uses[i]]
        if kept:
            yield from (f"  reg [{network.nodes[i].bits - 1}:0] {writer.name(i, stage + 1)};" for i in kept)
            yield "  always @(posedge clk)"
            yield "    if (enable) begin"
            yield from (f"      {writer.name(i, stage + 1)} <= {writer.name(i, stage)};" for i in kept)
            yield "    end"
    parts = []
    for port, nodes in zip(network.outputs, network.results, strict=True):
        parts += [writer.operand(node, stages, port.bits) for node in nodes]
    yield f"  assign out_data = {{{', '.join(reversed(parts))}}};"
    yield "endmodule"


class _Writer:
    """Expressions by node."""

    def __init__(self, network: Network, schedule: Schedule) -> None:
        self.nodes, self.stage = network.nodes, schedule.stage
        self.offsets: list[tuple[int, Port]] = []
        start = 0
        for port in network.inputs:
            self.offsets.append((start, port))
            start += port.size * port.bits

    def name(self, index: int, stage: int) -> str:
        """The value of a node as stage ``stage`` sees it."""
        held = stage - self.stage[index]
        return wire(self.nodes[index], index) + (f"_r{held}" if held else "")

    def operand(self, index: int, stage: int, bits: int, drop: int = 0) -> str:
        """``bits`` bits of a node's value from bit ``drop`` on, extended by its sign or by zeros."""
        node = self.nodes[index]
        if node.op == "constant":
            return f"{bits}'h{(node.lo >> drop) & ((1 << bits) - 1):x}"
        name = self.name(index, stage)
        if drop >= node.bits:
            return f"{{{bits}{{{name}[{node.bits - 1}]}}}}" if node.signed else f"{bits}'h0"
        there = min(node.bits - drop, bits)
        part = name if there == node.bits else f"{name}[{drop + there - 1}:{drop}]"
        if there == bits:
            return part
        fill = f"{{{bits - there}{{{name}[{node.bits - 1}]}}}}" if node.signed else f"{bits - there}'h0"
        return f"{{{fill}, {part}}}"

    def value(self, index: int) -> Iterator[str]:
        """The lines that declare and drive a node's wire."""
        node, stage = self.nodes[index], self.stage[index]
        declared = f"  wire [{node.bits - 1}:0] {wire(node, index)} ="
        match node.op:
            case "input":
                number, element = node.params
                start, port = self.offsets[number]
                low = start + element * port.bits
                yield f"{declared} in_data[{low + node.bits - 1}:{low}];"
            case "add":
                yield f"{declared} {self._sum(node, stage)};"
            case "multiply":
                a, b = (self.operand(i, stage, self.nodes[i].bits + 1) for i in node.args)
                # The operands have a sign bit each, so the product is signed and as wide as the wire.
                yield f"{declared} $signed({a}) * $signed({b});"
            case "maximum":
                bits = node.bits
                yield f"  wire {wire(node, index)}_c = {self._greater(node.args[0], node.args[1], stage)};"
                a, b = (self.operand(i, stage, bits) for i in node.args)
                yield f"{declared} {wire(node, index)}_c ? {a} : {b};"
            case "at_least":
                yield f"{declared} ~{self._greater(node.args[1], node.args[0], stage)};"
            case "select":
                condition = self.operand(node.args[0], stage, 1)
                yes, no = (self.operand(i, stage, node.bits) for i in node.args[1:])
                yield f"{declared} {condition} ? {yes} : {no};"
            case "settle":
                yield f"{declared} {self._settled(node, stage)};"
            case "clip":
                yield f"{declared} {self._clipped(node, stage)};"
            case "table":
                yield from self._table(node, index, stage)

    def _sum(self, node: Node, stage: int) -> str:
        (a, b), (i, j, sign), bits = node.args, node.params, node.bits
        shift = max(i, j)
        if shift == 0:
            return f"{self.operand(a, stage, bits)} {'+' if sign > 0 else '-'} {self.operand(b, stage, bits)}"
        if sign < 0 and j == 0:
            upper = f"{{{self.operand(a, stage, bits - shift)}, {shift}'h0}}" if bits > shift else f"{bits}'h0"
            return f"{upper} - {self.operand(b, stage, bits)}"
        # One operand alone has low bits: they are the sum's.
        below, above = (a, b) if i == 0 else (b, a)
        lower = self.operand(below, stage, min(shift, bits))
        if bits <= shift:
            return lower
        upper = self.operand(above, stage, bits - shift)
        if not self.nodes[below].signed and self.nodes[below].bits <= shift:
            if sign < 0:
                upper = f"({bits - shift}'h0 - {upper})"
            return f"{{{upper}, {lower}}}"
        rest = self.operand(below, stage, bits - shift, shift)
        total = f"({rest} {'+' if sign > 0 else '-'} {upper})" if below == a else f"({upper} + {rest})"
        return f"{{{total}, {lower}}}"

    def _greater(self, a: int, b: int, stage: int) -> str:
        bits = max(self.nodes[i].bits + (not self.nodes[i].signed) for i in (a, b))
        return f"($signed({self.operand(a, stage, bits)}) > $signed({self.operand(b, stage, bits)}))"

    def _settled(self, node: Node, stage: int) -> str:
        (t,), (k, odd) = node.args, node.params
        rest = self.operand(t, stage, k)
        last = self.operand(t, stage, 1, k)
        last = f"({last} | (&{rest}))" if odd else f"({last} & (|{rest}))"
        return last if node.bits == 1 else f"{{{self.operand(t, stage, node.bits - 1, k + 1)}, {last}}}"

    def _clipped(self, node: Node, stage: int) -> str:
        """The value where it fits, else the bound; comparisons with powers of two look at the upper bits only."""
        (a,), (lo, hi) = node.args, node.params
        source, bits = self.nodes[a], node.bits
        inside = self.operand(a, stage, bits)
        text = inside
        if source.hi > hi:
            over = self._exceeds(a, hi, stage)
            text = f"{over} ? {bits}'h{hi & ((1 << bits) - 1):x} : {text}"
        if source.lo < lo:
            under = self._falls_below(a, lo, stage)
            text = f"{under} ? {bits}'h{lo & ((1 << bits) - 1):x} : ({text})"
        return text

    def _exceeds(self, a: int, bound: int, stage: int) -> str:
        source, name = self.nodes[a], self.name(a, stage)
        top = source.bits - 1
        if bound >= 0 and bound & (bound + 1) == 0:
            first = bound.bit_length()
            above = f"(|{name}[{top - source.signed}:{first}])"
            return f"(~{name}[{top}] & {above})" if source.signed else above
        wide = source.bits + (not source.signed)
        return f"($signed({self.operand(a, stage, wide)}) > $signed({wide}'h{bound & ((1 << wide) - 1):x}))"

    def _falls_below(self, a: int, bound: int, stage: int) -> str:
        source, name = self.nodes[a], self.name(a, stage)
        top = source.bits - 1
        if bound == 0:
            return f"{name}[{top}]"
        if bound < 0 and -bound & (-bound - 1) == 0:
            first = (-bound).bit_length() - 1
            return f"({name}[{top}] & ~(&{name}[{top - 1}:{first}]))"
        wide = source.bits + (not source.signed)
        return f"($signed({self.operand(a, stage, wide)}) < $signed({wide}'h{bound & ((1 << wide) - 1):x}))"

    def _table(self, node: Node, index: int, stage: int) -> Iterator[str]:
        (a,), (first, *values) = node.args, node.params
        source, name, bits = self.nodes[a], wire(node, index), node.bits
        yield f"  reg [{bits - 1}:0] {name};"
        yield f"  always @* case ({self.operand(a, stage, source.bits)})"
        for offset, value in enumerate(values[:-1]):
            yield f"    {source.bits}'h{(first + offset) & ((1 << source.bits) - 1):x}: {name} = {bits}'h{value & ((1 << bits) - 1):x};"
        yield f"    default: {name} = {bits}'h{values[-1] & ((1 << bits) - 1):x};"
        yield "  endcase"
