"""Rounding without training: what each method keeps of the accuracy. Results are printed; every row is kept in --out and made once.

    python bench/quantization.py kws --shared ../shared               # tiny_kws_dscnn: int8, 4-bit weights, mixed bits; a minute a seed
    python bench/quantization.py cle --shared ../shared               # its channels pulled apart, one scale per tensor, equalized again
    python bench/quantization.py mnist --shared ../shared             # mnist_cntk and two networks trained here (needs torch)
    python bench/quantization.py report                               # mean over seeds, drop against float with a paired interval

KWS: 200 samples calibrate, the other 800 judge; the seed draws them. MNIST: 500 images of the 10,000 that train calibrate, the last
5,000 of the test part judge. Accuracy is the integer reference's. A kill loses at most one row: run the same line again.
"""

from __future__ import annotations

import argparse
import math
from collections import defaultdict
from pathlib import Path

import numpy as np
from compression_training import AUGMENT, Array, Bench, mnist, mnist_cnn, mnist_mlp
from rich.console import Console
from rich.table import Table

import gatewright as gw
from gatewright.frontend.edit import Editor
from gatewright.passes.chains import pairs

INT8 = {
    "int8": "quantize{bits=8}",
    "int8-channel": "quantize{bits=8,per=channel}",
    "int8-mse": "quantize{bits=8,per=channel,range=mse}",
    "int8-entropy": "quantize{bits=8,per=channel,range=entropy}",
    "int8-pow2-mse": "quantize{bits=8,grid=pow2,per=channel,range=mse}",
}
WEIGHTS = {
    "w4-minmax": "quantize{weight_bits=4,per=channel}",
    "w4-mse": "quantize{weight_bits=4,per=channel,range=mse}",
    "w4-mse-bias": "quantize{weight_bits=4,per=channel,range=mse,bias_correction=true}",
    "w4-adaround": "adaround,quantize",
    "w4-gptq": "gptq,quantize",
    "w4-adaround-bias": "adaround,quantize{bias_correction=true}",
    "w4-gptq-bias": "gptq,quantize{bias_correction=true}",
    "w3-mse": "quantize{weight_bits=3,per=channel,range=mse}",
    "w3-adaround-bias": "adaround{bits=3},quantize{bias_correction=true}",
    "w3-gptq-bias": "gptq{bits=3},quantize{bias_correction=true}",
    "mixed-5": "mixed{average_bits=5,per=channel,range=mse,bias_correction=true}",
}
TENSOR = {
    "int8": "quantize{bits=8}",
    "equalized-int8": "equalize,quantize{bits=8}",
    "equalized-absorbed-int8": "equalize,absorb,quantize{bits=8}",
    "w4": "quantize{weight_bits=4}",
    "equalized-w4": "equalize,quantize{weight_bits=4}",
}
OCTAVES = 4.0
"""How far channels are pulled apart, either way."""


def row(bench: Bench, name: str, model: gw.Model, pipeline: str, calibration: gw.Dataset, test: gw.Dataset) -> None:
    """One pipeline, judged once; nothing is done where its result is there."""
    if not (bench.out / f"{name}-{bench.seed}.npz").exists():
        bench.judge(name, gw.transform(model, pipeline, data=calibration), test)


def keywords(shared: Path, seed: int) -> tuple[gw.Model, gw.Dataset, gw.Dataset]:
    model = gw.load(shared / "models/tiny_kws_dscnn_fp32.onnx")
    prepared = {model.inputs[0].name: gw.Input(offset=83, scale=0.5847029, reshape=(49, 10, 1))}
    data = gw.Dataset.load(shared / "data/kws01_mfcc_int8_1000.npz", inputs=prepared).shuffled(seed)
    return gw.transform(model, "fuse"), data.slice(0, 200), data.slice(200, 1000)


def run_kws(bench: Bench, shared: Path) -> None:
    model, calibration, test = keywords(shared, bench.seed)
    row(bench, "kws-float", model, "fuse", calibration, test)
    for name, pipeline in {**INT8, **WEIGHTS}.items():
        row(bench, f"kws-{name}", model, pipeline, calibration, test)


