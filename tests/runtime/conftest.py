"""Fixtures of the runtime's tests: a cache of one's own, small models and data, targets that do what a test wants."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from graphs import graph
from toy_target import MADE

from gatewright.frontend.data import Dataset
from gatewright.frontend.model import Model
from gatewright.targets import base


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Nobody's cache is read or written by a test."""
    folder = tmp_path / "cache"
    monkeypatch.setenv("GATEWRIGHT_CACHE_DIR", str(folder))
    for name in ("GATEWRIGHT_VERIFY", "GATEWRIGHT_DEBUG", "GATEWRIGHT_JOBS", "GATEWRIGHT_TIME_LIMIT_S"):
        monkeypatch.delenv(name, raising=False)
    return folder


@pytest.fixture
def toys(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Targets toy, qtoy, built and picky; the list of what they lowered."""
    monkeypatch.setitem(base.TARGETS, "toy", "toy_target:ToyTarget")
    monkeypatch.setitem(base.TARGETS, "qtoy", "toy_target:QuantizedToy")
    monkeypatch.setitem(base.TARGETS, "built", "toy_target:BuiltToy")
    monkeypatch.setitem(base.TARGETS, "picky", "toy_target:PickyTarget")
    MADE.clear()
    return MADE


def make_mlp(seed: int = 0) -> Model:
    """x [1, 4] -> Gemm 8 -> Relu -> Gemm 3 -> y [1, 3], batch free."""
    rng = np.random.default_rng(seed)
    return graph(
        "(float[1,4] x) => (float[1,3] y) { h = Gemm(x, w1, b1)  r = Relu(h)  y = Gemm(r, w2, b2) }",
        w1=rng.normal(size=(4, 8)).astype(np.float32),
        b1=rng.normal(size=8).astype(np.float32),
        w2=rng.normal(size=(8, 3)).astype(np.float32),
        b2=rng.normal(size=3).astype(np.float32),
    ).renamed("mlp")


@pytest.fixture
def mlp() -> Model:
    return make_mlp()


@pytest.fixture
def samples() -> Dataset:
    """40 samples for ``mlp``, with class labels."""
    rng = np.random.default_rng(1)
    return Dataset({"x": rng.uniform(-1, 1, size=(40, 4)).astype(np.float32)}, rng.integers(0, 3, size=40), name="noise")
