"""The CPU target against ONNX Runtime on the 16 models that it is judged by; prints tables.

    python bench/cpu_speed.py                                     level 0, float32, batch 1, all models: some 5 minutes
    python bench/cpu_speed.py --models squeezenet,resnet50        part of a name is enough
    python bench/cpu_speed.py --level 1                           the measured search's choices
    python bench/cpu_speed.py --int8                              quantized per channel, against ORT float32 and ORT int8
    python bench/cpu_speed.py --compile-time                      ResNet-50 in fresh processes: cold and cached

``--batch 1,16``, ``--against ort,openvino``, ``--memory`` (peaks of fresh processes), ``--json PATH``, ``--rounds N``, ``--threads N``.
On a machine with other work: ``--alone`` (before all other sessions while timing) and ``--lock FILE`` (one measurement at a time).
Each model's rows are printed when it is done.
"""

from __future__ import annotations

import argparse
import fcntl
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import models as benchmark_models
from models import Subject
from rich.console import Console
from rich.table import Table

import gatewright as gw
from gatewright.errors import GatewrightError, UsageError
from gatewright.frontend.batch import batch_reason
from gatewright.frontend.reference import Reference
from gatewright.runtime.bench import bench
from gatewright.runtime.bench_report import BenchReport
from gatewright.runtime.targetspec import resolve
from gatewright.runtime.timing import Blocks, geometric_mean

