"""Mixed precision: sensitivities are measured, the budget is kept, the choice is the best of all where all can be tried."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from graphs import graph
from strategies import build, dataset

from gatewright.errors import DataError, PassError, UsageError
from gatewright.frontend.data import Dataset
from gatewright.frontend.integer import plan
from gatewright.frontend.model import Model
from gatewright.frontend.reference import Reference
from gatewright.passes import mixed
from gatewright.passes.base import PassContext
from gatewright.passes.mixed import choose
from gatewright.passes.pipeline import Pipeline
from gatewright.passes.sensitivity import loss, outputs_of


def run(model: Model, text: str, data: Dataset) -> Model:
    return Pipeline.parse(text).run(model, PassContext(data=data))


def uneven(seed: int = 0) -> tuple[Model, Dataset]:
    """Four products; the third has a few weights far larger than the rest, which few bits round away."""
    random = np.random.default_rng(seed)
    weights = {f"w{i}": random.normal(size=(16, 16)).astype(np.float32) / 4 for i in range(3)} | {"w3": random.normal(size=(16, 6)) / 4}
    weights["w2"][0, :3] *= 12
    text = (
        "(float[1,16] x) => (float[1,6] y)"
        " { a = MatMul(x, w0) b = Relu(a) c = MatMul(b, w1) d = Relu(c) e = MatMul(d, w2) y = MatMul(e, w3) }"
    )
    x = random.normal(size=(200, 16)).astype(np.float32)
    model = graph(text, **{k: v.astype(np.float32) for k, v in weights.items()})
    return model, Dataset({"x": x}, labels=Reference(model).run({"x": x})["y"].argmax(axis=1))


def widths(model: Model) -> dict[str, int]:
    return {op.name: int(np.abs(op.weight).max()).bit_length() + 1 for op in plan(model).integer_ops if op.weight is not None}


@pytest.mark.parametrize("measure", ["kl", "mse", "accuracy"])
def test_the_sensitive_layer_is_kept_wide_and_beats_uniform_bits(measure: str) -> None:
    model, data = uneven()
    known, held_out = data.slice(0, 100), data.slice(100, 200)
    made = run(model, f"mixed{{average_bits=5.5,measure={measure}}}", known)
    names = [n.name for n in model.graph if n.op_type == "MatMul"]
    chosen = made.history[-1].details["bits"]
    assert widths(made) == chosen
    # A hundred labels tell less apart than the outputs themselves.
    assert measure == "accuracy" or chosen[names[2]] == 8
    sizes = {name: 256 if name != names[3] else 96 for name in names}
    assert sum(sizes[n] * b for n, b in chosen.items()) <= 5.5 * sum(sizes.values())
    x = dict(held_out.inputs)
    wanted = Reference(model).run(x)["y"]
    narrow, wide = (run(model, f"quantize{{weight_bits={bits}}}", known) for bits in (4, 8))
    errors = [float(np.mean((Reference(m).run(x)["y"] - wanted) ** 2)) for m in (wide, made, narrow)]
    assert errors == sorted(errors)
    assert measure == "accuracy" or errors[1] < 0.5 * errors[2]


def test_the_choice_is_recorded_and_replayed_without_measuring(monkeypatch: pytest.MonkeyPatch) -> None:
    model, data = uneven()
    text = "mixed{average_bits=6.5,candidates=3|4|8,per=channel,range=mse,bias_correction=true}"
    made = run(model, text, data)
    assert str(Pipeline.parse(text)) == text
    assert run(model, text, data).digest == made.digest
    monkeypatch.setattr(mixed, "sensitivities", None)
    again = run(model, made.history[-1].details["quantize"], data)
    assert again.digest == made.digest


def test_the_choice_against_all_choices() -> None:
    random = np.random.default_rng(0)
    worse = []
    for _ in range(30):
        sizes = {f"l{i}": int(random.integers(10, 100)) for i in range(5)}
        costs = {}
        for name in sizes:
            scale = 10.0 ** random.uniform(-3, 0)
            costs |= {(name, bits): scale * 4.0**-bits for bits in (2, 4, 8)}
        budget = float(random.uniform(2.5, 7)) * sum(sizes.values())
        found = choose(sizes, costs, [2, 4, 8], budget)
        assert sum(sizes[n] * b for n, b in found.items()) <= budget
        every = [dict(zip(sizes, bits, strict=True)) for bits in itertools.product((2, 4, 8), repeat=5)]
        fits = [c for c in every if sum(sizes[n] * b for n, b in c.items()) <= budget]
        best = min(sum(costs[item] for item in c.items()) for c in fits)
        worse.append(sum(costs[item] for item in found.items()) / best)
    assert np.median(worse) < 1.3


def test_sensitivities_are_of_one_layer_alone() -> None:
    model, data = uneven()
    made = run(model, "mixed{average_bits=8,candidates=2|8}", data)
    names = [n.name or "" for n in model.graph if n.op_type == "MatMul"]
    measured = made.history[-1].details["sensitivity"]
    assert set(measured) == set(names)
    assert all(costs["8"] < 0.01 * costs["2"] for costs in measured.values())
    assert max(measured, key=lambda n: measured[n]["2"]) in names
    assert set(made.history[-1].details["bits"].values()) == {8}
    outputs = outputs_of(model, data)
    assert loss(outputs, outputs, "kl", set(), None) == 0
    assert loss(outputs, {"y": outputs["y"] + 5}, "kl", set(), None) < 1e-6
    assert loss(outputs, {"y": outputs["y"] * 0}, "mse", set(), None) > 0.9


def test_a_budget_in_bytes() -> None:
    model, data = uneven()
    total = 3 * 256 + 96
    made = run(model, f"mixed{{budget_bytes={total * 5 // 8}}}", data)
    chosen = made.history[-1].details["bits"]
    assert {4, 8} == set(chosen.values())
    with pytest.raises(UsageError, match=f"less than {total // 2}"):
        run(model, "mixed{budget_bytes=100}", data)


def test_what_is_refused() -> None:
    model, data = uneven()
    for text, message in (
        ("mixed{candidates=4}", "two widths"), ("mixed{candidates=1|8}", "2 to 16"), ("mixed{average_bits=3}", "narrowest"),
        ("mixed{bits=1}", "2 to 16"), ("mixed{samples=0}", "samples"), ("mixed{measure=loss}", "kl, mse, accuracy"),
    ):  # fmt: skip
        with pytest.raises(UsageError, match=message):
            Pipeline.parse(text)
    with pytest.raises(DataError, match="needs labels"):
        run(model, "mixed{measure=accuracy}", Dataset({"x": data.inputs["x"]}))
    with pytest.raises(PassError, match="nothing to choose"):
        run(build(1, [], image=False), "mixed", dataset(build(1, [], image=False)))
    with pytest.raises(PassError, match="quantized already"):
        run(model, "quantize,mixed", data)
    bad = data.inputs["x"].copy()
    bad[0] = np.nan
    with pytest.raises(PassError, match="not finite"):
        run(model, "mixed", Dataset({"x": bad}))
