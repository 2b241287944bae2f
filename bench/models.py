"""The models of the CPU benchmarks: where each comes from, how its inputs are filled, what it is calibrated with.

onnx's own ``light_*`` networks have no weights (every tensor is one constant, made by a ConstantOfShape node): all layers would
share them and all outputs would be equal, so they get random ones after loading. The small real models are read from a folder
beside the checkout; a model that is not there is named and left out.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import transformers
from numpy.typing import NDArray

import gatewright as gw
from gatewright.frontend.limits import Limits
from gatewright.frontend.reference import Reference
from gatewright.runtime.bench import random_feeds

Array = NDArray[Any]


@dataclass(frozen=True)
class Subject:
    """One model to benchmark."""

    name: str
    load: Callable[[Path], gw.Model]
    """From the folder with models and data; raises GatewrightError or OSError where the file is not there."""
    prepare: Mapping[str, gw.Input] = field(default_factory=dict)
    data: str | None = None
    """Real samples, a file in the data folder; else seeded random numbers."""
    int8: bool = True
    """Part of the int8 comparison."""


def random_weights(model: gw.Model, seed: int = 0, spread: float = 3.0) -> gw.Model:
    """Every float constant drawn anew, by what reads it: activations keep their size through all layers.

    Weights: normal, variance 2 / fan-in (He et al., ICCV 2015). Scales: around 1; biases and means: around 0; variances: 0.5 to 1.5.
    The last weights are then scaled so that the logits have a standard deviation of ``spread``: a softmax of huge logits would be
    0 or 1, and hide every error.
    """
    rng = np.random.default_rng(seed)
    edited = model.copy_ir()
    for value in edited.graph.initializers.values():
        constant, uses = value.const_value, value.uses()
        if constant is None or constant.dtype != ir.DataType.FLOAT or not uses:
            continue
        use = uses[0]
        value.const_value = ir.tensor(_drawn(rng, constant.shape.numpy(), use.node.op_type, use.idx), name=value.name)
    drawn = model.with_ir(edited)
    last = [node for node in edited.graph if node.op_type in ("Conv", "Gemm", "MatMul")][-1]
    logits = Reference(drawn).run(random_feeds(drawn.inputs, seed), trace=True)[last.outputs[0].name or ""]
    for value in last.inputs[1:]:
        assert value is not None
        assert value.const_value is not None
        scaled = value.const_value.numpy() * np.float32(spread / logits.std())
        value.const_value = ir.tensor(scaled.astype(np.float32), name=value.name)
    return model.with_ir(edited)


def _drawn(rng: np.random.Generator, shape: tuple[int, ...], op: str, index: int) -> Array:
    if op in ("Conv", "Gemm", "MatMul") and index == 1:
        fan_in = shape[0] if op == "MatMul" else int(np.prod(shape[1:]))
        return rng.normal(0, np.sqrt(2 / fan_in), shape).astype(np.float32)
    if op == "Mul" or (op == "BatchNormalization" and index == 1):
        return rng.normal(1, 0.1, shape).astype(np.float32)
    if op == "BatchNormalization" and index == 4:
        return rng.uniform(0.5, 1.5, shape).astype(np.float32)
    return rng.normal(0, 0.05, shape).astype(np.float32)


def light(name: str) -> Callable[[Path], gw.Model]:
    def load(_: Path) -> gw.Model:
        folder = Path(onnx.__file__).parent / "backend" / "test" / "data" / "light"
        # VGG-19's first dense layer alone is 400 MB: beyond what a load computes beforehand unless it is told to.
        return random_weights(gw.load(folder / f"{name}.onnx", name=name, limits=Limits(folded_bytes=1 << 30)))

    return load


def _shared(name: str, **dims: int) -> Callable[[Path], gw.Model]:
    return lambda shared: gw.load(shared / "models" / f"{name}.onnx", dims=dims, name=name)


def _transformer(make: Callable[[], onnx.ModelProto], name: str) -> Callable[[Path], gw.Model]:
    return lambda _: gw.load(make(), name=name)


_LIGHT = ("light_squeezenet", "light_resnet50", "light_densenet121", "light_shufflenet", "light_inception_v2")
SUBJECTS: tuple[Subject, ...] = (
    *(Subject(name, light(name)) for name in _LIGHT),
    Subject("tiny_vww_fp32", _shared("tiny_vww_fp32")),
    Subject("tiny_ic_resnet8_fp32", _shared("tiny_ic_resnet8_fp32"), data="cifar10_recovered.npz"),
    Subject(
        "tiny_kws_dscnn_fp32", _shared("tiny_kws_dscnn_fp32"),
        {"input_1": gw.Input(offset=83, scale=0.5847029, reshape=(49, 10, 1))}, "kws01_mfcc_int8_1000.npz",
    ),
    Subject("tiny_ad01_fp32", _shared("tiny_ad01_fp32")),
    Subject("magika_v3_3", _shared("magika_v3_3")),
    Subject("ppocrv4_det", _shared("ppocrv4_det", **{"p2o.DynamicDimension.1": 640, "p2o.DynamicDimension.2": 640})),
    Subject("doc_orientation", _shared("doc_orientation")),
    Subject("basic_pitch", _shared("basic_pitch")),
    Subject("speech_embedding", _shared("speech_embedding")),
    Subject("bert", _transformer(transformers.bert, "bert")),
    Subject("gpt", _transformer(transformers.gpt, "gpt")),
)  # fmt: skip


def subjects(names: str | None) -> list[Subject]:
    """All, or those named in a list with commas; part of a name is enough."""
    wanted = [name.strip() for name in names.split(",") if name.strip()] if names else []
    found = [subject for subject in SUBJECTS if not wanted or any(name in subject.name for name in wanted)]
    unknown = [name for name in wanted if not any(name in subject.name for subject in SUBJECTS)]
    if unknown:
        raise SystemExit(f"no such model: {', '.join(unknown)}; there are {', '.join(s.name for s in SUBJECTS)}")
    return found


def samples(subject: Subject, model: gw.Model, shared: Path, count: int = 16, seed: int = 0) -> gw.Dataset:
    """``count`` samples: the first of its real data where that is there, else random ones."""
    file = shared / "data" / subject.data if subject.data else None
    if file is not None and file.exists():
        prepared = subject.prepare or {model.inputs[0].name: gw.Input()}
        return gw.Dataset.load(file, inputs=prepared).take(count)
    return gw.Dataset(_plausible(random_feeds(model.inputs, seed, samples=count)), name="random numbers")


def _plausible(feeds: dict[str, Array]) -> dict[str, Array]:
    """A mask lets everything through: with fractions of it the softmax would see one token only."""
    return {name: np.ones_like(array) if name.endswith("mask") else array for name, array in feeds.items()}