INT8 = "fuse,quantize{bits=8,per=channel}"
GOALS = {("float32", 0): (1.15, 0.85), ("float32", 1): (1.3, 0.95), ("int8", 0): (1.8, 1.0), ("int8", 1): (1.8, 1.0)}
"""Geometric mean against ONNX Runtime float32 that is wanted, and the least for one model (int8: against ONNX Runtime int8)."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--models", help="names with commas; part of a name is enough")
    parser.add_argument("--level", type=int, default=0)
    parser.add_argument("--int8", action="store_true")
    parser.add_argument("--batch", default="1")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--against", default="ort")
    parser.add_argument("--memory", action="store_true")
    parser.add_argument("--compile-time", action="store_true", help="ResNet-50 cold and cached, and nothing else")
    parser.add_argument("--samples", type=int, default=4, help="samples of the int8 check against ref")
    parser.add_argument("--shared", type=Path, default=Path(__file__).resolve().parents[2] / "shared")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--lock", type=Path, help="hold this file's lock while timing, so that several people can share a machine")
    parser.add_argument("--alone", action="store_true", help="put this process before all others while timing (Linux, needs rights)")
    arguments = parser.parse_args()
    if arguments.compile_time:
        compile_times(arguments)
        return
    table = Rows(arguments.int8, arguments.level)
    for subject in benchmark_models.subjects(arguments.models):
        try:
            table.add(subject, *measure(subject, arguments))
        except (GatewrightError, OSError) as error:
            print(f"{subject.name:22s} left out: {error}", flush=True)
    table.end()
    if arguments.json:
        arguments.json.write_text(json.dumps(table.reports, indent=1), encoding="utf-8")


def measure(subject: Subject, arguments: argparse.Namespace) -> tuple[BenchReport, int | None]:
    """The rows of one model; for int8 also how many of a few samples differ from ``ref`` in any bit."""
    model = subject.load(arguments.shared)
    # A model that mixes its samples (basic_pitch cuts windows along them) is calibrated and checked on one run.
    count = 16 if batch_reason(model) is None else model.inputs[0].shape[0]
    data = benchmark_models.samples(subject, model, arguments.shared, count)
    target = target_of(arguments.level)
    report = bench(
        model, target, arguments.against, batches=[int(n) for n in arguments.batch.split(",")], threads=arguments.threads,
        pipeline=INT8 if arguments.int8 else None, data=data, blocks=Blocks(rounds=arguments.rounds, budget_s=6.0),
        memory=arguments.memory, quiet=partial(quiet, arguments.lock, arguments.alone),
    )  # fmt: skip
    return report, differing(model, target, data, arguments) if arguments.int8 else None


def differing(model: gw.Model, target: str, data: gw.Dataset, arguments: argparse.Namespace) -> int:
    """Samples on which the quantized model on ``target`` is not equal to ``ref`` in every bit of every output."""
    small = gw.transform(model, INT8, data)
    feeds = data.take(arguments.samples).feeds(small.inputs)
    wanted = Reference(small).run(feeds)
    spec = f"{target[:-1]},threads={arguments.threads}}}" if target.endswith("}") else f"{target}{{threads={arguments.threads}}}"
    with gw.compile(small, spec).load() as executor:
        got = executor.run(feeds)
    count = len(next(iter(wanted.values())))
    return sum(any((got[name][i] != wanted[name][i]).any() for name in wanted) for i in range(count))


def target_of(level: int) -> str:
    try:
        resolve(f"cpu{{level={level}}}")
    except UsageError:
        return "cpu"
    return f"cpu{{level={level}}}"


class Rows:
    """The table, printed row by row."""

    def __init__(self, int8: bool, level: int) -> None:
        self.int8, self.level = int8, level
        self.reports: dict[str, Any] = {}
        self.ratios: dict[tuple[str, int], dict[str, float]] = {}
        self.wrong: dict[str, int] = {}
        columns = f"{'model':22s} {'batch':>5s} {'engine':18s} {'ms':>9s} {'quartiles':>19s} {'ratio to it':>22s} {'error':>8s} {'MB':>7s}"
        print(columns + f" {'compile':>8s}", flush=True)

    def add(self, subject: Subject, report: BenchReport, differing: int | None) -> None:
        self.reports[subject.name] = {**report.to_json(), "differing_samples": differing}
        ours = {row.run.batch: row for row in report.rows if row.run.is_target}
        for row in report.rows:
            run = row.run
            if row.timing is None:
                print(f"{run.model:22s} {run.batch:5d} {run.label:18s} {row.status}: {row.reason}", flush=True)
                continue
            low, high = (m.value * 1e3 for m in row.timing.quartiles)
            ratio = ours[run.batch].ratios.get(run.label)
            shown = f"{ratio.value:.2f} [{ratio.low:.2f}, {ratio.high:.2f}]" if ratio else ""
            memory = f"{row.memory.taken.value / 1e6:7.1f}" if row.memory else f"{'':7s}"
            seconds = f"{row.compile_time.value:7.1f}s" if row.compile_time else ""
            name = "ours" if run.is_target else run.label
            print(
                f"{run.model:22s} {run.batch:5d} {name:18s} {row.timing.median.value * 1e3:9.3f} {low:9.3f}…{high:9.3f} {shown:>22s} "
                f"{row.relative_error or 0:8.1e} {memory} {seconds}", flush=True,
            )  # fmt: skip
            if ratio:
                self.ratios.setdefault((run.label, run.batch), {})[run.model] = ratio.value
        if differing is not None:
            self.wrong[subject.name] = differing
            print(f"{subject.name:22s}       samples unlike ref: {differing}", flush=True)

    def end(self) -> None:
        print()
        for (label, batch), found in self.ratios.items():
            worst = sorted(found, key=lambda name: found[name])
            mean = geometric_mean(list(found.values()))
            below = ", ".join(f"{name} {found[name]:.2f}" for name in worst[:3])
            print(f"against {label}, batch {batch}: geometric mean {mean:.3f} over {len(found)} models; lowest {below}")
        wanted, least = GOALS.get(("int8" if self.int8 else "float32", self.level), (1.0, 1.0))
        what = "ort int8" if self.int8 else "ort"
        print(f"wanted: geometric mean {wanted} against ort float32, no model under {least} against {what}")
        if self.wrong:
            print(f"int8 unlike ref: {sum(map(bool, self.wrong.values()))} of {len(self.wrong)} models")


def compile_times(arguments: argparse.Namespace) -> None:
    """ResNet-50 through the command line's own path, in fresh processes: an empty cache, then a full one."""
    subject = next(s for s in benchmark_models.SUBJECTS if s.name == "light_resnet50")
    table = Table("level", "compile", "seconds")
    with TemporaryDirectory() as name:
        folder = Path(name)
        subject.load(arguments.shared).save(folder / "resnet50.onnx")
        environment = {**os.environ, "GATEWRIGHT_CACHE_DIR": str(folder / "cache")}
        command = [sys.executable, "-m", "gatewright.runtime.cli", "compile", str(folder / "resnet50.onnx")]
        command += ["-t", target_of(arguments.level), "-o", str(folder / "out")]
        with quiet(arguments.lock, arguments.alone):
            for what in ("cold", "cached", "cached"):
                shutil.rmtree(folder / "out", ignore_errors=True)
                start = time.perf_counter()
                subprocess.run(command, check=True, env=environment, stdout=subprocess.DEVNULL)
                table.add_row(str(arguments.level), what, f"{time.perf_counter() - start:.2f}")
    Console(width=100).print(table)


@contextmanager
def quiet(lock: Path | None, alone: bool) -> Iterator[None]:
    """Hold the lock, and have the scheduler put this session before all others; both as they were afterwards.

    Linux groups processes by session and weighs the groups (sched(7), "The autogroup feature"): niceness counts inside one only.
    Not real-time scheduling: under it a second engine's sleeping threads doubled what a run of a small model takes.
    """
    autogroup = Path("/proc/self/autogroup")
    file = open(lock, "a", encoding="ascii") if lock is not None else None  # noqa: SIM115
    try:
        if file is not None:
            fcntl.flock(file, fcntl.LOCK_EX)
        if alone:
            if os.getpid() != os.getsid(0):
                os.setsid()
            autogroup.write_text("-20", encoding="ascii")
        yield
    finally:
        if alone:
            autogroup.write_text("0", encoding="ascii")
        if file is not None:
            file.close()


if __name__ == "__main__":
    main()
