"""A part of a model as a model of its own: between values that are given and values that are wanted."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import onnx_ir as ir

from .model import Model


def submodel(model: Model, inputs: Sequence[str], outputs: Sequence[str], name: str) -> Model:
    """What computes ``outputs`` from ``inputs`` (names of values, constants apart). Raises ValueError if those do not bound it."""
    graph = ir.convenience.extract(model.graph, inputs, outputs)
    graph.name = name
    # extract collects them in a set: the same model would give files of different bytes.
    initializers = sorted(graph.initializers.items())
    graph.initializers.clear()
    graph.initializers.update(initializers)
    return Model(ir.Model(graph, ir_version=model.ir.ir_version), name)


def captured(node: ir.Node) -> list[str]:
    """Names of the values outside that the graphs inside ``node`` (of an If, Loop or Scan) read."""
    return list(dict.fromkeys(value.name or "" for graph in _graphs(node) for value in captured_by(graph)))


def _graphs(node: ir.Node) -> Iterator[ir.Graph]:
    for attribute in node.attributes.values():
        if attribute.type == ir.AttributeType.GRAPH:
            yield attribute.as_graph()
        elif attribute.type == ir.AttributeType.GRAPHS:
            yield from attribute.as_graphs()


def captured_by(graph: ir.Graph) -> Iterator[ir.Value]:
    """The values outside that ``graph``, and the graphs in it, read; one that is only passed on as an output too."""
    own = {*graph.inputs, *graph.initializers.values(), *(value for node in graph for value in node.outputs)}
    for node in graph:
        inner = [value for deeper in _graphs(node) for value in captured_by(deeper)]
        yield from (value for value in (*node.inputs, *inner) if value is not None and value not in own)
    yield from (value for value in graph.outputs if value not in own)
    yield from (value for value in graph.outputs if value not in own)
