"""What training buys: fine-tuning under quantization, binary and ternary weights, distillation. Results are printed.

    python bench/compression_training.py digits --shared ../shared            # seconds
    python bench/compression_training.py low --shared ../shared --seeds 0     # MNIST: minutes a seed; each seed is kept in --out
    python bench/compression_training.py distil --shared ../shared --seeds 0,1,2,3,4
    python bench/compression_training.py report                               # mean, spread and paired intervals of what --out holds

MNIST: 5,000 images of the train part and the first 5,000 of the test part are trained on (a tenth held out, to choose the
epoch); the last 5,000 judge, once. Accuracy is the integer reference's, of the exact model that would be deployed. An interval of a
difference is paired: mean ± 1.96 standard errors over test samples, each averaged over seeds.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

import gatewright as gw
from gatewright.frontend.model import Model
from gatewright.frontend.reference import Reference
from gatewright.frontend.work import macs, weight_bytes
from gatewright.passes.base import PassContext
from gatewright.passes.pipeline import Pipeline
from gatewright.passes.training.distil import Distil

Array = NDArray[Any]

AUGMENT = "shift=2,rotate=12,zoom=0.1"


# ---- models and data -----------------------------------------------------------------------------------------------


def network(text: str, seed: int, **shapes: tuple[int, ...]) -> Model:
    """A graph in ONNX's text syntax with He-normal weights (names in w…) and zero biases (b…)."""
    proto = onnx.parser.parse_model(f'<ir_version: 10, opset_import: ["" : 21]> g {text}')
    rng = np.random.default_rng(seed)
    for name, shape in shapes.items():
        fan = math.prod(shape[1:]) if len(shape) == 4 else shape[0]
        array = np.zeros(shape) if name[0] == "b" else rng.normal(0, math.sqrt(2 / fan), shape)
        proto.graph.initializer.append(onnx.numpy_helper.from_array(array.astype(np.float32), name))
    return gw.load(proto, name="net")


def digits_mlp(seed: int) -> Model:
    """64-32-10."""
    return network(
        "(float[1,64] X) => (float[1,10] y) { h = Gemm(X, w1, b1) r = Relu(h) y = Gemm(r, w2, b2) }",
        seed, w1=(64, 32), b1=(32,), w2=(32, 10), b2=(10,),
    )  # fmt: skip


def mnist_cnn(seed: int, channels: int = 16) -> Model:
    """Two 5×5 convolutions with pooling, a hidden layer: about 117,000 weights at 16 channels."""
    c, h = channels, 4 * channels
    return network(
        "(float[1,1,28,28] x) => (float[1,10] y) { a = Conv<kernel_shape = [5, 5], pads = [2, 2, 2, 2]>(x, w1, b1) b = Relu(a) "
        "c = MaxPool<kernel_shape = [2, 2], strides = [2, 2]>(b) d = Conv<kernel_shape = [5, 5], pads = [2, 2, 2, 2]>(c, w2, b2) "
        "e = Relu(d) f = MaxPool<kernel_shape = [2, 2], strides = [2, 2]>(e) "
        f"s = Constant<value = int64[2] {{1, {2 * c * 49}}}>() g = Reshape(f, s) h = Gemm(g, w3, b3) i = Relu(h) y = Gemm(i, w4, b4) }}",
        seed, w1=(c, 1, 5, 5), b1=(c,), w2=(2 * c, c, 5, 5), b2=(2 * c,), w3=(2 * c * 49, h), b3=(h,), w4=(h, 10), b4=(10,),
    )  # fmt: skip


def mnist_mlp(seed: int) -> Model:
    """784-128-10: 101,770 weights."""
    return network(
        "(float[1,1,28,28] x) => (float[1,10] y) { s = Constant<value = int64[2] {1, 784}>() f = Reshape(x, s) h = Gemm(f, w1, b1) "
        "r = Relu(h) y = Gemm(r, w2, b2) }",
        seed, w1=(784, 128), b1=(128,), w2=(128, 10), b2=(10,),
    )  # fmt: skip


def digits(shared: Path) -> tuple[gw.Dataset, gw.Dataset]:
    prepared = {"X": gw.Input(scale=1 / 16)}
    path = shared / "data" / "sk_digits.npz"
    return gw.Dataset.load(path, prepared, part="train"), gw.Dataset.load(path, prepared)


def mnist(shared: Path) -> tuple[gw.Dataset, gw.Dataset]:
    five, ten = (np.load(shared / "data" / name) for name in ("mnist_train_5k.npz", "mnist_test_10k.npz"))
    images = np.concatenate([five["X"].reshape(-1, 28, 28), ten["X"]])
    labels = np.concatenate([five["y"], ten["y"]]).astype(np.int64)
    whole = gw.Dataset({"x": images}, labels, {"x": gw.Input(scale=1 / 255, reshape=(1, 28, 28))}, "mnist")
    return whole.slice(0, 10_000), whole.slice(10_000, 15_000)


# ---- measuring -----------------------------------------------------------------------------------------------------


