"""Random quantized graphs and real models on hls: every output value equal to ref's."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import strategies
from hls_kit import ARRIA, PYNQ, needs_gxx

import gatewright as gw
from gatewright.errors import UnsupportedOp
from gatewright.frontend.data import Dataset, Input
from gatewright.frontend.model import Model
from gatewright.frontend.reference import Reference

pytestmark = needs_gxx

ROOT = Path(__file__).resolve().parents[3]
Find = Callable[[str], Path]


def wrong_samples(model: Model, target: str, data: Dataset, folder: Path) -> int:
    """Samples of ``data`` in which any output differs from ref's."""
    with gw.compile(model, target, out=folder, data=data).load("emulate") as executor:
        feeds = data.feeds(executor.inputs)
        got, expected = executor.run(feeds), Reference(model).run(feeds)
    wrong = [np.any((got[name] != expected[name]).reshape(len(data), -1), axis=1) for name in expected]
    return int(np.any(wrong, axis=0).sum())


def random_case(seed: int) -> tuple[Model, str]:
    """A random graph, quantization and target."""
    rng = np.random.default_rng(seed)
    image = bool(rng.random() < 0.75)
    names = strategies.QUANTIZED_IMAGE_STEPS if image else strategies.VECTOR_STEPS
    model = strategies.build(seed, [str(s) for s in rng.choice(names, size=int(rng.integers(1, 6)))], image=image)
    bits, weight_bits = int(rng.choice([2, 3, 4, 5, 7, 8, 10])), int(rng.choice([2, 4, 6, 8]))
    grid, per = rng.choice(["affine", "symmetric", "pow2"]), rng.choice(["tensor", "channel"])
    pipeline = f"fuse,quantize{{bits={bits},weight_bits={weight_bits},grid={grid},per={per}}}"
    io, reuse = rng.choice(["parallel", "stream"]), int(rng.choice([1, 2, 6, 18, 400]))
    device, tool = ("hls:zcu102", "vitis") if rng.random() < 0.65 else (ARRIA, "quartus")
    return gw.transform(model, pipeline, strategies.dataset(model)), f"{device}{{tool={tool},io={io},reuse={reuse}}}"


@pytest.mark.parametrize("seed", [1, 2, 9, *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(20, 50))])
def test_random_graphs(seed: int, tmp_path: Path) -> None:
    model, target = random_case(seed)
    try:
        assert wrong_samples(model, target, strategies.dataset(model, 48, seed), tmp_path / "art") == 0
    except UnsupportedOp as refused:
        pytest.skip(f"refused by name: {refused}")


def digits(*shape: int) -> Dataset:
    inputs = {"x": Input(reshape=shape, source="X", dtype="float32")}
    return Dataset.load(ROOT / "runtime" / "demo_data" / "digits.npz", inputs=inputs)


@pytest.mark.slow
@pytest.mark.parametrize("target", [PYNQ, "hls:de10-nano{tool=quartus}"])
@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize(("name", "shape"), [("digits_mlp", (64,)), ("digits_cnn", (1, 8, 8))])
def test_all_digits(name: str, shape: tuple[int, ...], bits: int, target: str, tmp_path: Path) -> None:
    data = digits(*shape)
    model = gw.transform(gw.load(ROOT / "runtime" / "demo_data" / f"{name}.onnx"), f"fuse,quantize{{bits={bits},grid=pow2}}", data)
    assert wrong_samples(model, target, data, tmp_path / "art") == 0


def mnist(find: Find) -> tuple[str, Dataset]:
    data = Dataset.load(find("mnist_test_10k.npz"), inputs={"Input3": Input(reshape=(1, 28, 28), dtype="float32")})
    return "mnist_cntk.onnx", data.take(500)


def anomaly(_: Find) -> tuple[str, Dataset]:
    rng = np.random.default_rng(0)
    return "tiny_ad01_fp32.onnx", Dataset({"input_1": (rng.normal(size=(100, 640)) * 8 - 20).astype(np.float32)})


def keywords(find: Find) -> tuple[str, Dataset]:
    prepared = Input(offset=83, scale=0.5847029, reshape=(49, 10, 1), dtype="float32")
    return "tiny_kws_dscnn_fp32.onnx", Dataset.load(find("kws01_mfcc_int8_1000.npz"), inputs={"input_1": prepared}).take(40)


def images(find: Find) -> tuple[str, Dataset]:
    return "tiny_ic_resnet8_fp32.onnx", Dataset.load(find("cifar10_recovered.npz"), inputs={"input_1": Input(dtype="float32")}).take(24)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize(
    ("case", "target"),
    [(mnist, PYNQ), (anomaly, "hls:zcu102"), (anomaly, f"{ARRIA}{{tool=quartus}}"), (keywords, PYNQ), (images, PYNQ)],
)
def test_real_models(
    case: Callable[[Find], tuple[str, Dataset]], target: str, shared_model: Find, shared_data: Find, tmp_path: Path
) -> None:
    name, data = case(shared_data)
    model = gw.transform(gw.load(shared_model(name)), "fuse,quantize{bits=8,grid=pow2}", data)
    assert wrong_samples(model, target, data, tmp_path / "art") == 0
