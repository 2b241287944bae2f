"""Every rule of pruning against chance, with and without fine-tuning; and half of the multiply-accumulates removed, timed on the CPU.

    python bench/pruning_rules.py rules --shared ../shared         # digits and MNIST, weights and channels, 50 to 95 %, 3 seeds
    python bench/pruning_rules.py structured --shared ../shared    # tiny_ic_resnet8 and an MNIST CNN at half of their MACs
    python bench/pruning_rules.py latency --shared ../shared       # of what ``structured`` made; on a quiet machine
    python bench/pruning_rules.py hardware --shared ../shared      # LUTs: patterns for an FPGA against plain magnitude; --yosys
    python bench/pruning_rules.py report                           # tables, paired intervals, rules.svg

A finished cell is a line of cells.jsonl in --out and is never computed again; models that are pruned are kept there. --limit ends it
after so many seconds, and the next call goes on. MNIST: trained on 10,000 images, judged on 5,000 that nothing was chosen on; the
digits of scikit-learn on their own split. tiny_ic_resnet8: 100 of the 223 recovered CIFAR images tune it, 123 judge (few: for drops only).
Importance is judged on 1,000 training samples. Intervals: paired over test samples averaged over seeds, ± 1.96 standard errors.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from compression_training import AUGMENT, Bench, digits, digits_mlp, mnist, mnist_cnn
from numpy.typing import NDArray

import gatewright as gw
from gatewright.errors import GatewrightError
from gatewright.frontend.model import Model
from gatewright.frontend.work import macs
from gatewright.passes.base import PassContext
from gatewright.passes.calibrate import traces
from gatewright.passes.pipeline import Pipeline

Array = NDArray[Any]

RULES = ("random", "magnitude", "taylor", "gradient", "fisher", "entropy", "mutual")
AMOUNTS = (0.5, 0.8, 0.9, 0.95)
KINDS = ("magnitude", "channel")
JUDGED_BY = 1000
HALF = "measure=macs,amount=0.5"
VARIANTS = {"even": HALF, "vectors": f"{HALF},pattern=hardware,device=host", "width": "amount=0.5"}
"""Half of the MACs, from every layer alike or in whole vectors of this machine; or half of the channels, three quarters of the MACs."""


@dataclass(frozen=True)
class Task:
    """A model to prune, and how it learns."""

    make: Callable[[int], Model]
    data: Callable[[Path], tuple[gw.Dataset, gw.Dataset]]
    train: str
    tune: str


TASKS = {
    "digits": Task(digits_mlp, digits, "finetune{epochs=60,lr=0.005,l2=0.0001,validation=0.2}", "finetune{epochs=20,lr=0.002}"),
    "mnist": Task(mnist_cnn, mnist, f"finetune{{epochs=10,lr=0.002,{AUGMENT}}}", f"finetune{{epochs=2,lr=0.001,{AUGMENT}}}"),
}


class Cells:
    """Finished measurements: one JSON object a line, by name."""

    def __init__(self, path: Path, ends: float = math.inf) -> None:
        self.path, self.ends = path, ends
        lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
        self.held: dict[str, dict[str, Any]] = {}
        for line in lines:
            # The last line of a killed run may be cut short.
            try:
                entry = json.loads(line)
            except ValueError:
                continue
            self.held[entry["cell"]] = entry

    def once(self, cell: str, compute: Callable[[], dict[str, Any]]) -> None:
        if cell in self.held:
            return
        if time.monotonic() > self.ends:
            raise Stopped
        started = time.monotonic()
        entry = {"cell": cell, **compute()}
        self.held[cell] = entry
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(json.dumps(entry) + "\n")
        shown = {k: v for k, v in entry.items() if k not in ("right", "loss", "cell")}
        print(f"  {cell:44s} {shown} {time.monotonic() - started:.1f} s", flush=True)


@dataclass
class Workshop(Bench):
    synthesize: bool = False


class Stopped(Exception):
    """The time that --limit allows is spent."""


def right(model: Model, data: gw.Dataset) -> Array:
    """Which samples the float model gets right."""
    name = model.outputs[0].name
    found = [traced[name].argmax(axis=1) for _, traced in traces(model, [name], data)]
    return np.asarray(np.concatenate(found) == data.labels)


def judged(model: Model, data: gw.Dataset) -> dict[str, Any]:
    found = right(model, data)
    packed = np.packbits(found).tobytes().hex()
    return {"accuracy": round(float(found.mean()), 4), "macs": macs(model), "right": packed, "samples": len(found)}


# ---- every rule ----------------------------------------------------------------------------------------------------


def run_rules(cells: Cells, bench: Bench, shared: Path) -> None:
    for name, task in TASKS.items():
        train, test = task.data(shared)
        base = bench.through(f"{name}-base", task.make(bench.seed), task.train, train)
        cells.once(f"{name}/base/{bench.seed}", lambda base=base, test=test: judged(base, test))
        for kind in KINDS:
            for rule in RULES:
                for amount in AMOUNTS:
                    _cell(cells, bench, f"{name}/{kind}/{rule}/{amount}", base, task, kind, rule, amount, train, test)


def _cell(
    cells: Cells, bench: Bench, name: str, base: Model, task: Task, kind: str, rule: str, amount: float, train: gw.Dataset, test: gw.Dataset
) -> None:
    """Without fine-tuning and with it."""
    context = PassContext(data=train.take(JUDGED_BY), seed=bench.seed)
    made: list[Model] = []

    def prune() -> Model:
        if not made:
            made.append(Pipeline.parse(f"prune{{kind={kind},importance={rule},amount={amount}}}").run(base, context))
        return made[0]

    def tuned() -> dict[str, Any]:
        model = Pipeline.parse(task.tune).run(prune(), PassContext(data=train, seed=bench.seed))
        return judged(model, test)

    cells.once(f"{name}/plain/{bench.seed}", lambda: judged(prune(), test))
    cells.once(f"{name}/tuned/{bench.seed}", tuned)


# ---- half of the multiply-accumulates ------------------------------------------------------------------------------


def images(shared: Path) -> tuple[Model, gw.Dataset, gw.Dataset]:
    model = gw.transform(gw.load(shared / "models" / "tiny_ic_resnet8_fp32.onnx"), "fuse")
    data = gw.Dataset.load(shared / "data" / "cifar10_recovered.npz", inputs={model.inputs[0].name: gw.Input()})
    return model, data.slice(0, 100), data.slice(100, len(data))


def halves(bench: Bench, shared: Path) -> Iterator[tuple[str, Model, Model, gw.Dataset]]:
    """Name, the whole model, the halved one after fine-tuning, and what judges them."""
    train, test = mnist(shared)
    # Trained as long as the halved one in all, so that what is compared is the size.
    longer = f"finetune{{epochs=12,lr=0.001,{AUGMENT}}}"
    whole = bench.through("mnist-base", mnist_cnn(bench.seed), TASKS["mnist"].train, train)
    dense = bench.through("mnist-dense", whole, longer, train)
    tune = f"finetune{{epochs=2,lr=0.001,{AUGMENT}}}"
    for name, options in VARIANTS.items():
        steps = f"gradual{{prune=prune{{kind=channel,importance=taylor,{options}}},finetune={tune},steps=2}}"
        small = bench.through(f"mnist-half-{name}", whole, f"{steps},finetune{{epochs=8,lr=0.001,{AUGMENT}}}", train)
        yield f"mnist-{name}", dense, small, test
    model, few, rest = images(shared)
    for name, options in VARIANTS.items():
        steps = f"gradual{{prune=prune{{kind=channel,importance=taylor,{options},repair=reconstruct}},steps=2}}"
        text = f"{steps},finetune{{epochs=20,lr=0.0001,validation=0.2}}"
        yield f"resnet8-{name}", model, bench.through(f"resnet8-half-{name}", model, text, few), rest


def run_structured(cells: Cells, bench: Bench, shared: Path) -> None:
    for name, whole, small, test in halves(bench, shared):
        for which, model in (("whole", whole), ("half", small)):
            size = {"bytes": len(model.to_bytes())}
            cells.once(f"{name}/{which}/{bench.seed}", lambda model=model, size=size, test=test: {**judged(model, test), **size})


def run_latency(cells: Cells, bench: Bench, shared: Path) -> None:
    for name, whole, small, test in halves(bench, shared):
        cells.once(f"{name}/latency/{bench.seed}", lambda whole=whole, small=small, test=test: _timed(whole, small, test))


def _timed(whole: Model, small: Model, test: gw.Dataset) -> dict[str, Any]:
    """Seconds of one sample on ``cpu``, one thread: medians of blocks that take turns."""
    feeds = test.take(1).feeds(whole.inputs)
    with gw.compile(whole, "cpu{threads=1}").load() as a, gw.compile(small, "cpu{threads=1}").load() as b:
        blocks: list[list[float]] = [[], []]
        for _ in range(9):
            for executor, found in zip((a, b), blocks, strict=True):
                each = []
                for _ in range(60):
                    started = time.perf_counter()
                    executor.run_native(feeds)
                    each.append(time.perf_counter() - started)
                found.append(float(np.median(each[10:])))
    first, second = (float(np.median(found)) for found in blocks)
    ratios = np.asarray(blocks[0]) / np.asarray(blocks[1])
    low, high = np.quantile(ratios, [0.25, 0.75])
    return {"whole_s": first, "half_s": second, "faster": float(np.median(ratios)), "quartiles": [float(low), float(high)]}


# ---- patterns for an FPGA ------------------------------------------------------------------------------------------


def run_hardware(cells: Cells, bench: Workshop, shared: Path) -> None:
    """The digits' perceptron, pruned and tuned, in 8 bits: LUTs that the pass predicts, that the target estimates, that Yosys makes."""
    from rtl_estimates import synthesized

    from gatewright.hw.device import Board, load_device
    from gatewright.targets.rtl import estimate, pipeline
    from gatewright.targets.rtl.lower import lower
    from gatewright.targets.rtl.matrix import Strategy

    task, board = TASKS["digits"], load_device("ulx3s-85f")
    assert isinstance(board, Board)
    train, test = task.data(shared)
    base = bench.through("digits-base", task.make(bench.seed), task.train, train)

    def compute(pattern: str, amount: float) -> dict[str, Any]:
        text = f"prune{{amount={amount},device=ulx3s-85f,scope=global,pattern={pattern}}}"
        small = gw.transform(base, text, train, seed=bench.seed)
        luts = {"predicted": small.history[-1].details["predicted"]["LUT"]}
        ready = gw.transform(small, f"{task.tune},fuse,quantize{{bits=8,grid=pow2}}", train, seed=bench.seed)
        design, _ = lower(ready, Strategy(negation_costs=False))
        planned = pipeline.schedule(design, board.part.typical_clock_hz, pipeline.delays_of(board.part))
        luts["estimated"] = estimate.estimate(design, planned, board.part, wrapped=False).luts
        if bench.synthesize:
            luts["synthesized"] = synthesized(design, planned, board.part.family)
        return {**judged(ready, test), "luts": luts}

    for amount in (0.5, 0.8):
        for pattern in ("any", "hardware"):
            stage = "yosys" if bench.synthesize else "estimate"
            cells.once(f"fpga/{pattern}/{amount}/{stage}/{bench.seed}", lambda pattern=pattern, amount=amount: compute(pattern, amount))