def right(model: Model, data: gw.Dataset) -> Array:
    """Which samples the reference gets right."""
    reference, found = Reference(model), []
    for feeds in data.batches(model.inputs, 250):
        found.append(reference.run(feeds)[model.outputs[0].name].argmax(1))
    return np.asarray(np.concatenate(found) == data.labels)


@dataclass
class Bench:
    """One seed's work: models are kept in ``out`` and made once."""

    out: Path
    seed: int
    verbose: bool

    def progress(self, what: str, done: int | None = None, total: int | None = None) -> None:
        if self.verbose and "epoch" in what:
            print(f"    {what}", flush=True)

    def made(self, name: str, make: Callable[[PassContext], Model], data: gw.Dataset) -> Model:
        path = self.out / f"{name}-{self.seed}.onnx"
        if not path.exists():
            print(f"  {path.stem}", flush=True)
            model = make(PassContext(data=data, seed=self.seed, progress=self.progress, checkpoints=self.out / "checkpoints"))
            model.save(path)
        return gw.load(path)

    def through(self, name: str, model: Model, pipeline: str, data: gw.Dataset) -> Model:
        return self.made(name, lambda context: Pipeline.parse(pipeline).run(model, context), data)

    def judge(self, name: str, model: Model, test: gw.Dataset) -> None:
        """Kept beside the model: judged once."""
        path = self.out / f"{name}-{self.seed}.npz"
        if not path.exists():
            np.savez(path, right=right(model, test), bytes=weight_bytes(model), macs=macs(model))
        print(f"  {name:28s} seed {self.seed}: {np.load(path)['right'].mean():.4f}", flush=True)


def best_rounded(bench: Bench, name: str, model: Model, bits: int, train: gw.Dataset) -> Model:
    """Post-training quantization at its best: the scheme is chosen on training data."""
    sample = train.take(1500)
    schemes = [f"quantize{{bits={bits},grid={g},per=channel,range={r}}}" for g in ("affine", "symmetric") for r in ("minmax", "percentile")]

    def make(context: PassContext) -> Model:
        tried = [Pipeline.parse(text).run(model, PassContext(data=sample)) for text in schemes]
        return max(tried, key=lambda m: right(m, sample).mean())

    return bench.made(name, make, train)


def run_digits(bench: Bench, shared: Path) -> None:
    train, test = digits(shared)
    base = bench.through("digits", digits_mlp(bench.seed), "finetune{epochs=60,lr=0.005,l2=0.0001,validation=0.2}", train)
    bench.judge("digits", base, test)
    for bits in (4, 3, 2):
        rounded = best_rounded(bench, f"digits-ptq{bits}", base, bits, train)
        bench.judge(f"digits-ptq{bits}", rounded, test)
        for grid in ("affine", "pow2"):
            name = f"digits-qat{bits}-{grid}"
            text = f"qat{{bits={bits},per=channel,grid={grid},epochs=40,lr=0.003,batch=32,validation=0.2}}"
            bench.judge(name, bench.through(name, base, text, train), test)
    name = "digits-qat4-binary"
    text = "qat{bits=4,weight_bits=1,per=channel,epochs=60,lr=0.003,batch=32,validation=0.2}"
    bench.judge(name, bench.through(name, base, text, train), test)


def run_low(bench: Bench, shared: Path) -> None:
    """MNIST, augmented: 4 bits trained against rounded, then ternary (2-bit) and binary (1-bit) weights on 4-bit activations."""
    train, test = mnist(shared)
    base = bench.through("cnn", mnist_cnn(bench.seed), f"finetune{{epochs=10,lr=0.002,{AUGMENT}}}", train)
    bench.judge("cnn", base, test)
    bench.judge("cnn-ptq4", best_rounded(bench, "cnn-ptq4", base, 4, train), test)
    # The same epochs in float first, so that what is compared is the rounding; then rounded with what repairs it.
    longer = bench.through("cnn-longer", base, f"finetune{{epochs=4,lr=0.001,{AUGMENT}}}", train)
    bench.judge("cnn-longer", longer, test)
    bench.judge("cnn-longer-ptq4", best_rounded(bench, "cnn-longer-ptq4", longer, 4, train), test)
    repaired = "adaround{bits=4},quantize{bits=4,per=channel,range=percentile,bias_correction=true}"
    bench.judge("cnn-longer-adaround4", bench.through("cnn-longer-adaround4", longer, repaired, train.take(1500)), test)
    for name, options in (("cnn-qat4", "epochs=4"), ("cnn-w2", "weight_bits=2,epochs=6"), ("cnn-w1", "weight_bits=1,epochs=6")):
        text = f"qat{{bits=4,per=channel,lr=0.001,{options},{AUGMENT}}}"
        bench.judge(name, bench.through(name, base, text, train), test)


