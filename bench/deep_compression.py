"""Deep Compression of the MNIST perceptron 300-100: pruned in steps, clustered, Huffman-coded; bytes and accuracy after each stage.

    python bench/deep_compression.py choose --shared ../shared     # amount and bits, by 3-fold cross-validation on the training data
    python bench/deep_compression.py final --shared ../shared      # the chosen ones, 3 seeds, judged once on held-out data
    python bench/deep_compression.py report

Every model is kept in --out and made once, every training goes on from its last epoch: stop it whenever you like (--limit ends it
after so many seconds) and call it again. Data and the paired interval: as in compression_training.py. The figure to beat is that of
Han, Mao, Dally 2016 (arXiv:1510.00149, table 1): 1,070 kB to 27 kB, 40 times, at no loss.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from pathlib import Path

import numpy as np
from compression_training import AUGMENT, Bench, mnist, network, right

import gatewright as gw
from gatewright.frontend import coded
from gatewright.frontend.model import Model

AMOUNTS = (0.92, 0.95, 0.97)
BITS = (3, 4, 5)
FOLDS = 3
DROP = 0.003
"""Of the mean over folds: below the 0.005 that is allowed, since the choice itself is optimistic."""
EPOCHS = {"dense": 24, "step": 6, "last": 16, "shared": 4}


def mlp(seed: int) -> Model:
    """784-300-100-10: 266,610 weights and biases."""
    return network(
        "(float[1,1,28,28] x) => (float[1,10] y) { s = Constant<value = int64[2] {1, 784}>() f = Reshape(x, s) h = Gemm(f, w1, b1) "
        "i = Relu(h) j = Gemm(i, w2, b2) k = Relu(j) y = Gemm(k, w3, b3) }",
        seed, w1=(784, 300), b1=(300,), w2=(300, 100), b2=(100,), w3=(100, 10), b3=(10,),
    )  # fmt: skip


class Stopped(Exception):
    """The time that --limit allows is spent."""


class Clock(Bench):
    """Begins no training after ``ends``."""

    ends = math.inf

    def made(self, name, make, data):  # type: ignore[no-untyped-def]
        if time.monotonic() > self.ends and not (self.out / f"{name}-{self.seed}.onnx").exists():
            raise Stopped
        return super().made(name, make, data)


def stages(bench: Bench, prefix: str, train: gw.Dataset, amounts: tuple[float, ...], bits: tuple[int, ...]) -> dict[str, Model]:
    """The dense model, and for each amount the pruned and the clustered ones."""
    dense = bench.through(f"{prefix}dense", mlp(bench.seed), f"finetune{{epochs={EPOCHS['dense']},lr=0.002,batch=128,{AUGMENT}}}", train)
    found = {"dense": dense}
    for amount in amounts:
        steps = f"finetune{{epochs={EPOCHS['step']},lr=0.001,batch=128,{AUGMENT}}}"
        text = f"gradual{{prune=prune{{amount={amount},scope=global,exclude=y}},finetune={steps},steps=6}},"
        text += f"prune{{amount=0.6,exclude=h|j}},finetune{{epochs={EPOCHS['last']},lr=0.001,batch=128,{AUGMENT}}}"
        pruned = bench.through(f"{prefix}pruned{amount}", dense, text, train)
        found[f"pruned{amount}"] = pruned
        for b in bits:
            shared = f"cluster{{bits={b},finetune=finetune{{epochs={EPOCHS['shared']},lr=0.0003,batch=128,{AUGMENT}}}}}"
            found[f"clustered{amount}-{b}"] = bench.through(f"{prefix}clustered{amount}-{b}", pruned, shared, train)
    return found


def choose(bench: Bench, train: gw.Dataset) -> None:
    """Accuracy and bytes of every candidate on every fold; the smallest within the drop is kept in choice.json."""
    rows: dict[str, list[tuple[float, int]]] = {}
    for fold, (learned, held_out) in enumerate(train.split(FOLDS)):
        models = stages(bench, f"fold{fold}-", learned, AMOUNTS, BITS)
        dense = right(models["dense"], held_out).mean()
        for name, model in models.items():
            rows.setdefault(name, []).append((float(dense - right(model, held_out).mean()), len(coded.encode(model)[0])))
    candidates = {name: np.mean(found, axis=0).tolist() for name, found in rows.items() if name.startswith("clustered")}
    for name, (drop, size) in candidates.items():
        print(f"{name:20s} drop {100 * drop:+.2f} points, {size:,.0f} bytes")
    within = [name for name, (drop, _) in candidates.items() if drop <= DROP] or [min(candidates, key=lambda n: candidates[n][0])]
    best = min(within, key=lambda name: candidates[name][1])
    (bench.out / "choice.json").write_text(json.dumps({"best": best, "candidates": candidates}, indent=1) + "\n", encoding="utf-8")
    print(f"chosen: {best}")


def final(bench: Bench, train: gw.Dataset, test: gw.Dataset) -> None:
    """The chosen candidate on all training data, judged once."""
    path = bench.out / "choice.json"
    best = json.loads(path.read_text(encoding="utf-8"))["best"] if path.exists() else f"clustered{AMOUNTS[1]}-{BITS[1]}"
    amount, bits = best.removeprefix("clustered").split("-")
    models = stages(bench, "", train, (float(amount),), (int(bits),))
    for stage, name in (("dense", "dense"), ("pruned", f"pruned{amount}"), ("clustered", best)):
        target = bench.out / f"{stage}-{bench.seed}.npz"
        if not target.exists():
            file = bench.out / f"{stage}-{bench.seed}.gwz"
            size = gw.save_compressed(models[name], file)
            assert gw.load(file).digest == models[name].digest
            np.savez(target, right=right(models[name], test), bytes=size.bytes, onnx=size.onnx_bytes, zeros=_zeros(models[name]))


def report(out: Path) -> None:
    """Mean and spread over seeds, the ratio to the dense ONNX file, and the paired interval of the drop."""
    rows = {}
    print(f"{'stage':12s} {'accuracy':>9s} {'spread':>7s} {'coded bytes':>12s} {'smaller':>8s} {'zeros':>6s}   drop in points, 95 %")
    held = {s: [np.load(p) for p in sorted(out.glob(f"{s}-*.npz"))] for s in ("dense", "pruned", "clustered")}
    for stage, runs in held.items():
        if not runs:
            continue
        accuracy = np.array([run["right"].mean() for run in runs])
        size, whole = np.mean([int(r["bytes"]) for r in runs]), np.mean([int(r["onnx"]) for r in held["dense"]])
        lost = np.mean([d["right"].astype(float) - r["right"] for d, r in zip(held["dense"], runs, strict=False)], axis=0) * 100
        half = 1.96 * lost.std(ddof=1) / math.sqrt(len(lost))
        spread = float(accuracy.std(ddof=1)) if len(runs) > 1 else 0.0
        zeros = float(np.mean([float(r["zeros"]) for r in runs]))
        print(
            f"{stage:12s} {accuracy.mean():9.4f} {spread:7.4f} {size:12,.0f} {whole / size:7.1f}× {zeros:6.3f}   "
            f"{lost.mean():+.2f} ({lost.mean() - half:+.2f} … {lost.mean() + half:+.2f})"
        )
        rows[stage] = {
            "accuracy": accuracy.round(4).tolist(), "bytes": size, "ratio": whole / size, "zeros": zeros,
            "drop_points": lost.mean(), "interval": [lost.mean() - half, lost.mean() + half],
        }  # fmt: skip
    (out / "report.json").write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


def _zeros(model: Model) -> float:
    weights = [v.const_value.numpy() for v in model.graph.initializers.values() if v.const_value is not None and v.const_value.size > 1000]
    return float(sum((w == 0).sum() for w in weights) / sum(w.size for w in weights))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("step", choices=["choose", "final", "report"])
    parser.add_argument("--shared", type=Path, default=Path("../shared"), help="folder with data/")
    parser.add_argument("--out", type=Path, default=Path("build/deep_compression"))
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--limit", type=float, default=math.inf, help="seconds after which no training is begun")
    parser.add_argument("--verbose", action="store_true")
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    if given.step != "report":
        import torch

        torch.set_num_threads(1)
        train, test = mnist(given.shared)
        Clock.ends = time.monotonic() + given.limit
        try:
            if given.step == "choose":
                choose(Clock(given.out, 0, given.verbose), train)
            else:
                for seed in map(int, given.seeds.split(",")):
                    final(Clock(given.out, seed, given.verbose), train, test)
        except Stopped:
            print("the time is spent; call it again to go on")
    report(given.out)


if __name__ == "__main__":
    main()