# ---- the report ----------------------------------------------------------------------------------------------------


def bits(entry: dict[str, Any]) -> Array:
    return np.unpackbits(np.frombuffer(bytes.fromhex(entry["right"]), np.uint8))[: entry["samples"]].astype(np.float64)


def over_seeds(cells: Cells, name: str) -> tuple[Array, list[float]] | None:
    """Of one cell: per test sample the mean over seeds, and each seed's accuracy."""
    runs = [bits(entry) for cell, entry in sorted(cells.held.items()) if cell.rpartition("/")[0] == name and "right" in entry]
    return (np.mean(runs, axis=0), [float(run.mean()) for run in runs]) if runs else None


def interval(values: Array) -> tuple[float, float]:
    """The mean, and half the width of its interval."""
    return float(values.mean()), float(1.96 * values.std(ddof=1) / math.sqrt(len(values)))


def report(cells: Cells, out: Path) -> None:
    rows: dict[str, Any] = {}
    panels: dict[str, dict[str, list[tuple[float, float, float]]]] = {}
    for task in TASKS:
        for kind in KINDS:
            for tuned in ("plain", "tuned"):
                panel = f"{task}, {kind}, {'fine-tuned' if tuned == 'tuned' else 'not fine-tuned'}"
                for rule in RULES:
                    for amount in AMOUNTS:
                        found = over_seeds(cells, f"{task}/{kind}/{rule}/{amount}/{tuned}")
                        chance = over_seeds(cells, f"{task}/{kind}/random/{amount}/{tuned}")
                        if found is None:
                            continue
                        mean, half = interval(found[0])
                        panels.setdefault(panel, {}).setdefault(rule, []).append((amount, mean, half))
                        entry: dict[str, Any] = {"accuracy": mean, "seeds": len(found[1]), "spread": float(np.std(found[1]))}
                        told = f"{panel:34s} {rule:10s} {amount:.0%}  {mean:.4f} ± {entry['spread']:.4f}"
                        if chance is not None and rule != "random" and len(chance[1]) == len(found[1]):
                            gain, wide = interval(100 * (found[0] - chance[0]))
                            entry["points_over_random"] = [gain - wide, gain, gain + wide]
                            told += f"   {gain:+6.2f} points against random ({gain - wide:+.2f} … {gain + wide:+.2f})"
                        print(told)
                        rows[f"{task}/{kind}/{rule}/{amount}/{tuned}"] = entry
    for amount in (0.5, 0.8):
        for pattern in ("any", "hardware"):
            start = f"fpga/{pattern}/{amount}/"
            runs = [e for stage in ("yosys", "estimate") for c, e in cells.held.items() if c.startswith(start + stage)]
            runs = [e for e in runs if "synthesized" in e["luts"]] or runs
            if runs:
                luts = {key: float(np.mean([r["luts"][key] for r in runs])) for key in runs[0]["luts"] if key != "predicted"}
                accuracy = float(np.mean([r["accuracy"] for r in runs]))
                told = ", ".join(f"{count:,.0f} {how}" for how, count in luts.items())
                print(f"fpga, pattern={pattern:8s} {amount:.0%}: {accuracy:.4f}, LUTs: {told} ({len(runs)} seeds)")
                rows[start] = {"accuracy": accuracy, "luts": luts, "seeds": len(runs)}
    for name in sorted({cell.partition("/")[0] for cell in cells.held if cell.count("/") == 2} - set(TASKS)):
        whole, half = over_seeds(cells, f"{name}/whole"), over_seeds(cells, f"{name}/half")
        if whole is None or half is None:
            continue
        first, second = (next(e for c, e in cells.held.items() if c.startswith(f"{name}/{w}/")) for w in ("whole", "half"))
        lost, wide = interval(100 * (whole[0] - half[0]))
        times = [e for c, e in cells.held.items() if c.startswith(f"{name}/latency/")]
        faster = f", {np.mean([t['faster'] for t in times]):.2f} times faster" if times else ""
        print(
            f"{name:18s} {whole[0].mean():.4f} to {half[0].mean():.4f}, {lost:+.2f} points lost ({lost - wide:+.2f} … {lost + wide:+.2f}); "
            f"MACs {first['macs']:,} to {second['macs']:,}, file {first['bytes']:,} to {second['bytes']:,} bytes{faster}"
        )
        rows[name] = {
            "lost_points": [lost - wide, lost, lost + wide], "macs": [first["macs"], second["macs"]],
            "bytes": [first["bytes"], second["bytes"]], "faster": [t["faster"] for t in times],
        }  # fmt: skip
    (out / "report.json").write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    if panels:
        (out / "rules.svg").write_text(drawn(panels), encoding="utf-8")
        print(out / "rules.svg")