def run_distil(bench: Bench, shared: Path) -> None:
    """A multilayer perceptron with under a quarter of the teacher's weights, taught by a convolutional network or by labels alone."""
    train, test = mnist(shared)
    first = Bench(bench.out, 0, bench.verbose)
    teacher = first.through("teacher", mnist_cnn(100, 32), f"finetune{{epochs=8,lr=0.002,{AUGMENT}}}", train)
    first.judge("teacher", teacher, test)
    for name, taught in (("student-labels", {"alpha": 0.0}), ("student-distilled", {"alpha": 0.9, "temperature": 4.0})):
        lesson = Distil(epochs=25, lr=0.002, **taught)

        def make(context: PassContext, lesson: Distil = lesson) -> Model:
            return lesson.taught(mnist_mlp(bench.seed), [teacher], context).model

        bench.judge(name, bench.made(name, make, train), test)


def run_copies(bench: Bench, shared: Path) -> None:
    """A student of half the channels (a quarter of the weights), drawn afresh: taught by the network, or by the labels alone.

    Both see the images as they are, or both see them augmented as the teacher did; with fewer views there is more to be told.
    """
    train, test = mnist(shared)
    first = Bench(bench.out, 0, bench.verbose)
    teacher = first.through("original", mnist_cnn(100), f"finetune{{epochs=16,lr=0.002,{AUGMENT}}}", train)
    first.judge("original", teacher, test)
    common: dict[str, Any] = {"width": 0.5, "init": "random", "epochs": 10, "lr": 0.003}
    views: dict[str, dict[str, Any]] = {"": {}, "-augmented": {"shift": 2, "rotate": 12.0, "zoom": 0.1}}
    for view, seen in views.items():
        for name, taught in (("copy-labels", {"alpha": 0.0}), ("copy-distilled", {"alpha": 0.9, "temperature": 4.0})):
            lesson = Distil(**common, **seen, **taught)
            student = bench.made(name + view, lambda context, lesson=lesson: lesson.taught(teacher, [teacher], context).model, train)
            bench.judge(name + view, student, test)


# ---- the report ----------------------------------------------------------------------------------------------------

PAIRS = (
    ("digits-ptq4", "digits-qat4-affine"), ("digits-ptq3", "digits-qat3-affine"), ("digits-ptq2", "digits-qat2-affine"),
    ("cnn-ptq4", "cnn-qat4"), ("cnn-longer-ptq4", "cnn-qat4"), ("cnn-longer-adaround4", "cnn-qat4"), ("cnn", "cnn-qat4"),
    ("cnn", "cnn-w2"), ("cnn", "cnn-w1"), ("student-labels", "student-distilled"),
    ("copy-labels", "copy-distilled"), ("copy-labels-augmented", "copy-distilled-augmented"),
)  # fmt: skip


def report(out: Path) -> None:
    held: dict[str, dict[int, Mapping[str, Array]]] = {}
    for path in sorted(out.glob("*.npz")):
        name, _, seed = path.stem.rpartition("-")
        held.setdefault(name, {})[int(seed)] = np.load(path)
    rows = {}
    print(f"{'model':28s} {'seeds':>5s} {'accuracy':>9s} {'spread':>7s} {'weight bytes':>13s} {'MACs':>10s}")
    for name, seeds in held.items():
        each = np.array([run["right"].mean() for run in seeds.values()])
        spread = float(each.std(ddof=1)) if len(each) > 1 else 0.0
        first = next(iter(seeds.values()))
        rows[name] = {"seeds": sorted(seeds), "accuracy": float(each.mean()), "spread": spread, "each": each.round(4).tolist()}
        print(f"{name:28s} {len(each):5d} {each.mean():9.4f} {spread:7.4f} {int(first['bytes']):13,d} {int(first['macs']):10,d}")
    print(f"\n{'difference':50s} {'points':>7s}  95 % interval")
    for a, b in PAIRS:
        common = sorted(set(held.get(a, {})) & set(held.get(b, {})))
        if common:
            each = np.mean([held[b][s]["right"].astype(float) - held[a][s]["right"] for s in common], axis=0) * 100
            half = 1.96 * each.std(ddof=1) / math.sqrt(len(each))
            rows[f"{b} - {a}"] = {"points": each.mean(), "interval": [each.mean() - half, each.mean() + half], "seeds": common}
            told = f"{b} against {a}, {len(common)} seeds"
            print(f"{told:50s} {each.mean():+7.2f}  {each.mean() - half:+.2f} … {each.mean() + half:+.2f}")
    (out / "report.json").write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


EXPERIMENTS: dict[str, Callable[[Bench, Path], None]] = {"digits": run_digits, "low": run_low, "distil": run_distil, "copies": run_copies}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("experiment", choices=[*EXPERIMENTS, "report"])
    parser.add_argument("--shared", type=Path, default=Path("../shared"), help="folder with data/")
    parser.add_argument("--out", type=Path, default=Path("build/compression_training"))
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--verbose", action="store_true")
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    if given.experiment == "report":
        report(given.out)
        return
    import torch

    torch.set_num_threads(given.threads)
    for seed in map(int, given.seeds.split(",")):
        EXPERIMENTS[given.experiment](Bench(given.out, seed, given.verbose), given.shared)
    report(given.out)


if __name__ == "__main__":
    main()
