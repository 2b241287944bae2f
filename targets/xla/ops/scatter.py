"""Operators that write at computed places."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np
import onnx_ir as ir

from gatewright.frontend.queries import integer

from . import Lowering, Value


def _put(data: Value, place: tuple[Value, ...], updates: Value, how: str) -> Value:
    at = data.at[place]
    match how:
        case "add":
            return at.add(updates)
        case "mul":
            return at.multiply(updates)
        case "max":
            return at.max(updates)
        case "min":
            return at.min(updates)
        case _:
            return at.set(updates)


def _scatter_elements(scope: Any, node: ir.Node, inputs: list[Any]) -> Value:
    data, where, updates = jnp.asarray(inputs[0]), inputs[1], inputs[2]
    axis = integer(node, "axis", 0) % data.ndim
    where = jnp.where(where < 0, where + data.shape[axis], where)
    place = [np.arange(n).reshape([-1 if a == i else 1 for a in range(data.ndim)]) for i, n in enumerate(where.shape)]
    place[axis] = where
    return _put(data, tuple(place), updates, node.attributes.get_string("reduction", "none") or "none")


def _scatter_nd(scope: Any, node: ir.Node, inputs: list[Any]) -> Value:
    data, where, updates = jnp.asarray(inputs[0]), inputs[1], inputs[2]
    depth = where.shape[-1]
    where = jnp.where(where < 0, where + np.asarray(data.shape[:depth], where.dtype), where)
    place = tuple(where[..., i] for i in range(depth))
    return _put(data, place, updates, node.attributes.get_string("reduction", "none") or "none")


LOWERINGS: dict[str, Lowering] = {"ScatterElements": _scatter_elements, "ScatterND": _scatter_nd}
