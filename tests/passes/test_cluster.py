"""Weight sharing against k-means by definition, training of shared values, and pruning step by step."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from graphs import graph
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import build, dataset

from gatewright.errors import DataError, PassError, UsageError
from gatewright.frontend.data import Dataset
from gatewright.frontend.model import Model
from gatewright.passes import importance as rules
from gatewright.passes.base import PassContext
from gatewright.passes.cluster import codebook, nearest_of
from gatewright.passes.gradual import accuracy
from gatewright.passes.pipeline import Pipeline


def weights(model: Model) -> list[np.ndarray]:
    return [np.asarray(n.inputs[1].const_value.numpy()) for n in rules.layers(model.graph)]  # type: ignore[union-attr]


def problem(samples: int = 300) -> tuple[Model, Dataset]:
    """Three classes of points around three centres, and a perceptron for them that has learned nothing."""
    random = np.random.default_rng(0)
    labels = random.integers(0, 3, samples)
    x = (np.eye(3)[labels] @ random.normal(0, 2, (3, 8)) + random.normal(0, 0.7, (samples, 8))).astype(np.float32)
    model = graph(
        "(float[1,8] x) => (float[1,3] y) { a = Gemm(x, w1, b1) b = Relu(a) y = Gemm(b, w2, b2) }",
        w1=random.normal(0, 0.5, (8, 32)).astype(np.float32), b1=np.zeros(32, np.float32),
        w2=random.normal(0, 0.3, (32, 3)).astype(np.float32), b2=np.zeros(3, np.float32),
    )  # fmt: skip
    return model, Dataset({"x": x}, labels)


# ---- k-means -------------------------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 2**32 - 1), st.integers(1, 40), st.integers(1, 400), st.sampled_from(["linear", "density"]))
def test_a_codebook_is_a_fixed_point_of_lloyds_iteration(seed: int, count: int, size: int, start: str) -> None:
    random = np.random.default_rng(seed)
    w = (random.standard_t(3, size) * (random.random(size) > 0.3)).astype(np.float32)
    book = codebook(w, count, start)
    assert len(book) <= count
    assert np.all(np.diff(book) > 0)
    rest = w[w != 0].astype(np.float64)
    if not len(rest):
        return
    nearest = np.abs(rest[:, None] - book[None, :].astype(np.float64)).argmin(axis=1)
    means = np.asarray([rest[nearest == i].mean() for i in range(len(book)) if (nearest == i).any()])
    if (nearest[:, None] == np.arange(len(book))).any(axis=0).all():
        assert np.allclose(means, book, rtol=1e-4, atol=1e-4 * np.abs(w).max())
    shared = nearest_of(w, book)
    assert np.array_equal(shared == 0, w == 0)
    assert set(shared[shared != 0].tolist()) <= set(book.tolist())


def test_more_values_are_nearer() -> None:
    w = np.random.default_rng(0).normal(size=5000).astype(np.float32)
    errors = [float(np.mean((nearest_of(w, codebook(w, 1 << bits)) - w) ** 2)) for bits in range(1, 9)]
    assert errors == sorted(errors, reverse=True)
    # 16 levels of Lloyd and Max for a Gaussian: distortion 0.0095 (Max 1960, table I).
    assert errors[3] == pytest.approx(0.0095, rel=0.15)


def test_few_distinct_values_stay_as_they_are() -> None:
    w = np.asarray([0, 1, 1, -2, 0.5, 0], np.float32)
    assert np.array_equal(nearest_of(w, codebook(w, 3)), w)


@pytest.mark.parametrize("text", ["cluster{bits=3}", "cluster{k=5}", "cluster{bits=2,scope=global}", "cluster{bits=3,start=density}"])
def test_layers_share_values(text: str) -> None:
    model = Pipeline.parse("prune{amount=0.4}").run(build(3, ["conv", "relu", "conv"]))
    small = Pipeline.parse(text).run(model)
    most = {"cluster{bits=3}": 8, "cluster{k=5}": 5, "cluster{bits=2,scope=global}": 4}.get(text, 8)
    after = weights(small)
    for before, w in zip(weights(model), after, strict=True):
        assert np.array_equal(before == 0, w == 0)
        assert len(np.unique(w[w != 0])) <= most
    if "global" in text:
        assert len(np.unique(np.concatenate([w[w != 0] for w in after]))) <= most
    assert str(Pipeline.parse(text)) == text


def test_convolutions_may_have_more_bits() -> None:
    small = Pipeline.parse("cluster{bits=1,conv_bits=4}").run(build(3, ["conv", "conv"]))
    counts = [len(np.unique(w)) for w in weights(small)]
    assert counts[0] > 2
    assert counts[-1] == 2


# ---- training ------------------------------------------------------------------------------------------------------


def test_shared_values_learn_and_stay_shared() -> None:
    pytest.importorskip("torch")
    model, data = problem()
    context = PassContext(data=data)
    learned = Pipeline.parse("finetune{epochs=30,lr=0.01},prune{amount=0.5},finetune{epochs=5,lr=0.01}").run(model, context)
    coarse = Pipeline.parse("cluster{k=2}").run(learned)
    tuned = Pipeline.parse("cluster{k=2,finetune=finetune{epochs=10,lr=0.005}}").run(learned, context)
    for before, after, zeros in zip(weights(coarse), weights(tuned), weights(learned), strict=True):
        assert len(np.unique(after[after != 0])) <= 2
        assert np.array_equal(after == 0, zeros == 0)
        assert not np.array_equal(before, after)
        # The same weights share a value as before.
        assert np.array_equal(np.unique(before, return_inverse=True)[1], np.unique(after, return_inverse=True)[1])
    assert loss(tuned, data) < loss(coarse, data)


def loss(model: Model, data: Dataset) -> float:
    from gatewright.frontend.reference import Reference

    z = Reference(model).run(dict(data.inputs))["y"]
    assert data.labels is not None
    return float(np.mean(np.log(np.exp(z - z.max(1, keepdims=True)).sum(1)) + z.max(1) - z[np.arange(len(z)), data.labels]))


def test_gradual_reaches_its_amount_and_tells_each_step(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    model, data = problem()
    context = PassContext(data=data, checkpoints=tmp_path)
    learned = Pipeline.parse("finetune{epochs=30,lr=0.01}").run(model, context)
    text = "gradual{prune=prune{amount=0.9,scope=global},finetune=finetune{epochs=4,lr=0.01},steps=3}"
    assert str(Pipeline.parse(text)) == text
    small = Pipeline.parse(text).run(learned, context)
    flat = np.concatenate([w.ravel() for w in weights(small)])
    assert (flat == 0).sum() == int(0.9 * flat.size)
    steps = small.history[-1].details["steps"]
    assert [row["amount"] for row in steps] == pytest.approx([0.9 * (1 - (2 / 3) ** 3), 0.9 * (1 - (1 / 3) ** 3), 0.9], abs=1e-5)
    held_out = data.split(10)[0][1]
    assert steps[-1]["tuned"] == accuracy(small, held_out)
    assert steps[-1]["tuned"] > 0.8
    assert len([note for note in small.history[-1].notes if note.startswith("step")]) == 3
    # Once more: every step's training is found where it was kept.
    told: list[str] = []
    again = Pipeline.parse(text).run(learned, PassContext(data=data, checkpoints=tmp_path, progress=lambda what, *_: told.append(what)))
    assert again.digest == small.digest
    assert sum("going on after epoch 4 of 4" in what for what in told) == 3


def test_gradual_removes_units_down_to_its_share() -> None:
    model, data = problem()
    small = Pipeline.parse("gradual{prune=prune{kind=neuron,amount=0.75},steps=3,schedule=linear}").run(model, PassContext(data=data))
    assert weights(small)[0].shape == (8, 8)
    assert [row["amount"] for row in small.history[-1].details["steps"]] == [0.25, 0.5, 0.75]
    work = Pipeline.parse("gradual{prune=prune{kind=neuron,amount=0.5,measure=macs},steps=3}").run(model).history[-1].details["macs"]
    assert work[1] <= 0.5 * (8 * 32 + 32 * 3) < work[1] + 2 * 11
    plain = Pipeline.parse("gradual{prune=prune{amount=0.5},steps=2}").run(model)
    assert (weights(plain)[0] == 0).mean() == 0.5


# ---- refusals ------------------------------------------------------------------------------------------------------


def test_refusals() -> None:
    model, data = problem()
    for text, message in [
        ("cluster{bits=0}", "bits"), ("cluster{k=0}", "'k'"), ("cluster{scope=global,conv_bits=8}", "conv_bits"),
        ("cluster{finetune=prune}", "takes a finetune"), ("gradual{steps=0}", "steps"), ("gradual{prune=fuse}", "takes a prune"),
        ("gradual{prune=prune{kind=nm}}", "kind=nm has none"), ("gradual{prune=prune{threshold=0.1}}", "threshold has none"),
        ("gradual{finetune=qat}", "takes a finetune"),
    ]:  # fmt: skip
        with pytest.raises(UsageError, match=message):
            Pipeline.parse(text)
    with pytest.raises(PassError, match="labelled data"):
        Pipeline.parse("cluster{finetune=finetune{epochs=1}}").run(model)
    with pytest.raises(DataError, match="labels"):
        Pipeline.parse("cluster{finetune=finetune{epochs=1}}").run(model, PassContext(data=dataset(model)))
    quantized = Pipeline.parse("quantize").run(model, PassContext(data=data))
    with pytest.raises(PassError, match="share 2\\^bits values already"):
        Pipeline.parse("cluster").run(quantized)
