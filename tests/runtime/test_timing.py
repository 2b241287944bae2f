"""Timing by turns: the order of the blocks, what of them counts, and what ratios mean."""

from __future__ import annotations

import itertools

import pytest

from gatewright.runtime import timing
from gatewright.runtime.timing import Blocks, Timing, alternate, geometric_mean, ratio


class Bench:
    """Engines whose runs, and pauses between them, are written down; a clock that only the runs move."""

    def __init__(self) -> None:
        self.now = 0.0
        self.happened: list[str] = []

    def engine(self, name: str, seconds: list[float]) -> timing.Call:
        runs = itertools.cycle(seconds)

        def call() -> None:
            self.happened.append(name)
            self.now += next(runs)

        return call


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Bench:
    made = Bench()
    monkeypatch.setattr(timing.time, "perf_counter", lambda: made.now)
    monkeypatch.setattr(timing.time, "sleep", lambda seconds: made.happened.append(f"pause {seconds}"))
    return made


def test_blocks_by_turns_with_a_pause_before_each(bench: Bench) -> None:
    engines = [bench.engine("a", [0.01]), bench.engine("b", [0.02])]
    found = alternate(engines, Blocks(runs=4, dropped=2, pause_s=0.3, rounds=2))
    one_round = ["pause 0.3", *"aaaa", "pause 0.3", *"bbbb"]
    assert bench.happened == ["a", "b", *one_round, *one_round]
    assert [len(t.rounds) for t in found] == [2, 2]
    assert [t.median.value for t in found] == pytest.approx([0.01, 0.02])


def test_the_first_runs_of_a_block_do_not_count(bench: Bench) -> None:
    # The run that tells how long a block is comes first; then blocks of 1, 1, 0.01, 0.01.
    slow_start = bench.engine("a", [0.01, *[1, 1, 0.01, 0.01] * 3])
    found = alternate([slow_start], Blocks(runs=4, rounds=3))
    assert len(found[0].all) == 6
    assert max(found[0].all) == pytest.approx(0.01)


def test_slow_models_have_shorter_blocks() -> None:
    blocks = Blocks(runs=10, rounds=5, budget_s=10)
    assert blocks.runs_for(0.001) == 10
    assert blocks.runs_for(0.4) == 5
    assert blocks.runs_for(100) == 3
    assert [blocks.counted(n) for n in (10, 4, 3)] == [8, 2, 2]
    assert Blocks(runs=2).runs_for(0.001) == 2
    assert Blocks(runs=2).counted(2) == 1


def test_a_ratio_is_of_the_same_rounds() -> None:
    # The machine was twice as slow in the second round; the other engine is 1.5 times as slow throughout.
    ours, theirs = Timing(((1.0,), (2.0,), (1.0,))), Timing(((1.5,), (3.0,), (1.5,)))
    found = ratio(theirs, ours)
    assert (found.value, found.low, found.high) == pytest.approx((1.5, 1.5, 1.5))
    assert ratio(ours, theirs).value == pytest.approx(1 / 1.5)


def test_spread() -> None:
    found = Timing(((1.0, 2.0, 3.0), (4.0, 5.0)))
    low, high = found.quartiles
    assert (low.value, found.median.value, high.value) == (2.0, 3.0, 4.0)
    assert (low.unit, low.source) == ("s", "measured")
    assert timing.quartiles([7.0]) == (7.0, 7.0)
    assert geometric_mean([0.5, 2.0, 1.0]) == pytest.approx(1.0)
