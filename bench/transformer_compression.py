"""Two small transformers, BERT-shaped and GPT-shaped, trained here and then compressed: heads pruned, int8, int4; what each costs.

    python bench/transformer_compression.py quality        # trains and judges: a few minutes of one core a seed
    python bench/transformer_compression.py latency        # target cpu, one thread, in blocks that take turns; on a quiet machine
    python bench/transformer_compression.py report         # tables with paired intervals, report.json

A finished cell is a line of cells.jsonl in --out and is never computed again; --limit ends it after so many seconds, and the next call
goes on. The graphs are written by transformers.py and trained by the pass ``finetune``, from the seed.

gpt   the next character of the text of pydoc_data.topics (Python's language reference, part of its standard library), 64 characters at
      a time; judged by the perplexity per character on the last tenth of the text, which nothing was trained or calibrated on.
bert  a key, then up to twelve records, each a key and a value in one token; the class is the value in the key's record, which attention
      has to look up. Judged by accuracy, and by the perplexity of the label, on sequences that were drawn afresh. Chance: 0.125, and 8.

token a GPT-shaped network for one token, two layers of 768 with random weights: for latency alone, which is that of reading weights.

``outliers`` in a row's name: the same network (the function is the same, up to rounding of float32) whose normalized activations carry
a few channels 2^5 times as large, as Dettmers et al. 2022 (LLM.int8(), §4) found them in large language models; small ones have none.
Quantized rows are judged on the integer reference. Intervals: paired over test sequences averaged over seeds, ± 1.96 standard errors.
"""

from __future__ import annotations

import argparse
import json
import math
import pydoc_data.topics
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import transformers
from compression_training import Bench
from numpy.typing import NDArray
from pruning_rules import Cells, Stopped, interval

import gatewright as gw
from gatewright.frontend.edit import Editor
from gatewright.frontend.model import Model
from gatewright.frontend.reference import Reference
from gatewright.frontend.work import macs
from gatewright.passes.base import PassContext
from gatewright.passes.pipeline import Pipeline
from gatewright.passes.smooth import families, migrate

Array = NDArray[Any]

LENGTH, JUDGED = 64, 128
CHARACTERS = "\n" + "".join(map(chr, range(32, 127)))
KEYS, VALUES, RECORDS = 16, 8, 12
OUTLIERS, OCTAVES = 3, 5
"""So many channels of each normalized value, larger by this power of two."""

TUNE = "finetune{epochs=1,lr=0.001,batch=16,clip=1,validation=0}"
HEADS = ("magnitude", "taylor", "random")
AMOUNTS = (0.25, 0.5)
ROUNDED = {
    "int8": "quantize{per=channel}",
    "int8-smooth": "smoothquant,quantize{per=channel}",
    "int8-dynamic": "dynamic",
    "outliers-float": "fuse",
    "outliers-int8": "quantize{per=channel}",
    "outliers-int8-smooth": "smoothquant,quantize{per=channel}",
    "outliers-int8-dynamic": "dynamic",
    **{f"int4-{way}": f"{way}{{group=32}}" for way in ("nearest", "gptq", "awq")},
    "int4-awq-gptq": "awq{group=32,rounding=gptq}",
    **{f"int3-{way}": f"{way}{{bits=3,group=32}}" for way in ("nearest", "gptq")},
}  # fmt: skip
TIMED = {
    "float": "fuse", "int8": "fuse,quantize{per=channel}", "int8-weights": "fuse,nearest{bits=8,group=32}",
    "int4": "fuse,nearest{group=32}",
}  # fmt: skip
"""int8-weights and int4: the activations are float."""
PAIRS = (
    ("float", "int8"), ("int8", "int8-smooth"), ("float", "int8-dynamic"), ("float", "outliers-int8"),
    ("outliers-int8", "outliers-int8-smooth"), ("float", "outliers-int8-smooth"), ("float", "outliers-int8-dynamic"),
    ("float", "int4-nearest"), ("float", "int4-gptq"), ("int4-nearest", "int4-gptq"), ("int4-nearest", "int4-awq"),
    ("int4-gptq", "int4-awq-gptq"), ("int3-nearest", "int3-gptq"),
)  # fmt: skip


@dataclass(frozen=True)
class Task:
    """A network and what it learns."""

    make: Callable[[int], Model]
    data: Callable[[], tuple[gw.Dataset, gw.Dataset]]
    train: str
    tuned_on: int
    """Training sequences that follow pruning."""
    measured_on: int
    """Training sequences that importance and ranges are measured on."""


