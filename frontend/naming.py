"""Other names for the values of a parsed model: exporters name inputs and outputs after their own machinery."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import onnx


def renamed(proto: onnx.ModelProto, names: Mapping[str, str]) -> onnx.ModelProto:
    """``proto``, edited: values ``old`` are called ``new``; another value that has that name already gets a number."""
    wanted = {old: new for old, new in names.items() if old != new}
    used = set(_names(proto.graph))
    final = dict(wanted)
    for new in wanted.values():
        if new in used and new not in wanted:
            number = next(n for n in range(1, 1 << 30) if f"{new}_{n}" not in used)
            final[new] = f"{new}_{number}"
    _rename(proto.graph, final)
    return proto


def _names(graph: onnx.GraphProto) -> Iterator[str]:
    for value in (*graph.input, *graph.output, *graph.value_info, *graph.initializer):
        yield value.name
    for node in graph.node:
        yield from node.input
        yield from node.output
        for attribute in node.attribute:
            for inner in (*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs):
                yield from _names(inner)


def _rename(graph: onnx.GraphProto, names: Mapping[str, str]) -> None:
    for value in (*graph.input, *graph.output, *graph.value_info, *graph.initializer):
        value.name = names.get(value.name, value.name)
    for node in graph.node:
        for values in (node.input, node.output):
            values[:] = [names.get(name, name) for name in values]
        for attribute in node.attribute:
            for inner in (*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs):
                _rename(inner, names)
