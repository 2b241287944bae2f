"""Running and measuring."""

from __future__ import annotations

import time
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from graphs import graph

from gatewright.errors import DataError
from gatewright.frontend.data import Dataset
from gatewright.frontend.model import Model
from gatewright.frontend.reference import Reference
from gatewright.runtime import session
from gatewright.runtime.driver import compile as compile_model
from gatewright.targets.ref.target import RefExecutor


def test_all_samples_in_order_whatever_the_batch(mlp: Model, samples: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    truth = Reference(mlp).run(samples.feeds(mlp.inputs))["y"]
    monkeypatch.setattr(session, "_BATCH_MOST", 7)
    seen = []
    ran = session.run(RefExecutor(mlp), samples, progress=lambda what, done=None, total=None: seen.append((done, total)))
    np.testing.assert_array_equal(ran.outputs["y"], truth)
    assert (ran.samples, ran.is_device) == (40, False)
    assert seen[-1] == (40, 40)
    assert len(seen) == 6


def test_rates_know_their_source(mlp: Model, samples: Dataset) -> None:
    emulated = session.run(RefExecutor(mlp), samples).rate
    assert (emulated.unit, emulated.source) == ("1/s", "emulated")
    with compile_model(mlp, "ort").load() as executor:
        assert session.run(executor, samples).rate.source == "measured"


def test_a_rate_is_samples_per_second_inside_the_executor(mlp: Model, samples: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    class Slow(RefExecutor):
        def run_native(self, feeds: Any) -> dict[str, Any]:
            time.sleep(0.02)
            return super().run_native(feeds)

    monkeypatch.setattr(session, "_BATCH_MOST", 8)
    ran = session.run(Slow(mlp), samples)
    assert 5 * 0.02 <= ran.seconds < 5
    assert ran.rate.value == pytest.approx(40 / ran.seconds)


def test_saturations_add_up_over_batches(mlp: Model, samples: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    from gatewright.runtime.driver import transform

    small = transform(mlp, "fuse,quantize{bits=8,grid=pow2}", samples.take(1))
    loud = Dataset({"x": np.asarray(samples.inputs["x"]) * 50})
    whole = session.run(RefExecutor(small), loud).saturations
    monkeypatch.setattr(session, "_BATCH_MOST", 3)
    assert session.run(RefExecutor(small), loud).saturations == whole
    assert sum(whole.values()) > 0


def test_a_model_over_all_samples_takes_exactly_its_own_number(samples: Dataset) -> None:
    model = graph("(float[4,4] x) => (float[4,4] y) { m = ReduceMean<keepdims=1>(x, a)  y = Sub(x, m) }", a=np.asarray([0]))
    executor = RefExecutor(model)
    assert not executor.per_sample
    ran = session.run(executor, samples)
    x = samples.inputs["x"]
    np.testing.assert_allclose(ran.outputs["y"][4:8], x[4:8] - x[4:8].mean(axis=0), atol=1e-6)
    with pytest.raises(DataError, match="multiple of 4"):
        session.run(executor, samples.take(6))


class Clock(RefExecutor):
    """Takes 2 ms; after a pause, 50 ms twice."""

    def __init__(self, model: Model) -> None:
        super().__init__(model)
        self.last, self.slow = 0.0, 0

    def run_native(self, feeds: Any) -> dict[str, Any]:
        if time.perf_counter() - self.last > 0.05:
            self.slow = 2
        time.sleep(0.05 if self.slow else 0.002)
        self.slow = max(0, self.slow - 1)
        self.last = time.perf_counter()
        return super().run_native(feeds)


def test_latency_is_a_median_without_the_first_runs_of_a_block(mlp: Model, samples: Dataset) -> None:
    executors = [Clock(mlp), Clock(mlp)]
    found = session.latencies(executors, [session.one_batch(e, samples) for e in executors], rounds=2, block=4, pause_s=0.08)
    for latency in found:
        assert (latency.unit, latency.source) == ("s", "measured")
        assert 0.002 <= latency.value < 0.02


def test_a_slow_model_is_measured_within_the_budget(mlp: Model, samples: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    runs = []

    class Slow(RefExecutor):
        def run_native(self, feeds: Any) -> dict[str, Any]:
            runs.append(1)
            time.sleep(0.05)
            return super().run_native(feeds)

    executor = Slow(mlp)
    session.latencies([executor], [session.one_batch(executor, samples)], rounds=2, pause_s=0.0, budget_s=0.1)
    assert len(runs) == 2 + 2 * 3


def test_peak_memory_is_measured(mlp: Model, samples: Dataset) -> None:
    class Hungry(RefExecutor):
        def run_native(self, feeds: Any) -> dict[str, Any]:
            np.ones(30_000_000, np.float64).sum()
            return super().run_native(feeds)

    calm, hungry = session.run(RefExecutor(mlp), samples).peak_memory, session.run(Hungry(mlp), samples).peak_memory
    if calm is None or hungry is None:
        pytest.skip("this system does not tell a process its peak memory")
    assert (calm.unit, calm.source) == ("B", "measured")
    assert hungry.value - calm.value > 200e6


def test_outputs_are_saved_under_names_that_lead_nowhere(tmp_path: Path) -> None:
    outputs = {
        "y": np.ones(2),
        "../../evil": np.zeros(3),
        "/abs/olute": np.ones(1),
        "file": np.ones(1),
        "fc1:0": np.ones(4),
        "..": np.ones(5),
    }
    session.save_npz(tmp_path / "out.npz", outputs)
    with np.load(tmp_path / "out.npz", allow_pickle=False) as archive:
        assert set(archive) == {"y", "evil", "abs_olute", "file", "fc1:0", "output"}
        np.testing.assert_array_equal(archive["evil"], np.zeros(3))
    names = zipfile.ZipFile(tmp_path / "out.npz").namelist()
    assert not any(".." in name or "/" in name for name in names)


def test_two_names_that_look_alike_are_both_saved(tmp_path: Path) -> None:
    session.save_npz(tmp_path / "out.npz", {"a/b": np.ones(1), "a_b": np.zeros(1)})
    with np.load(tmp_path / "out.npz", allow_pickle=False) as archive:
        assert len(list(archive)) == 2
