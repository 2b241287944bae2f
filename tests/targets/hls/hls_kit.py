"""What the tests of hls share: small quantized models, and one call from a model to an executor."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from graphs import graph
from numpy.typing import NDArray

import gatewright as gw
from gatewright.frontend.data import Dataset
from gatewright.frontend.model import Model
from gatewright.frontend.reference import Reference
from gatewright.targets.base import Artifact
from gatewright.targets.hls.executor import HlsExecutor

Array = NDArray[Any]

needs_gxx = pytest.mark.skipif(shutil.which("g++") is None and shutil.which("clang++") is None, reason="no C++ compiler")
PYNQ, ARRIA = "hls:pynq-z2", "hls:10ax115"


def noise(model: Model, samples: int = 32, seed: int = 0) -> dict[str, Array]:
    rng = np.random.default_rng(seed)
    return {i.name: rng.normal(0, 1.2, (samples, *i.shape[1:])).astype(np.float32) for i in model.inputs}


def quantized(model: Model, options: str = "bits=8,grid=pow2", *, fuse: bool = True) -> Model:
    return gw.transform(model, f"{'fuse,' if fuse else ''}quantize{{{options}}}", Dataset(noise(model)))


def mlp(seed: int = 0) -> Model:
    """x [1, 6] → Gemm 8 → Relu → Gemm 3 → y."""
    rng = np.random.default_rng(seed)
    text = "(float[1,6] x) => (float[1,3] y) { h = Gemm(x, w1, b1)  r = Relu(h)  y = Gemm(r, w2, b2) }"
    return graph(text, **weights(rng, w1=(6, 8), b1=(8,), w2=(8, 3), b2=(3,))).renamed("mlp")


def cnn(seed: int = 0) -> Model:
    """x [1, 2, 6, 6]: convolution, overlapping pool, depthwise with stride, residual add, global average, dense."""
    rng = np.random.default_rng(seed)
    text = """(float[1,2,6,6] x) => (float[1,3] y) {
      c1 = Conv<pads=[1,1,1,1]>(x, w1, b1)  r1 = Relu(c1)
      p = MaxPool<kernel_shape=[3,3], strides=[1,1], pads=[1,1,1,1]>(r1)
      c2 = Conv<pads=[1,1,1,1], group=4>(p, w2, b2)  a = Add(c2, r1)  r2 = Relu(a)
      c3 = Conv<strides=[2,2]>(r2, w3, b3)
      g = GlobalAveragePool(c3)  f = Flatten(g)  y = Gemm(f, w4, b4) }"""
    shapes = {"w1": (4, 2, 3, 3), "b1": (4,), "w2": (4, 1, 3, 3), "b2": (4,), "w3": (5, 4, 2, 2), "b3": (5,), "w4": (5, 3), "b4": (3,)}
    return graph(text, **weights(rng, **shapes)).renamed("cnn")


def weights(rng: np.random.Generator, **shapes: tuple[int, ...]) -> dict[str, Array]:
    return {name: (rng.normal(size=shape) * 0.5).astype(np.float32) for name, shape in shapes.items()}


def executor(model: Model, target: str, folder: Path, edit: Callable[[Path], None] | None = None) -> HlsExecutor:
    """The emulator of ``model``; ``edit`` may change the lowered files first (and the manifest is made to agree)."""
    artifact = gw.compile(model, target, out=folder / "artifact")
    if edit is not None:
        edit(artifact.path)
        # Another content, so that no emulator of the unedited files is taken for it.
        files = {**artifact.manifest["files"], "firmware/edited": str(folder)}
        artifact = Artifact(artifact.path, {**artifact.manifest, "files": files}, artifact.context)
    loaded = artifact.load("emulate")
    assert isinstance(loaded, HlsExecutor)
    return loaded


def mismatches(model: Model, target: str, folder: Path, samples: int = 64) -> int:
    """Values in which the emulator's outputs differ from ref's."""
    feeds = noise(model, samples, seed=5)
    expected = Reference(model).run(feeds)
    with executor(model, target, folder) as running:
        got = running.run(feeds)
    return sum(int(np.count_nonzero(got[name] != expected[name])) for name in expected)
