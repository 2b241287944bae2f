"""``optimize`` on the digits: does the front hold points that dominate uniform 8-bit quantization?

    python bench/optimize_digits.py [--target cpu --target hls:pynq-z2 --target rtl:icebreaker] [--model digits_mlp] [--trials 40] -o DIR

The search sees the training part only (3 folds). The model was trained on it, so each fold begins from a network learned afresh on
the others (seen=True). The finalists are judged on the 540 test digits, which choose nothing: their difference to uniform 8-bit comes
with its 95 % interval, paired by sample. Run it again and it goes on from what it finds in DIR.
"""

from __future__ import annotations

import argparse
import time
from importlib.resources import files
from pathlib import Path

import gatewright as gw
from gatewright.frontend.reference import Reference
from gatewright.runtime.demo import digits
from gatewright.runtime.report import show


def accuracy(model: gw.Model, data: gw.Dataset) -> float:
    scores = Reference(model).run(data.feeds(model.inputs))[model.outputs[0].name]
    return float((scores.argmax(axis=1) == data.labels).mean())


def study(name: str, target: str, words: argparse.Namespace) -> None:
    shape = None if name == "digits_mlp" else (1, 8, 8)
    train, test = digits(shape, part="train"), digits(shape)
    model = gw.load(str(files("gatewright.runtime").joinpath("demo_data", f"{name}.onnx")), name=name)
    place = words.out / f"{name}-{target.replace(':', '-')}"
    started = time.monotonic()
    front = gw.optimize(
        model, target, train, seen=True, max_drop=words.max_drop, trials=words.trials, budget_s=1e6, finalists=words.finalists,
        test=test, out=place,
    )  # fmt: skip
    cost = front.objectives[0]
    assert front.uniform is not None
    uniform = gw.transform(model, front.uniform.pipeline, train)
    check = gw.check(uniform, target)
    price = check.figures[cost]
    fits = "" if check.ok else f", does not fit: {'; '.join(check.shortfalls)}"
    print(f"\n{name} on {target}: test accuracy float {accuracy(model, test):.4f}, uniform 8-bit {accuracy(uniform, test):.4f}")
    print(f"uniform 8-bit: {cost} {show(price)} ({price.source}){fits}")
    seconds = sum(one.seconds for one in front.tried)
    wall = time.monotonic() - started
    print(f"{len(front.tried)} tried in {seconds:.0f} s ({wall:.0f} s this time, all included), baseline of the folds {front.baseline:.4f}")
    print(f"{sum(one.problem is not None for one in front.tried)} impossible; {front.verdict}")
    print(f"{front.reason}")
    for point in front.points:
        found = point.costs[cost]
        paid = f"{cost} {show(found):>10} {found.value / price.value:6.2f} of uniform"
        print(f"  folds {point.metric:.4f} ± {point.spread:.4f}  {paid}  {', '.join(front.marks(point))}")
        print(f"      {point.pipeline}")
    for one in front.finalists:
        low, high = one.interval
        costs = ", ".join(f"{key} {show(value)} ({value.source})" for key, value in one.costs.items() if value.value)
        latency = "" if one.latency is None else f", latency {show(one.latency)} ({one.latency.source})"
        against = f"to uniform {one.difference:+.4f} [{low:+.4f}, {high:+.4f}]"
        print(f"  {one.name}: test {one.metric.value:.4f} ({one.metric.source}), {against}{latency}")
        print(f"      {one.pipeline}\n      {one.exactness}; {costs}", flush=True)
    assert front.report is not None
    for row in front.report.rows:
        if row.latency is not None and row.latency.source == "measured":
            print(f"  {row.model} on {row.target}: latency {show(row.latency)} (measured)", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--target", action="append")
    parser.add_argument("--model", default="digits_mlp")
    parser.add_argument("--trials", type=int, default=40)
    parser.add_argument("--finalists", type=int, default=4)
    parser.add_argument("--max-drop", type=float, default=0.01)
    parser.add_argument("-o", "--out", type=Path, required=True)
    words = parser.parse_args()
    for target in words.target or ["cpu", "hls:pynq-z2", "rtl:icebreaker"]:
        study(words.model, target, words)


if __name__ == "__main__":
    main()
