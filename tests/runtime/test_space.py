"""What a search may combine: it depends on target, model, data and methods, every text parses, and what is plain comes first."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from graphs import graph

from gatewright.frontend.model import Model
from gatewright.passes.pipeline import Pipeline
from gatewright.runtime.space import METHODS, Scripted, Space
from gatewright.runtime.targetspec import resolve

pytest.importorskip("torch", reason="the space is narrower without it")


class Dice:
    """Anything that may be chosen."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.seen: dict[str, list[Any]] = {}

    def suggest_categorical(self, name: str, choices: Sequence[Any], /) -> Any:
        assert self.seen.setdefault(name, list(choices)) == list(choices), "a decision has the same values whenever it comes up"
        return self.random.choice(choices)

    def suggest_int(self, name: str, low: int, high: int, /) -> int:
        assert self.seen.setdefault(name, [low, high]) == [low, high]
        return self.random.randint(low, high)

    def suggest_float(self, name: str, low: float, high: float, /, *, step: float) -> float:
        assert self.seen.setdefault(name, [low, high, step]) == [low, high, step]
        return low + step * self.random.randint(0, round((high - low) / step))


def space(model: Model, target: str, costs: Sequence[str], methods: Sequence[str] | None = None, labels: bool = True) -> Space:
    return Space.of(model, resolve(target), costs, methods, labels, "teacher.onnx")


PLACES = [("rtl:icebreaker", ["LUT"]), ("hls:pynq-z2", ["LUT", "DSP"]), ("cpu", ["latency"]), ("ort", ["bytes"]), ("ort", ["file"])]


@pytest.mark.parametrize(("target", "costs"), PLACES)
def test_every_candidate_is_a_pipeline(mlp: Model, target: str, costs: list[str]) -> None:
    found, dice = space(mlp, target, costs), Dice(1)
    texts = {found.suggest(dice) for _ in range(60)}
    assert len(texts) > 40
    for text in texts:
        assert "teacher" in text or str(Pipeline.parse(text)), text
        assert Pipeline.parse(text).passes[0].name == "fuse"
    assert all(found.gains.must_quantize is False or any(name in text for name in ("quantize{", "qat{", "mixed{")) for text in texts)


@pytest.mark.parametrize(("target", "costs"), PLACES)
def test_seeds_are_complete_and_begin_with_uniform_quantization(mlp: Model, target: str, costs: list[str]) -> None:
    found = space(mlp, target, costs)
    seeds = found.seeds()
    assert len(seeds) >= 8

    class Strict(Scripted):
        def _take(self, name: str, plain: Any, allowed: bool) -> Any:
            assert name in self.given, "every decision of a seed is made: none is left to chance"
            return super()._take(name, plain, allowed)

    texts = [found.suggest(Strict(seed)) for seed in seeds]
    assert texts[0] == found.uniform
    assert len(set(texts)) == len(texts)


def decisions(found: Space) -> dict[str, list[Any]]:
    dice = Dice(2)
    for _ in range(400):
        found.suggest(dice)
    return dice.seen


def test_the_space_knows_what_pays_on_the_target(mlp: Model) -> None:
    rtl, cpu, stored = (decisions(space(mlp, *place)) for place in (PLACES[0], PLACES[2], PLACES[4]))
    assert "magnitude" in rtl["prune"]
    assert "pattern" in rtl
    assert rtl["bits"] == [2, 8]
    assert rtl["grid"] == ["pow2"]
    assert "none" not in rtl["rounding"], "rtl takes quantized models only"
    assert "cluster" not in rtl
    assert cpu["prune"] == ["none", "channel"], "single zeros gain nothing there"
    assert "bits" not in cpu
    assert "none" in cpu["rounding"]
    assert stored["cluster"] == ["no", "yes"]


def test_the_space_knows_the_model_the_data_and_the_methods(mlp: Model) -> None:
    w = np.ones((4, 3), np.float32)
    flat = graph("(float[1,4] x) => (float[1,3] y) { y = MatMul(x, w) }", w=w).renamed("flat")
    assert space(flat, "cpu", ["latency"]).units == (), "nothing inside to remove"
    unlabelled = decisions(space(mlp, "cpu", ["latency"], labels=False))
    assert unlabelled["lesson_alone"] == ["none", "distil"], "a teacher needs no labels"
    assert "alpha" not in unlabelled
    assert "importance" not in unlabelled or unlabelled["importance"] == ["magnitude"]
    only = decisions(space(mlp, "ort", ["latency"], ["quantize"]))
    assert only["rounding"] == ["quantize", "none"]
    assert only["prune"] == ["none"]


def test_every_method_is_searched(mlp: Model, tmp_path: Path) -> None:
    everywhere = set()
    for target, costs in PLACES:
        found, dice = space(mlp, target, costs), Dice(3)
        for _ in range(600):
            everywhere |= {name for name in METHODS if f"{name}{{" in (text := found.suggest(dice)) or f",{name}," in text}
    assert everywhere == set(METHODS)