def imbalanced(model: gw.Model, seed: int) -> gw.Model:
    """The same function with the channels between layers up to 2^±OCTAVES apart: what training without normalization leaves behind."""
    edited = model.copy_ir()
    edit, random = Editor(edited), np.random.default_rng(seed)
    for pair in pairs(edited.graph):
        s = 2.0 ** random.uniform(-OCTAVES, OCTAVES, pair.first.outputs)
        pair.first.write_weight(edit, pair.first.scaled_outputs(pair.first.weight, s))
        pair.first.write_bias(edit, pair.first.read_bias() * s)
        pair.second.write_weight(edit, pair.second.scaled_inputs(pair.second.weight, 1 / s))
    return model.with_ir(edited)


def run_cle(bench: Bench, shared: Path) -> None:
    model, calibration, test = keywords(shared, bench.seed)
    for copy, source in (("kws", model), ("kws-imbalanced", imbalanced(model, bench.seed))):
        row(bench, f"{copy}-float", source, "fuse", calibration, test)
        for name, pipeline in TENSOR.items():
            row(bench, f"{copy}-tensor-{name}", source, pipeline, calibration, test)


def run_mnist(bench: Bench, shared: Path) -> None:
    train, test = mnist(shared)
    calibration = train.shuffled(bench.seed).take(500)
    images = {"Input3": gw.Input(reshape=(1, 28, 28))}
    known, judged = (gw.Dataset({"Input3": d.arrays["x"]}, d.labels, images, "mnist") for d in (calibration, test))
    models = [("mnist-cntk", gw.load(shared / "models/mnist_cntk.onnx"), known, judged)]
    for name, fresh, epochs in (("mnist-mlp", mnist_mlp(bench.seed), 20), ("mnist-cnn", mnist_cnn(bench.seed), 10)):
        trained = bench.through(f"{name}-trained", fresh, f"finetune{{epochs={epochs},lr=0.002,{AUGMENT}}}", train)
        models.append((name, trained, calibration, test))
    for name, model, known, judged in models:
        model = gw.transform(model, "fuse")
        row(bench, f"{name}-float", model, "fuse", known, judged)
        for way, pipeline in {**INT8, **WEIGHTS}.items():
            row(bench, f"{name}-{way}", model, pipeline, known, judged)


def report(out: Path) -> None:
    """Accuracy by row, and the drop against the row of the same network that ends in -float, in points."""
    found: dict[str, dict[int, Array]] = defaultdict(dict)
    sizes: dict[str, int] = {}
    for path in sorted(out.glob("*.npz")):
        name, _, seed = path.stem.rpartition("-")
        loaded = np.load(path)
        found[name][int(seed)], sizes[name] = loaded["right"], int(loaded["bytes"])
    table = Table("row", "seeds", "accuracy", "spread", "drop, points", "95 % interval", "weight bytes")
    for name, by_seed in found.items():
        base = max((f for f in found if f.endswith("-float") and name.startswith(f.removesuffix("float"))), key=len, default=None)
        scores = [float(right.mean()) for right in by_seed.values()]
        drop = interval = ""
        shared = sorted(set(by_seed) & set(found[base])) if base and base != name else []
        if base and shared:
            differences = np.concatenate([found[base][s].astype(float) - by_seed[s] for s in shared]) * 100
            half = 1.96 * float(differences.std()) / math.sqrt(len(differences))
            drop, interval = f"{differences.mean():.2f}", f"{differences.mean() - half:.2f} … {differences.mean() + half:.2f}"
        spread = f"{min(scores):.4f} … {max(scores):.4f}"
        table.add_row(name, str(len(scores)), f"{np.mean(scores):.4f}", spread, drop, interval, f"{sizes[name]:,}")
    Console(width=160).print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("what", choices=("kws", "cle", "mnist", "report"))
    parser.add_argument("--shared", type=Path, default=Path("../shared"))
    parser.add_argument("--out", type=Path, default=Path("build/bench_quantization"))
    parser.add_argument("--seeds", default="0,1,2")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    if arguments.what == "report":
        report(arguments.out)
        return
    work = {"kws": run_kws, "cle": run_cle, "mnist": run_mnist}[arguments.what]
    for seed in map(int, arguments.seeds.split(",")):
        work(Bench(arguments.out, seed, verbose=False), arguments.shared)
    report(arguments.out)


if __name__ == "__main__":
    main()
