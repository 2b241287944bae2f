"""What hls4ml's kernels cannot take, replaced by what they or ours can, once the io type is chosen."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np

from .network import Fixed, Layer, Network

MOST_READERS = 7
"""hls4ml has copies of a stream for at most so many readers."""


def adapted(network: Network) -> Network:
    """The same network in layers that are exact in its io type."""
    network = replace(network, layers=tuple(_pooling(layer, network) for layer in network.layers))
    return _few_readers(network) if network.io == "stream" else network


def _pooling(layer: Layer, network: Network) -> Layer:
    """hls4ml pools exactly where nothing is padded and, streamed, windows lie side by side; elsewhere there is a layer of ours."""
    if layer.kind != "MaxPooling2D":
        return layer
    a = layer.attributes
    padded = any(a[f"pad_{side}"] for side in ("top", "bottom", "left", "right"))
    aside = (a["pool_height"], a["pool_width"]) == (a["stride_height"], a["stride_width"])
    return replace(layer, kind="WindowMax") if padded or (network.io == "stream" and not aside) else layer


def _few_readers(network: Network) -> Network:
    """Layers with too many readers hand the rest to a copy of themselves, and that to another."""
    outputs = {port.layer for port in network.outputs}
    layers, index = list(network.layers), 0
    while index < len(layers):
        layer = layers[index]
        readers = [i for i, other in enumerate(layers) for source in other.inputs if source == layer.name]
        if len(readers) + (layer.name in outputs) > MOST_READERS:
            kept = MOST_READERS - 1 - (layer.name in outputs)
            moved, copy = set(readers[kept:]), _copy(layer, f"copy_of_{layer.name}")
            for i in moved:
                layers[i] = replace(layers[i], inputs=tuple(copy.name if s == layer.name else s for s in layers[i].inputs))
            layers.insert(index + 1, copy)
        index += 1
    return replace(network, layers=tuple(layers))


def _copy(layer: Layer, name: str) -> Layer:
    type_: Fixed = replace(layer.types["result"], saturating=False)
    one, none = np.ones(1), np.zeros(1)
    lo, hi = type_.bounds
    types = {"wide": type_, "scale": Fixed.holding(0, 1, 0), "bias": Fixed.holding(0, 0, 0), "result": type_}
    attributes = {"lowest": math.ldexp(lo, type_.exponent), "highest": math.ldexp(hi, type_.exponent)}
    return Layer(name, "Requantize", (layer.name,), layer.shape, types, attributes, {"scale": one, "bias": none}, layer.node)
