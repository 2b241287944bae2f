"""``optimize`` on the digits: does the front hold points that dominate uniform 8-bit quantization? And does a killed study go on?

    python bench/optimize_digits.py [--target cpu --target hls:pynq-z2 --target rtl:icebreaker] [--model digits_mlp] [--trials 60] -o DIR

The search sees the training part only (3 folds); the figures printed are those of the 540 test digits, which chose nothing.
A point dominates if it is no less accurate on them and its cost on the device (the target's estimate) is lower. Run it again
and it goes on from what it finds in DIR.
"""

from __future__ import annotations

import argparse
from importlib.resources import files
from pathlib import Path

import gatewright as gw
from gatewright.frontend.reference import Reference
from gatewright.runtime.demo import digits

UNIFORM = "fuse,quantize{bits=8,grid=pow2}"


def accuracy(model: gw.Model, data: gw.Dataset) -> float:
    scores = Reference(model).run(data.feeds(model.inputs))[model.outputs[0].name]
    return float((scores.argmax(axis=1) == data.labels).mean())


def study(name: str, target: str, trials: int, folder: Path) -> None:
    shape = None if name == "digits_mlp" else (1, 8, 8)
    train, test = digits(shape, part="train"), digits(shape)
    model = gw.load(str(files("gatewright.runtime").joinpath("demo_data", f"{name}.onnx")), name=name)
    place = folder / f"{name}-{target.replace(':', '-')}"
    methods = ("prune", "finetune", "quantize", "qat")
    front = gw.optimize(model, target, train, methods=methods, trials=trials, budget_s=1e6, finalists=1, test=test, out=place)
    cost = front.objectives[0]
    uniform = gw.transform(model, UNIFORM, train)
    check = gw.check(uniform, target)
    base, price = accuracy(uniform, test), check.figures[cost].value
    fits = "" if check.ok else f", does not fit: {'; '.join(check.shortfalls)}"
    print(f"\n{name} on {target}: float {accuracy(model, test):.4f}; uniform 8-bit {base:.4f}, {cost} {price:.4g} (estimated){fits}")
    print(f"{len(front.tried)} tried, {sum(one.problem is not None for one in front.tried)} impossible; front of {len(front.points)}:")
    for point in front.points:
        found, paid = accuracy(gw.transform(model, point.pipeline, train), test), point.costs[cost].value
        mark = "dominates" if found >= base and paid < price else ""
        chosen = "chosen" if point is front.chosen else ""
        print(f"  {found:.4f}  {cost} {paid:10.4g}  {paid / price:6.2f} of uniform  {mark:9} {chosen:6} {point.pipeline}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--target", action="append")
    parser.add_argument("--model", default="digits_mlp")
    parser.add_argument("--trials", type=int, default=60)
    parser.add_argument("-o", "--out", type=Path, required=True)
    words = parser.parse_args()
    for target in words.target or ["cpu", "hls:pynq-z2", "rtl:icebreaker"]:
        study(words.model, target, words.trials, words.out)


if __name__ == "__main__":
    main()
