"""What `gatewright check` predicts beside what was measured: int8, half of the channels, half of the threads, on this CPU.

    python bench/predictions.py --models kws,resnet8,squeezenet [--level 1] [--lock FILE] [--alone]

Each change and the float32 model are timed by turns. Pruned models are pruned for speed alone (by magnitude, no training).
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import models as benchmark_models
from cpu_speed import INT8, quiet, target_of

import gatewright as gw
from gatewright.errors import GatewrightError
from gatewright.hw.device import host
from gatewright.runtime.session import native_call
from gatewright.runtime.timing import Blocks, alternate, geometric_mean, ratio
from gatewright.targets.tvm.predict import latency, predict

PRUNED = "prune{kind=channel,amount=0.5},fuse"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--models", help="names with commas; part of a name is enough")
    parser.add_argument("--level", type=int, default=0)
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--shared", type=Path, default=Path(__file__).resolve().parents[2] / "shared")
    parser.add_argument("--lock", type=Path)
    parser.add_argument("--alone", action="store_true")
    arguments = parser.parse_args()
    cores = host().cores
    off: dict[str, list[float]] = {}
    print(f"{'model':22s} {'change':22s} {'predicted':>9s} {'measured':>22s}")
    for subject in benchmark_models.subjects(arguments.models):
        model = subject.load(arguments.shared)
        data = benchmark_models.samples(subject, model, arguments.shared)
        foreseen = {p.name: p.speedup for p in predict(model, host())}
        with ExitStack() as open_ones:
            calls = {}
            for name, changed, threads in changes(model, data, cores):
                artifact = gw.compile(changed, f"{target_of(arguments.level)[:-1]},threads={threads}}}")
                executor = open_ones.enter_context(artifact.load())
                calls[name] = native_call(executor, data.take(1).feeds(changed.inputs))
            with quiet(arguments.lock, arguments.alone):
                timings = dict(zip(calls, alternate(list(calls.values()), Blocks(rounds=arguments.rounds, budget_s=6.0)), strict=True))
        for name, timing in timings.items():
            if name == "float32":
                seconds = latency(model, host()).value
                off.setdefault("latency", []).append(seconds / timing.median.value)
                print(f"{subject.name:22s} {'latency, µs':22s} {seconds * 1e6:9.1f} {timing.median.value * 1e6:7.1f}", flush=True)
                continue
            found = ratio(timings["float32"], timing)
            off.setdefault(name, []).append(foreseen[name] / found.value)
            print(f"{subject.name:22s} {name:22s} {foreseen[name]:9.2f} {found.value:7.2f} [{found.low:.2f}, {found.high:.2f}]", flush=True)
    for name, ratios in off.items():
        span = f"{min(ratios):.2f} to {max(ratios):.2f}"
        print(f"{name}: predicted over measured {geometric_mean(ratios):.2f} in the geometric mean of {len(ratios)} models, {span}")


def changes(model: gw.Model, data: gw.Dataset, cores: int) -> Iterator[tuple[str, gw.Model, int]]:
    """The model as it is first; then what was predicted, as far as the passes take the model."""
    yield "float32", model, cores
    for name, pipeline in (("latency_int8", INT8), ("latency_pruned_half", PRUNED)):
        try:
            yield name, gw.transform(model, pipeline, data), cores
        except GatewrightError as error:
            print(f"{model.name}: no {name}: {error}")
    if cores > 1:
        yield f"latency_threads_{cores // 2}", model, cores // 2


if __name__ == "__main__":
    main()
