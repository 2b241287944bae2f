"""Several variants of a model as one: an ensemble, whose outputs are averaged, or a single model with the average of their weights.

An ensemble costs what its members cost together. An average costs what one member costs, and takes members that were trained
from the same weights: those of independent trainings lie in different basins (Wortsman et al. 2022, "Model soups").
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

import numpy as np
import onnx_ir as ir

from gatewright.errors import UnsupportedError, UsageError, nearest
from gatewright.frontend.canonicalize import canonicalize
from gatewright.frontend.edit import Editor, values
from gatewright.frontend.integer import plan
from gatewright.frontend.model import Model, Step
from gatewright.frontend.work import macs, weight_bytes

How = Literal["ensemble", "average"]
FLOATS = (ir.DataType.FLOAT, ir.DataType.DOUBLE, ir.DataType.FLOAT16, ir.DataType.BFLOAT16)


def combine(models: Sequence[Model], how: How = "ensemble") -> Model:
    """One model of several that take the same inputs and give the same outputs (names, shapes, dtypes).

    Its history has each member's, and what it costs beside the first. Raises UsageError for fewer than two models or other
    interfaces; UnsupportedError, naming what differs, where weights cannot be averaged or an output is no float.
    """
    if how not in get_args(How):
        raise UsageError(f"models are not combined by {how!r}", hint=nearest(how, get_args(How), "ways"))
    if len(models) < 2:
        raise UsageError(f"{how} needs two models or more, {len(models)} given")
    first = models[0]
    for other in models[1:]:
        for what, ours, theirs in (("inputs", first.inputs, other.inputs), ("outputs", first.outputs, other.outputs)):
            if ours != theirs:
                mine, its = (", ".join(map(str, infos)) for infos in (ours, theirs))
                raise UsageError(f"{first.name} and {other.name} have different {what}: {mine}; {its}")
    made = _ensemble(models) if how == "ensemble" else _average(models)
    members = [{"name": m.name, "digest": m.digest, "history": [s.text for s in m.history]} for m in models]
    alone = f"{first.name} alone has {macs(first):,} and {weight_bytes(first):,}"
    costs = f"{macs(made):,} MACs and {weight_bytes(made):,} bytes of weights; {alone}"
    return Model(made.ir, f"{first.name}-{how}", (Step("combine", how, (costs,), {"members": members}),))


def _ensemble(models: Sequence[Model]) -> Model:
    """All members side by side on the same inputs; each output is the mean of the members'."""
    first = models[0]
    for info, value in zip(first.outputs, first.graph.outputs, strict=True):
        if value.dtype not in FLOATS:
            raise UnsupportedError(
                f"an ensemble averages outputs, and {info.name} is {info.dtype}",
                hint="give members whose outputs are scores, before ArgMax",
            )
    merged = first.copy_ir()
    edit = Editor(merged)
    own_inputs = {value.name: value for value in merged.graph.inputs}
    sums = list(merged.graph.outputs)
    members = [sums]
    for other in models[1:]:
        members.append(_moved(edit, other.copy_ir(), own_inputs))
    share = np.float32(1 / len(models))
    for position, own in enumerate(sums):
        total, nodes = own, []
        dtype = own.dtype
        assert dtype is not None
        for member in members[1:]:
            nodes.append(edit.node("Add", [total, member[position]]))
            total = nodes[-1].outputs[0]
        factor = edit.constant(np.asarray(share, dtype.numpy()), "share")
        nodes.append(edit.node("Mul", [total, factor]))
        for node in nodes:
            node.outputs[0].shape, node.outputs[0].type = own.shape, own.type
        merged.graph.extend(nodes)
        name, mean = own.name, nodes[-1].outputs[0]
        merged.graph.outputs[position] = mean
        own.name, mean.name = edit.fresh(f"{name}_member"), name
    canonicalize(merged)
    return first.with_ir(merged)


def _moved(edit: Editor, member: ir.Model, inputs: dict[str | None, ir.Value]) -> list[ir.Value]:
    """Take the nodes and weights of ``member`` into the edited graph under new names; returns its outputs."""
    graph = member.graph
    outputs = list(graph.outputs)
    for value in list(graph.inputs):
        ir.convenience.replace_all_uses_with(value, inputs[value.name], replace_graph_outputs=True)
    outputs = list(graph.outputs)
    graph.outputs.clear()
    weights = list(graph.initializers.values())
    graph.initializers.clear()
    for value in values(graph):
        if value not in graph.inputs:
            value.name = edit.fresh(value.name or "value")
    for value in weights:
        value.name = edit.fresh(value.name or "weight")
        edit.graph.register_initializer(value)
    nodes = list(graph)
    graph.remove(nodes)
    for node in nodes:
        node.name = edit.fresh(node.name or node.op_type)
    edit.graph.extend(nodes)
    return outputs


def _average(models: Sequence[Model]) -> Model:
    """The first model with the mean of all members' float weights."""
    first = models[0]
    edited = first.copy_ir()
    nodes = [list(model.graph) for model in models]
    for model, own in zip(models, nodes, strict=True):
        if plan(model).is_quantized:
            raise UnsupportedError(f"{model.name} is quantized: rounded weights are not averaged", hint="average first, then quantize")
        if [node.op_type for node in own] != [node.op_type for node in nodes[0]]:
            raise UnsupportedError(f"{first.name} and {model.name} have different structures", hint="combine them as an ensemble")
    # Matched by where they are used, not by name: importers number names as they like.
    done: set[str | None] = set()
    for position, node in enumerate(edited.graph):
        for slot, value in enumerate(node.inputs):
            if value is None or not value.is_initializer() or value.name in done or value.dtype not in FLOATS:
                continue
            done.add(value.name)
            value.const_value = _mean([_weight(model, own[position], slot) for model, own in zip(models, nodes, strict=True)], value)
    return first.with_ir(edited)


def _weight(model: Model, node: ir.Node, slot: int) -> np.ndarray:
    value = node.inputs[slot] if slot < len(node.inputs) else None
    if value is None or value.const_value is None:
        raise UnsupportedError(f"{model.name}: input {slot} of {node.name} ({node.op_type}) is no weight, as it is in the first model")
    return np.asarray(value.const_value.numpy())


def _mean(arrays: Sequence[np.ndarray], value: ir.Value) -> ir.TensorProtocol:
    if len({array.shape for array in arrays}) > 1:
        shapes = ", ".join(str(list(array.shape)) for array in arrays)
        raise UnsupportedError(f"weight {value.name} has different shapes: {shapes}", hint="combine the models as an ensemble")
    mean = np.mean([array.astype(np.float64) for array in arrays], axis=0)
    return ir.tensor(mean.astype(arrays[0].dtype), name=value.name)
