"""Real models on real data, trained a little: they learn, and stay what they are."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch")

from tasks import accuracy, weights

from gatewright.frontend.data import Dataset, Input
from gatewright.frontend.integer import plan
from gatewright.frontend.load import load
from gatewright.frontend.reference import Reference
from gatewright.passes.base import PassContext
from gatewright.passes.pipeline import Pipeline


def test_a_scikit_learn_network_after_pruning(shared_model: Callable[[str], Path], shared_data: Callable[[str], Path]) -> None:
    """Its first output is the class, an integer: the labels belong to the probabilities, and training wins back what pruning took."""
    model = load(shared_model("skl_digits_mlp.onnx"))
    prepared = {model.inputs[0].name: Input(dtype="float32")}
    train, test = (Dataset.load(shared_data("sk_digits.npz"), prepared, part=part) for part in ("train", None))

    def right(found: object) -> float:
        labels = Reference(found).run(test.feeds(model.inputs))[model.outputs[0].name]  # type: ignore[arg-type]
        return float((labels.reshape(-1) == test.labels).mean())

    pruned = Pipeline.parse("prune{amount=0.85}").run(model)
    tuned = Pipeline.parse("finetune{epochs=12,lr=0.003}").run(pruned, PassContext(data=train))
    assert right(model) > 0.97
    assert right(pruned) < 0.93
    assert right(tuned) > right(pruned) + 0.03
    zeros = [sum(np.count_nonzero(w == 0) for w in weights(m).values()) for m in (pruned, tuned)]
    assert zeros[1] >= 0.95 * zeros[0] > 4000


def test_an_8_bit_network_from_tensorflow_lite(shared_model: Callable[[str], Path], shared_data: Callable[[str], Path]) -> None:
    """Trained on its own grids it keeps its integer form, operation by operation, and its accuracy."""
    model = load(shared_model("tiny_kws_dscnn_int8.onnx"))
    data = Dataset.load(shared_data("kws01_mfcc_int8_1000.npz"), {"input_1": Input(reshape=(49, 10, 1))})
    train, test = data.slice(0, 200), data.slice(200, 500)
    before = accuracy(model, test)
    trained = Pipeline.parse("finetune{epochs=2,lr=0.0003,batch=32,validation=0}").run(model, PassContext(data=train))
    assert trained.digest != model.digest
    assert accuracy(trained, test) > before - 0.02
    assert [op.kind for op in plan(trained).integer_ops] == [op.kind for op in plan(model).integer_ops]
    assert plan(trained).notes == plan(model).notes
