"""Each kernel's share of what the machine reaches at best, so that what is left is visible.

    python bench/kernels.py --models resnet50,bert [--level 1] [--int8] [--top 20] [--batch 1] [--json PATH] [--lock FILE] [--alone]

Measured first (targets/tvm/templates/peaks.c, kept in the cache): multiply-adds per second from registers, bytes per second read
from buffers that fit the caches and from one that does not. Then each kernel: its time, the rate that is, and its share of the
roofline: the time that the slower of its arithmetic and its traffic would take at those rates, over the time taken. Work is
counted as a plain kernel would do it, so Winograd may pass 100 %; a kernel's tensors may lie in a nearer cache than its bytes
say, so small ones may pass 100 % of the bandwidth.
"""

from __future__ import annotations

import argparse
import json
from functools import partial
from pathlib import Path
from typing import Any

import models as benchmark_models
from cpu_speed import INT8, quiet, target_of

import gatewright as gw
from gatewright.frontend.batch import with_batch
from gatewright.runtime.config import config
from gatewright.targets.tvm.peaks import Peaks, measure
from gatewright.targets.tvm.profile import KernelTime, profile


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--models", help="names with commas; part of a name is enough")
    parser.add_argument("--level", type=int, default=0)
    parser.add_argument("--int8", action="store_true")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--top", type=int, default=20, help="kernels shown, the slowest first; 0 is all")
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--shared", type=Path, default=Path(__file__).resolve().parents[2] / "shared")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--lock", type=Path)
    parser.add_argument("--alone", action="store_true")
    arguments = parser.parse_args()
    hold = partial(quiet, arguments.lock, arguments.alone)
    with hold():
        peaks = measure(arguments.threads, config().cache_dir, again=True)
    reads = ", ".join(f"{rate / 1e9:.0f} GB/s of {size / 2**20:.3g} MiB" for size, rate in peaks.reads)
    int8 = f", {peaks.int8_ops_per_s / 1e9:.0f} int8 Gop/s" if peaks.int8_ops_per_s else ""
    print(f"{arguments.threads} threads reach {peaks.float32_ops_per_s / 1e9:.0f} float32 GFLOP/s{int8}; reading {reads}")
    results: dict[str, Any] = {}
    for subject in benchmark_models.subjects(arguments.models):
        model = subject.load(arguments.shared)
        data = benchmark_models.samples(subject, model, arguments.shared)
        if arguments.int8:
            model = gw.transform(model, INT8, data)
        if arguments.batch != 1:
            model = with_batch(model, arguments.batch)
        artifact = gw.compile(model, f"{target_of(arguments.level)[:-1]},threads={arguments.threads}}}")
        feeds = data.take(arguments.batch).feeds(model.inputs)
        with hold():
            kernels = profile(artifact, model, feeds, runs=arguments.runs)
        show(subject.name, kernels, peaks, arguments.top)
        results[subject.name] = [kernel.to_json(peaks) for kernel in kernels]
    if arguments.json:
        arguments.json.write_text(json.dumps({"peaks": vars(peaks), "models": results}, indent=1), encoding="utf-8")


def show(name: str, kernels: tuple[KernelTime, ...], peaks: Peaks, top: int) -> None:
    total = sum(kernel.seconds for kernel in kernels)
    macs = sum(kernel.macs for kernel in kernels)
    ideal = sum(min(kernel.share(peaks), 1.0) * kernel.seconds for kernel in kernels)
    rate = 2 * macs / total / 1e9
    print(f"\n{name}: {len(kernels)} kernels, {total * 1e6:.0f} µs, {rate:.0f} GFLOP/s; {ideal / total:.0%} of the roofline")
    print(f"  {'µs':>8s} {'time':>5s} {'GFLOP/s':>8s} {'GB/s':>6s} {'share':>5s}  {'op':14s} {'writes':>24s}  node")
    for kernel in sorted(kernels, key=lambda kernel: -kernel.seconds)[: top or None]:
        shape = "x".join(map(str, kernel.shape))
        main_step = next((s for s in kernel.steps if any(op in s for op in ("Conv", "MatMul", "Gemm", "conv", "matmul"))), kernel.steps[-1])
        more = f" +{len(kernel.steps) - 1}" if len(kernel.steps) > 1 else ""
        print(
            f"  {kernel.seconds * 1e6:8.1f} {kernel.seconds / total:5.1%} {2 * kernel.macs / kernel.seconds / 1e9:8.1f} "
            f"{kernel.bytes / kernel.seconds / 1e9:6.1f} {kernel.share(peaks):5.0%}  {kernel.op:14s} {shape:>24s}  {main_step[:50]}{more}"
        )


if __name__ == "__main__":
    main()
