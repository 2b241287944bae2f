"""Levels 1 and 2: what is measured, what is kept, and that nothing a candidate does reaches the compiler or the artifact."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
from compiling import Compile
from graphs import graph

from gatewright.errors import ToolFailed, UnsupportedError, UsageError
from gatewright.frontend.model import Model
from gatewright.hw.device import load_device
from gatewright.targets.base import Artifact, TargetContext
from gatewright.targets.tvm import target as cpu
from gatewright.targets.tvm.codegen import Graph
from gatewright.targets.tvm.contained import Failure, Tell, each
from gatewright.targets.tvm.kernel import Choice
from gatewright.targets.tvm.schedules.matmul import PackedMatmul
from gatewright.targets.tvm.search import CANDIDATES, OFFSPRING, Problem, _Wider, shortlist
from gatewright.targets.tvm.target import CpuOptions, CpuTarget
from gatewright.targets.tvm.timing import difference
from gatewright.targets.tvm.tuning import Measured, TuningCache

PLANTED = Path(__file__).with_name("planted.py")


@pytest.fixture
def model() -> Model:
    """Two matrix products of different shapes."""
    random = np.random.default_rng(0)
    return graph(
        "(float[1,64] x) => (float[1,32] y) { a = Gemm(x, w, b) c = Relu(a) y = Gemm(c, v) }",
        w=random.standard_normal((64, 128)).astype(np.float32), b=random.standard_normal(128).astype(np.float32),
        v=random.standard_normal((128, 32)).astype(np.float32),
    )  # fmt: skip


@dataclass
class Built:
    """One compilation by the planted compiler."""

    notes: list[str]
    widths: list[int]
    """The panels of the two products."""
    choices: list[str]
    measured: list[str]
    """Lines of measurements that it took."""
    seconds: float
    folder: Path


Tuned = Callable[..., Built]


@pytest.fixture
def tuned(model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Tuned:
    """``tuned("crash_build", level=1)``; the tuning cache stays from one call to the next."""
    calls = [0]

    def build(kind: str, level: int = 1, of: Model = model, **options: Any) -> Built:
        calls[0] += 1
        log, folder = tmp_path / "measured.txt", tmp_path / str(calls[0])
        before = log.read_text(encoding="utf-8").count("\n") if log.exists() else 0
        monkeypatch.setattr(cpu, "WORKER", (str(PLANTED), kind, str(log)))
        target, context = CpuTarget(None, CpuOptions(level=level, **options)), TargetContext(tmp_path / "cache")
        folder.mkdir()
        described = target.lower(target.legalize(of), folder, context)
        start = time.monotonic()
        built = target.build(Artifact(folder, {"model": {"name": of.name}, "target": described}, context), folder, context)
        chosen = [entry for entries in built["kernels"].values() for entry in entries if entry["algorithm"] == "panel"]
        return Built(
            built["notes"], [entry["blocks"][0] for entry in chosen], [entry["choice"] for entry in chosen],
            log.read_text(encoding="utf-8").splitlines()[before:] if log.exists() else [], time.monotonic() - start, folder,
        )  # fmt: skip

    return build


def test_the_fastest_is_built_and_known_from_then_on(tuned: Tuned, model: Model) -> None:
    first = tuned("narrow")
    assert first.widths == [2, 2]
    assert first.choices == ["measured", "measured"]
    assert len(first.measured) == 2
    again = tuned("narrow")
    assert again.widths == [2, 2]
    assert not again.measured
    other = graph("(float[1,64] z) => (float[1,128] y) { y = Gemm(z, w) }", w=np.ones((64, 128), np.float32))
    assert not tuned("narrow", of=other).measured, "another model with the same product measures nothing"


def test_level_0_measures_nothing_and_gives_the_same_bytes(tuned: Tuned) -> None:
    one = tuned("narrow", level=0)
    assert not one.measured
    assert one.choices == ["analytic", "analytic"]
    tuned("narrow")
    two = tuned("narrow", level=0)
    files = [file.name for file in one.folder.iterdir() if file.is_file()]
    assert all((one.folder / name).read_bytes() == (two.folder / name).read_bytes() for name in files)


def test_a_damaged_entry_is_measured_again(tuned: Tuned, tmp_path: Path) -> None:
    tuned("narrow")
    victim, _ = sorted((tmp_path / "cache" / "tuning").rglob("*.json"))
    victim.write_text(victim.read_text(encoding="utf-8").replace('"seconds": ', '"seconds": 1'), encoding="utf-8")
    built = tuned("narrow")
    assert len(built.measured) == 1
    assert any("damaged and is measured again" in note for note in built.notes)


@pytest.mark.parametrize("damage", ["cut", "changed", "of another problem", "empty", "of another form"])
def test_no_damage_is_taken_for_a_measurement(tmp_path: Path, damage: str) -> None:
    said: list[str] = []
    cache = TuningCache(tmp_path, {"threads": 2}, said.append)
    best = Choice("a", (3,))
    for problem in ("p", "q"):
        cache.put(problem, [best], Measured(best, 0.5))
    files = {json.loads(file.read_text(encoding="utf-8"))["key"]["problem"]: file for file in tmp_path.rglob("*.json")}
    text = files["p"].read_text(encoding="utf-8")
    damaged = {
        "cut": text[: len(text) // 2], "changed": text.replace("0.5", "0.4"), "of another problem": files["q"].read_text(encoding="utf-8"),
        "empty": "", "of another form": "[1]",
    }  # fmt: skip
    files["p"].write_text(damaged[damage], encoding="utf-8")
    assert cache.get("p", [best]) is None
    assert len(said) == 1
    assert not files["p"].exists()
    assert cache.get("q", [best]) == Measured(best, 0.5)


def test_bad_candidates_are_named_and_passed_over(tuned: Tuned) -> None:
    built = tuned("bad")
    assert built.widths == [64, 64]
    assert built.choices == ["measured", "measured"]
    for width, why in (
        (32, "building it failed: was killed by SIGSEGV"), (16, "building it failed: took longer than 2 s"),
        (8, "it computes something else than panel(64): values are"), (4, "building it failed: no such width"),
        (2, "its run was killed by SIGSEGV"),
    ):  # fmt: skip
        for node in ("Gemm_0", "Gemm_2"):
            assert any(n.startswith(f"candidate panel({width}) of {node} (Gemm) was rejected: {why}") for n in built.notes), (width, node)


def test_an_interrupted_search_goes_on(tuned: Tuned) -> None:
    with pytest.raises(ToolFailed, match=r"(?s)was killed by SIGKILL.*measuring kernels: 1 of 2 problems done, next Gemm"):
        tuned("die")
    built = tuned("narrow")
    assert len(built.measured) == 1, "the first problem was stored before the process died"
    assert built.choices == ["measured", "measured"]


def test_the_budget_is_kept_and_the_rest_is_analytic(tuned: Tuned) -> None:
    built = tuned("slow", budget=2.0)
    unmeasured = built.choices.count("analytic")
    assert unmeasured >= 1
    assert any(f"{unmeasured} of 2 kernel problems were not measured: the budget of 2 s was spent" in note for note in built.notes)
    assert len(built.measured) <= 2


@pytest.mark.slow
def test_level_2_goes_on_from_level_1(tuned: Tuned) -> None:
    built = tuned("narrow", level=2, budget=20.0)
    assert max(built.widths) < 2, "narrower panels than any candidate, since the planted clock likes them"
    assert not tuned("narrow", level=2, budget=20.0).measured


def test_llvm_killed_by_a_kernel(tuned: Tuned) -> None:
    """The process dies with all kernels in hand; the ones to blame are found and run in plain loops."""
    built = tuned("crash in LLVM", level=0)
    for node in ("Gemm_0 (Gemm)", "Gemm_2 (Gemm)"):
        assert any(n.startswith(f"kernel of {node}: it runs in plain loops: building it failed: was killed") for n in built.notes)


def test_a_crash_without_a_way_round_names_the_node(tuned: Tuned) -> None:
    with pytest.raises(ToolFailed, match=r"(?s)compiling g for cpu.*SIGSEGV.*kernel of Gemm_0 \(Gemm\)"):
        tuned("bad first", level=0)


def test_a_schedule_that_is_refused(compiled: Compile, model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    x = np.linspace(-1, 1, 64, dtype=np.float32).reshape(1, 64)
    expected = compiled(model).run({"x": x})["y"]

    def refuse(self: PackedMatmul, schedule: Any, machine: Any) -> None:
        schedule.fuse(*schedule.get_loops(schedule.get_sblock("acc"))[::-1])

    monkeypatch.setattr(PackedMatmul, "__call__", refuse)
    assert np.allclose(compiled(model, plain=True).run({"x": x})["y"], expected, atol=1e-5)


def test_steps_that_do_not_go_together_run_one_by_one(compiled: Compile, model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    x = np.linspace(-1, 1, 64, dtype=np.float32).reshape(1, 64)
    expected = compiled(model).run({"x": x})["y"]
    lowered = Graph.lowered

    def refuse(self: Graph, one: Any, policy: Any) -> Any:
        if len(one.steps) > 1:
            raise ValueError("too much at once")
        return lowered(self, one, policy)

    monkeypatch.setattr(Graph, "lowered", refuse)
    assert np.allclose(compiled(model, plain=True).run({"x": x})["y"], expected, atol=1e-5)


def test_only_the_device_can_measure(model: Model) -> None:
    target = CpuTarget(load_device("raspberry-pi-4"), CpuOptions(level=1))
    with pytest.raises(UnsupportedError, match="option 'level=1' measures kernels, which only the device itself can"):
        target.legalize(model)
    with pytest.raises(UsageError, match="option 'budget' of target cpu is 0"):
        CpuOptions(budget=0)


def work(item: int, tell: Tell) -> list[int]:
    """For the tests below: items that end in every way."""
    tell(f"item {item}")
    if item == 1:
        os.kill(os.getpid(), signal.SIGSEGV)
    if item == 2:
        time.sleep(1000)
    if item == 3:
        raise ValueError("a\nlast line")
    if item == 4:
        os._exit(3)
    return [item]


@pytest.mark.parametrize("processes", [1, 2])
def test_whatever_happens_in_a_forked_process(processes: int) -> None:
    results = dict(each(range(7), work, processes=processes, limit_s=0.5))
    assert results == {
        0: [0], 1: Failure("was killed by SIGSEGV", "item 1"), 2: Failure("took longer than 0 s", "item 2"),
        3: Failure("last line", "item 3"), 4: Failure("ended with exit code 3", "item 4"), 5: [5], 6: [6],
    }  # fmt: skip


def test_forked_work_ends_with_its_deadline() -> None:
    start = time.monotonic()
    assert list(each([2, 0], work, processes=1, limit_s=60, deadline=start + 0.3)) == []
    assert time.monotonic() - start < 5


def test_what_counts_as_the_same_result() -> None:
    a = np.array([1.0, -3.0, np.nan, np.inf], np.float32)
    assert difference(a, a + np.float32(1e-5), exact=True) is None
    assert difference(a, a + np.float32(1e-3), exact=True) is not None
    assert difference(a, np.array([1, -3, 0, np.inf], np.float32), exact=True) is not None
    assert difference(a, np.array([1, np.nan, np.nan, np.inf], np.float32), exact=True) is not None, "not written"
    q = np.array([1, 2], np.int8)
    assert difference(q, q + np.int8(1), exact=False) is None
    assert difference(q, q + np.int8(1), exact=True) is not None


def test_the_shortlist_keeps_every_algorithm() -> None:
    many = [Choice("a", (i,)) for i in range(20)] + [Choice("b", (1,)), Choice("b", (2,))]
    kept = shortlist([*many, many[0]])
    assert kept == (*many[: CANDIDATES - 1], Choice("b", (1,)))


def test_offspring_are_new_and_near() -> None:
    best = Choice("a", (4, 0, 16))
    wider = _Wider(Problem("p", (best, Choice("a", (2, 0, 8))), None, 1, 1), Measured(best, 1.0))  # type: ignore[arg-type]
    children = wider.offspring(Random(0))
    assert len(children) == len(set(children)) == OFFSPRING
    assert all(c.algorithm == "a" and len(c.blocks) == 3 and c.blocks[0] > 0 and c.blocks[1] >= 0 for c in children)
    assert best not in children
    nothing = _Wider(Problem("p", (Choice("a"),), None, 1, 1), Measured(Choice("a"), 1.0))  # type: ignore[arg-type]
    assert nothing.offspring(Random(0)) == []
    assert nothing.settled


def test_a_cache_that_cannot_be_written_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("", encoding="utf-8")
    said: list[str] = []
    cache = TuningCache(tmp_path / "file", {}, said.append)
    cache.put("p", [Choice("a")], Measured(Choice("a"), 1.0))
    assert cache.get("p", [Choice("a")]) is None
    assert any("cannot be written" in what for what in said)


def test_an_entry_is_of_its_basis(tmp_path: Path) -> None:
    found = Measured(Choice("a", (1, 2)), 0.5, {"a(1, 2)": 0.5}, {"b()": "slow"})
    said: list[str] = []
    TuningCache(tmp_path, {"threads": 2}, said.append).put("p", [found.choice], found)
    assert TuningCache(tmp_path, {"threads": 2}, said.append).get("p", [found.choice]) == found
    assert TuningCache(tmp_path, {"threads": 1}, said.append).get("p", [found.choice]) is None
    assert TuningCache(tmp_path, {"threads": 2}, said.append).get("p", [Choice("b")]) is None
    assert not said
    (file,) = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert json.loads(file.read_text(encoding="utf-8"))["key"]["problem"] == "p"