COLORS = {
    "random": "#888888", "magnitude": "#1f77b4", "taylor": "#d62728", "gradient": "#ff7f0e", "fisher": "#9467bd", "entropy": "#2ca02c",
    "mutual": "#17becf",
}  # fmt: skip


def drawn(panels: dict[str, dict[str, list[tuple[float, float, float]]]]) -> str:
    """An SVG: accuracy over the pruned share, a line with intervals for each rule, a panel for each task, kind and tuning."""
    wide, high, columns = 300, 220, 4
    parts = []
    for i, (title, rules) in enumerate(panels.items()):
        left, top = i % columns * wide + 45, i // columns * high + 30
        width, height = wide - 60, high - 60
        parts.append(f'<text x="{left}" y="{top - 10}">{title}</text><rect x="{left}" y="{top}" width="{width}" height="{height}"/>')
        for level in (0, 0.25, 0.5, 0.75, 1):
            y = top + height * (1 - level)
            parts.append(f'<path d="M{left} {y}h{width}" stroke="#dddddd"/><text x="{left - 30}" y="{y + 4}">{level:g}</text>')
        for number, (rule, points) in enumerate(rules.items()):
            across = {a: left + width * (AMOUNTS.index(a) + 0.4 + 0.03 * number) / len(AMOUNTS) for a in AMOUNTS}
            at = [(across[a], top + height * (1 - m), height * h) for a, m, h in points]
            line = " ".join(f"{x:.1f},{y:.1f}" for x, y, _ in at)
            bars = "".join(f"M{x:.1f} {y - h:.1f}V{y + h:.1f}" for x, y, h in at)
            parts.append(f'<polyline points="{line}" stroke="{COLORS[rule]}"/><path d="{bars}" stroke="{COLORS[rule]}"/>')
        for amount in AMOUNTS:
            x = left + width * (AMOUNTS.index(amount) + 0.4) / len(AMOUNTS)
            parts.append(f'<text x="{x:.0f}" y="{top + height + 14}">{amount:.0%}</text>')
    rows = -(-len(panels) // columns)
    for i, (rule, color) in enumerate(COLORS.items()):
        parts.append(f'<text x="{45 + 110 * i}" y="{rows * high + 15}" style="fill:{color}">{rule}</text>')
    style = "text{font:11px sans-serif}rect,polyline,path{fill:none}rect{stroke:#999999}"
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {columns * wide} {rows * high + 25}"><style>{style}</style>'
        + "".join(parts) + "</svg>\n"
    )  # fmt: skip


EXPERIMENTS: dict[str, Callable[[Cells, Workshop, Path], None]] = {
    "rules": run_rules, "structured": run_structured, "latency": run_latency, "hardware": run_hardware,
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("experiment", choices=[*EXPERIMENTS, "report"])
    parser.add_argument("--shared", type=Path, default=Path("../shared"), help="folder with data/ and models/")
    parser.add_argument("--out", type=Path, default=Path("build/pruning_rules"))
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--limit", type=float, default=math.inf, help="seconds after which no cell is begun")
    parser.add_argument("--yosys", action="store_true", help="hardware: synthesize too, minutes for each")
    parser.add_argument("--verbose", action="store_true")
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    cells = Cells(given.out / "cells.jsonl", time.monotonic() + given.limit)
    if given.experiment != "report":
        import torch

        torch.set_num_threads(1)
        try:
            for seed in map(int, given.seeds.split(",")):
                EXPERIMENTS[given.experiment](cells, Workshop(given.out, seed, given.verbose, given.yosys), given.shared)
        except Stopped:
            print("the time is spent; call it again to go on")
        except (GatewrightError, OSError) as error:
            print(f"stopped: {error}")
    report(cells, given.out)


if __name__ == "__main__":
    main()