# ---- the tasks -----------------------------------------------------------------------------------------------------


def text() -> tuple[gw.Dataset, gw.Dataset]:
    """Windows of the text and, for every position, the character behind it."""
    whole = "\n".join(pydoc_data.topics.topics[key] for key in sorted(pydoc_data.topics.topics))
    place = {character: i for i, character in enumerate(CHARACTERS)}
    ids = np.asarray([place[c] for c in whole if c in place], np.int64)
    cut = len(ids) * 9 // 10

    def windows(part: Array) -> gw.Dataset:
        count = (len(part) - 1) // LENGTH
        return gw.Dataset({"ids": part[: count * LENGTH].reshape(count, -1)}, part[1 : count * LENGTH + 1].reshape(count, -1), name="text")

    return windows(ids[:cut]), windows(ids[cut:]).shuffled(0).take(JUDGED)


def records() -> tuple[gw.Dataset, gw.Dataset]:
    """Token key·8 + value for a record, 128 + key for a question; the mask hides the end of a shorter list."""
    random = np.random.default_rng(0)

    def drawn(samples: int) -> gw.Dataset:
        keys = np.argsort(random.random((samples, KEYS)), axis=1)[:, :RECORDS]
        values = random.integers(0, VALUES, (samples, RECORDS))
        there = random.integers(RECORDS // 2, RECORDS + 1, (samples, 1))
        asked = random.integers(0, there)
        ids = np.concatenate([np.take_along_axis(keys, asked, 1) + KEYS * VALUES, keys * VALUES + values], axis=1)
        mask = np.concatenate([np.ones((samples, 1)), np.arange(RECORDS) < there], axis=1).astype(np.float32)
        labels = np.take_along_axis(values, asked, 1)[:, 0]
        return gw.Dataset({"ids": ids.astype(np.int64), "attention_mask": mask}, labels, name="records")

    return drawn(20_000), drawn(1000)


def gpt(seed: int) -> Model:
    shape = transformers.Shape(layers=2, hidden=64, heads=4, inner=256, sequence=LENGTH, vocabulary=len(CHARACTERS))
    return gw.load(transformers.gpt(shape, seed), name="gpt")


def bert(seed: int) -> Model:
    shape = transformers.Shape(layers=2, hidden=64, heads=4, inner=256, sequence=1 + RECORDS, vocabulary=KEYS * VALUES + KEYS)
    return gw.load(transformers.bert(shape, seed, VALUES), name="bert")


TASKS = {
    "bert": Task(bert, records, "finetune{epochs=2,lr=0.003,clip=1,warmup=0.05,validation=0}", 2500, 256),
    "gpt": Task(gpt, text, "finetune{epochs=1,lr=0.005,batch=16,clip=1,warmup=0.05,validation=0}", 800, 64),
}


# ---- judging -------------------------------------------------------------------------------------------------------


def losses(model: Model, data: gw.Dataset) -> tuple[Array, Array]:
    """For each sequence the mean of −ln p of its labels, and whether (or how many of) its labels are the likeliest."""
    reference, name = Reference(model), model.outputs[0].name
    size = 64 if reference.per_sample else 1
    z = np.concatenate([reference.run(feeds)[name] for feeds in data.batches(model.inputs, size)]).astype(np.float64)
    assert data.labels is not None
    z -= z.max(axis=-1, keepdims=True)
    log = z - np.log(np.exp(z).sum(axis=-1, keepdims=True))
    told = np.take_along_axis(log, data.labels[..., None], -1)[..., 0]
    right = z.argmax(axis=-1) == data.labels
    return (-told, right) if told.ndim == 1 else (-told.mean(axis=1), right.mean(axis=1))


def judged(model: Model, data: gw.Dataset) -> dict[str, Any]:
    loss, right = losses(model, data)
    kept = {key: value.astype(np.float32).tobytes().hex() for key, value in (("loss", loss), ("right", right))}
    figures = {"accuracy": round(float(right.mean()), 4), "perplexity": round(float(np.exp(loss.mean())), 4)}
    return {**figures, "macs": macs(model), "bytes": len(model.to_bytes()), **kept}


def with_outliers(model: Model, seed: int) -> Model:
    """The same function; of each normalized value a few channels are 2^OCTAVES as large, and the weights that read them as small."""
    edited = model.copy_ir()
    edit, random = Editor(edited), np.random.default_rng(seed)
    for family in families(edited.graph)[0]:
        if family.before is None:
            width = family.layers[0].weight.shape[0]
            s = np.ones(width)
            s[random.choice(width, OUTLIERS, replace=False)] = 2.0**-OCTAVES
            migrate(edit, family, s)
    return model.with_ir(edited)


def run_quality(cells: Cells, bench: Bench) -> None:
    for name, task in TASKS.items():
        train, test = task.data()
        base = bench.through(name, task.make(bench.seed), task.train, train)
        cells.once(f"{name}/float/{bench.seed}", lambda base=base, test=test: judged(base, test))
        context = PassContext(data=train.shuffled(bench.seed).take(task.measured_on), seed=bench.seed)
        fused = gw.transform(base, "fuse")
        loud = with_outliers(fused, bench.seed)
        for row, pipeline in ROUNDED.items():
            source = loud if row.startswith("outliers") else fused

            def rounded(source: Model = source, pipeline: str = pipeline, context: PassContext = context, test: gw.Dataset = test) -> Any:
                return judged(Pipeline.parse(pipeline).run(source, context), test)

            cells.once(f"{name}/{row}/{bench.seed}", rounded)
        for rule in HEADS:
            for amount in AMOUNTS:
                _heads(cells, bench, f"{name}/heads-{rule}-{amount:.0%}", base, task, rule, amount, train, test)


def _heads(
    cells: Cells, bench: Bench, name: str, base: Model, task: Task, rule: str, amount: float, train: gw.Dataset, test: gw.Dataset
) -> None:
    few = train.shuffled(bench.seed)

    def pruned() -> Model:
        context = PassContext(data=few.take(task.measured_on), seed=bench.seed)
        return Pipeline.parse(f"prune{{kind=head,importance={rule},amount={amount}}}").run(base, context)

    def tuned() -> dict[str, Any]:
        return judged(Pipeline.parse(TUNE).run(pruned(), PassContext(data=few.take(task.tuned_on), seed=bench.seed)), test)

    cells.once(f"{name}/{bench.seed}", lambda: judged(pruned(), test))
    cells.once(f"{name}-tuned/{bench.seed}", tuned)


# ---- latency -------------------------------------------------------------------------------------------------------


def token(seed: int) -> Model:
    shape = transformers.Shape(layers=2, hidden=768, heads=12, inner=3072, sequence=1, vocabulary=len(CHARACTERS))
    return gw.load(transformers.gpt(shape, seed), name="token")


def run_latency(cells: Cells, bench: Bench) -> None:
    ids = np.random.default_rng(0).integers(0, len(CHARACTERS), (16, 1))
    for name in (*TASKS, "token"):
        if name == "token":
            base, data = token(bench.seed), gw.Dataset({"ids": ids})
        else:
            data = TASKS[name].data()[0].take(64)
            base = bench.through(name, TASKS[name].make(bench.seed), TASKS[name].train, TASKS[name].data()[0])
        cells.once(f"{name}/latency/{bench.seed}", lambda base=base, data=data: _timed(base, data))


def _timed(base: Model, data: gw.Dataset) -> dict[str, Any]:
    """Seconds of one run, and how many times faster than float32; bytes of what was compiled.

    The fastest run of each block counts, since other work on the machine only ever slows one; then the median over blocks.
    """
    feeds = data.take(1).feeds(base.inputs)
    blocks: dict[str, list[float]] = {row: [] for row in TIMED}
    artifacts = {row: gw.compile(gw.transform(base, pipeline, data), "cpu{threads=1}") for row, pipeline in TIMED.items()}
    with ExitStack() as stack:
        executors = {row: stack.enter_context(artifact.load()) for row, artifact in artifacts.items()}
        for _ in range(15):
            for row, executor in executors.items():
                each = []
                for _ in range(30):
                    started = time.perf_counter()
                    executor.run_native(feeds)
                    each.append(time.perf_counter() - started)
                blocks[row].append(min(each))
    faster = {row: np.asarray(blocks["float"]) / np.asarray(found) for row, found in blocks.items()}
    return {
        "seconds": {row: float(np.median(found)) for row, found in blocks.items()},
        "faster": {row: [round(float(q), 3) for q in np.quantile(found, (0.25, 0.5, 0.75))] for row, found in faster.items()},
        "constants": {row: (artifact.path / "constants.bin").stat().st_size for row, artifact in artifacts.items()},
    }  # fmt: skip


# ---- the report ----------------------------------------------------------------------------------------------------


def values(entry: dict[str, Any], key: str) -> Array:
    return np.frombuffer(bytes.fromhex(entry[key]), np.float32).astype(np.float64)


def by_seed(cells: Cells, name: str) -> dict[int, dict[str, Any]]:
    found = {cell.rpartition("/")[2]: entry for cell, entry in cells.held.items() if cell.rpartition("/")[0] == name}
    return {int(seed): entry for seed, entry in sorted(found.items())}


def compared(first: dict[int, dict[str, Any]], second: dict[int, dict[str, Any]]) -> dict[str, Any] | None:
    """How much more the second one loses: perplexity in per cent, accuracy in points, [low, mean, high] over common seeds."""
    common = sorted(first.keys() & second.keys())
    if not common:
        return None
    loss, right = (
        np.mean([values(second[seed], key) - values(first[seed], key) for seed in common], axis=0) for key in ("loss", "right")
    )  # fmt: skip
    (more, wide), (points, half) = interval(loss), interval(100 * right)
    perplexity = [100 * math.expm1(x) for x in (more - wide, more, more + wide)]
    return {"seeds": common, "perplexity_percent": perplexity, "accuracy_points": [points - half, points, points + half]}


def report(cells: Cells, out: Path) -> None:
    rows: dict[str, Any] = {}
    names = list(dict.fromkeys(cell.rpartition("/")[0] for cell, entry in cells.held.items() if "loss" in entry))
    print(f"{'row':32s} seeds {'perplexity':>18s} {'accuracy':>17s} {'bytes':>9s} {'MACs':>10s}")
    for name in sorted(names, key=lambda n: n.partition("/")[0]):
        seeds = by_seed(cells, name)
        each = {key: [entry[key] for entry in seeds.values()] for key in ("perplexity", "accuracy")}
        first = next(iter(seeds.values()))
        mean, spread = ({key: float(f(v)) for key, v in each.items()} for f in (np.mean, np.std))
        rows[name] = {"seeds": list(seeds), "mean": mean, "spread": spread, "bytes": first["bytes"], "macs": first["macs"]}
        told = f"{mean['perplexity']:10.4f} ± {spread['perplexity']:.4f} {mean['accuracy']:8.4f} ± {spread['accuracy']:.4f}"
        print(f"{name:32s} {len(seeds):5d} {told} {first['bytes']:9,d} {first['macs']:10,d}")
    print(f"\n{'difference':58s} {'perplexity, %':>14s}{'':18s} accuracy, points")
    heads = [(f"heads-{rule}-{amount:.0%}{after}") for rule in HEADS for amount in AMOUNTS for after in ("", "-tuned")]
    pairs = [*PAIRS, *(("float", row) for row in heads)]
    pairs += [(row.replace(rule, "random"), row) for row in heads for rule in HEADS[:2] if rule in row]
    for task in TASKS:
        for a, b in pairs:
            found = compared(by_seed(cells, f"{task}/{a}"), by_seed(cells, f"{task}/{b}"))
            if found is not None:
                rows[f"{task}/{b} - {a}"] = found
                (low, more, high), (least, points, most) = found["perplexity_percent"], found["accuracy_points"]
                told = f"{task}: {b} against {a}, {len(found['seeds'])} seeds"
                print(f"{told:58s} {more:+8.2f} ({low:+.2f} … {high:+.2f})   {points:+7.2f} ({least:+.2f} … {most:+.2f})")
    for cell, entry in cells.held.items():
        if "faster" in entry:
            rows[cell] = entry
            for row, (low, middle, high) in entry["faster"].items():
                told = f"{entry['seconds'][row] * 1e6:9.1f} µs, {middle:.2f} times as fast as float ({low:.2f} … {high:.2f})"
                print(f"{cell:20s} {row:14s} {told}, {entry['constants'][row]:,d} bytes of constants")
    (out / "report.json").write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("what", choices=("quality", "latency", "report"))
    parser.add_argument("--out", type=Path, default=Path("build/transformer_compression"))
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--limit", type=float, default=math.inf, help="seconds after which no further cell is begun")
    parser.add_argument("--verbose", action="store_true")
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    cells = Cells(given.out / "cells.jsonl", time.monotonic() + given.limit)
    if given.what != "report":
        import torch

        torch.set_num_threads(1)
        run = run_quality if given.what == "quality" else run_latency
        try:
            for seed in map(int, given.seeds.split(",")):
                run(cells, Bench(given.out, seed, given.verbose))
        except Stopped:
            print("time is up; the same line goes on from here")
    report(cells, given.out)


if __name__ == "__main__":
    main()
