"""The passes on trained models and real data: accuracy at 8 bits, channels pruned, exactness of the exact ones."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from gatewright.frontend.data import Dataset, Input
from gatewright.frontend.integer import FloatStep, plan
from gatewright.frontend.load import load
from gatewright.frontend.model import Model
from gatewright.frontend.reference import Reference
from gatewright.frontend.work import macs, weight_bytes
from gatewright.passes.base import PassContext
from gatewright.passes.pipeline import Pipeline
from gatewright.passes.prune import Prune, masked
from gatewright.passes.verify import relative_error, tolerance

Locate = Callable[[str], Path]
Case = tuple[Model, Dataset, Dataset]
"""A float model, what it is calibrated on, what it is judged on."""


@pytest.fixture(params=["mnist_cntk", "tiny_ic_resnet8_fp32", "tiny_kws_dscnn_fp32"])
def case(request: pytest.FixtureRequest, shared_model: Locate, shared_data: Locate) -> Case:
    name = str(request.param)
    model = load(shared_model(f"{name}.onnx"))
    if name == "mnist_cntk":
        inputs = {"Input3": Input(reshape=(1, 28, 28))}
        train = Dataset.load(shared_data("mnist_train_5k.npz"), inputs=inputs).shuffled(0).take(300)
        return model, train, Dataset.load(shared_data("mnist_test_10k.npz"), inputs=inputs).take(500)
    if name == "tiny_ic_resnet8_fp32":
        data = Dataset.load(shared_data("cifar10_recovered.npz"), inputs={"input_1": Input(dtype="float32")})
        return model, data, data
    inputs = {"input_1": Input(offset=83, scale=0.5847029, reshape=(49, 10, 1), dtype="float32")}
    data = Dataset.load(shared_data("kws01_mfcc_int8_1000.npz"), inputs=inputs).shuffled(0)
    return model, data.slice(0, 200), data.slice(200, 600)


def accuracy(model: Model, data: Dataset) -> float:
    reference = Reference(model)
    answers = [next(iter(reference.run(feeds).values())).argmax(axis=1) for feeds in data.batches(model.inputs, 64)]
    return float(np.mean(np.concatenate(answers) == data.labels))


@pytest.mark.parametrize("text", ["quantize{grid=pow2,per=channel}", "quantize{grid=symmetric,per=channel,range=percentile}"])
def test_eight_bits_cost_less_than_a_point(case: Case, text: str) -> None:
    model, train, test = case
    q = Pipeline.parse(f"fuse,{text}").run(model, PassContext(data=train))
    assert accuracy(q, test) >= accuracy(model, test) - 0.01
    assert weight_bytes(q) < 0.35 * weight_bytes(model) or "kws" in model.name
    floats = [s.node.op_type for s in plan(q).steps if isinstance(s, FloatStep)]
    assert set(floats) <= {"QuantizeLinear", "DequantizeLinear", "Softmax"}


def test_channels_pruned_by_thirty_per_cent_equal_the_masked_model(case: Case) -> None:
    model, _, test = case
    pruning = Prune("channel", 0.3)
    small = Pipeline((pruning,)).run(model)
    assert macs(small) < 0.7 * macs(model)
    assert weight_bytes(small) < 0.8 * weight_bytes(model)
    feeds = test.take(20).feeds(model.inputs)
    left, right = Reference(small).run(feeds), Reference(masked(model, pruning)).run(feeds)
    for name in left:
        assert relative_error(right[name], left[name]) <= tolerance(model)


def test_exact_passes_are_exact(case: Case) -> None:
    model, train, _ = case
    Pipeline.parse("fold,fuse").run(model, PassContext(data=train), verify="numeric")


@pytest.mark.parametrize("name", ["tiny_ad01_fp32", "ultraface_slim320_nopost", "oww_okay_nabu", "speech_embedding"])
def test_other_trained_models_fuse_exactly(name: str, shared_model: Locate) -> None:
    model = load(shared_model(f"{name}.onnx"))
    fused = Pipeline.parse("fold,fuse").run(model)
    random = np.random.default_rng(0)
    feeds = {info.name: random.normal(size=info.shape).astype(np.float32) for info in model.inputs}
    left, right = Reference(model).run(feeds), Reference(fused).run(feeds)
    assert all(relative_error(left[name], right[name]) <= tolerance(model) for name in left)


@pytest.mark.parametrize("name", ["tiny_kws_dscnn_int8", "tiny_ic_resnet8_int8", "tflm_micro_speech_int8", "tiny_ad01_int8"])
def test_a_quantized_model_keeps_every_integer(name: str, shared_model: Locate) -> None:
    Pipeline.parse("fold,fuse").run(load(shared_model(f"{name}.onnx")), verify="numeric")


def test_demo_digits_at_four_bits() -> None:
    folder = Path(__file__).parents[2] / "runtime" / "demo_data"
    model = load(folder / "digits_mlp.onnx")
    info = model.inputs[0]
    preparation = {info.name: Input(reshape=info.shape[1:], scale=1 / 16, source="X", dtype="float32")}
    test = Dataset.load(folder / "digits.npz", inputs=preparation)
    train = Dataset.load(folder / "digits.npz", part="train", inputs={info.name: replace(preparation[info.name], source=None)})
    q = Pipeline.parse("fuse,quantize{bits=4,grid=pow2,range=percentile,percentile=99.9}").run(model, PassContext(data=train))
    assert accuracy(q, test) >= accuracy(model, test) - 0.03
