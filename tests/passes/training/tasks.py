"""Small things to learn, made here: points in three clusters, and tiny pictures of a bar across or down."""

from __future__ import annotations

import numpy as np
from graphs import Array, graph

from gatewright.frontend.data import Dataset
from gatewright.frontend.model import Model


def clusters(samples: int = 240, spread: float = 0.6, seed: int = 0) -> Dataset:
    """Points float[4] around three corners, labels 0 … 2."""
    rng = np.random.default_rng(seed)
    labels = np.arange(samples) % 3
    centres = np.array([[1, 1, 0, -1], [-1, 1, 1, 0], [0, -1, -1, 1]], np.float32)
    return Dataset({"x": (centres[labels] + rng.normal(0, spread, (samples, 4))).astype(np.float32)}, labels, name="clusters")


def bars(samples: int = 200, seed: int = 0) -> Dataset:
    """Images float[1,8,8], a bar across (0) or down (1) somewhere."""
    rng = np.random.default_rng(seed)
    images, labels = np.zeros((samples, 1, 8, 8), np.float32), np.arange(samples) % 2
    for image, label in zip(images, labels, strict=True):
        place = rng.integers(1, 7)
        image[(0, slice(1, 7), place) if label else (0, place, slice(1, 7))] = 1
    return Dataset({"x": images + rng.normal(0, 0.1, images.shape).astype(np.float32)}, labels, name="bars")


def _drawn(rng: np.random.Generator, *shape: int) -> Array:
    fan = shape[0] if len(shape) == 2 else int(np.prod(shape[1:]))
    return (rng.normal(size=shape) * np.sqrt(2 / fan)).astype(np.float32)


def mlp(hidden: int = 16, seed: int = 0, tail: str = "y = Softmax(z)") -> Model:
    """float[N,4] to three probabilities."""
    rng = np.random.default_rng(seed)
    return graph(
        f"(float[1,4] x) => (float[1,3] y) {{ h = Gemm(x, w1, b1) r = Relu(h) z = Gemm(r, w2, b2) {tail} }}",
        w1=_drawn(rng, 4, hidden), b1=np.zeros(hidden, np.float32), w2=_drawn(rng, hidden, 3), b2=np.zeros(3, np.float32),
    )  # fmt: skip


def cnn(seed: int = 0) -> Model:
    """float[N,1,8,8] to two logits, with a BatchNormalization."""
    rng = np.random.default_rng(seed)
    return graph(
        "(float[1,1,8,8] x) => (float[1,2] y) { c = Conv<kernel_shape = [3, 3], pads = [1, 1, 1, 1]>(x, k, b) "
        "n = BatchNormalization(c, scale, shift, mean, variance) r = Relu(n) p = GlobalMaxPool(r) "
        "s = Constant<value = int64[2] {1, 6}>() f = Reshape(p, s) y = Gemm(f, w, v) }",
        k=_drawn(rng, 6, 1, 3, 3), b=np.zeros(6, np.float32), scale=np.ones(6, np.float32), shift=np.zeros(6, np.float32),
        mean=np.zeros(6, np.float32), variance=np.ones(6, np.float32), w=_drawn(rng, 6, 2), v=np.zeros(2, np.float32),
    )  # fmt: skip


def weights(model: Model) -> dict[str, Array]:
    return {name: np.asarray(v.const_value.numpy()) for name, v in model.graph.initializers.items() if v.const_value is not None}


def accuracy(model: Model, data: Dataset) -> float:
    """By the reference."""
    from gatewright.frontend.reference import Reference

    found = Reference(model).run(data.feeds(model.inputs))[model.outputs[0].name]
    return float((found.argmax(1) == data.labels).mean())
