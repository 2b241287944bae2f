"""Which targets equal ``ref``, on how many samples of which models: the table behind "bit-exact or refused by name".

    python bench/exactness.py --shared ../shared [--only digits,tiny_ad01] [--targets cpu,hls:pynq-z2]

Per row: model, pipeline, target, samples compared, mismatching samples, the metric of float, ref and the target, seconds
of compilation. Models and data beside the checkout are used where they are; rows without them are named and skipped.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

import gatewright as gw
from gatewright.errors import GatewrightError
from gatewright.frontend.reference import Reference

DEMO = Path(str(files("gatewright.runtime"))) / "demo_data"
INT8, INT4 = "fuse,quantize{bits=8,grid=pow2}", "fuse,quantize{bits=4,grid=pow2}"


@dataclass
class Job:
    """One model on its data."""

    name: str
    model: gw.Model
    calibration: gw.Dataset
    test: gw.Dataset
    pipelines: tuple[str, ...] = (INT8,)
    targets: tuple[str, ...] = ("cpu", "hls:pynq-z2", "hls:de10-nano{tool=quartus}")
    samples: int | None = None
    """For the FPGA emulators, which are slow; ``cpu`` takes all."""


def digits() -> Iterator[Job]:
    for name, shape in (("digits_mlp", None), ("digits_cnn", (1, 8, 8))):
        prepared = {"x": gw.Input(scale=1 / 16, reshape=shape)}
        train = gw.Dataset.load(DEMO / "digits.npz", inputs=prepared, part="train")
        test = gw.Dataset.load(DEMO / "digits.npz", inputs=prepared)
        yield Job(name, gw.load(DEMO / f"{name}.onnx"), train, test, (INT8, INT4))


def mnist(shared: Path) -> Job:
    prepared = {"Input3": gw.Input(reshape=(1, 28, 28))}
    train = gw.Dataset.load(shared / "data/mnist_train_5k.npz", inputs=prepared).take(500)
    test = gw.Dataset.load(shared / "data/mnist_test_10k.npz", inputs=prepared).take(500)
    return Job("mnist_cntk", gw.load(shared / "models/mnist_cntk.onnx"), train, test)


def anomaly(shared: Path) -> Job:
    model = gw.load(shared / "models/tiny_ad01_fp32.onnx")
    vectors = log_mel_windows(np.load(shared / "data/audio_clips_16k.npz"))
    data = gw.Dataset({model.inputs[0].name: vectors}, name="audio_clips_16k")
    return Job("tiny_ad01", model, data.slice(0, len(data) // 2), data)


def keywords(shared: Path) -> Job:
    model = gw.load(shared / "models/tiny_kws_dscnn_fp32.onnx")
    prepared = {model.inputs[0].name: gw.Input(offset=83, scale=0.5847029, reshape=(49, 10, 1))}
    data = gw.Dataset.load(shared / "data/kws01_mfcc_int8_1000.npz", inputs=prepared)
    return Job("tiny_kws_dscnn", model, data.slice(0, 200), data.slice(200, 1000), targets=("cpu", "hls:pynq-z2"), samples=40)


def images(shared: Path) -> Job:
    model = gw.load(shared / "models/tiny_ic_resnet8_fp32.onnx")
    data = gw.Dataset.load(shared / "data/cifar10_recovered.npz", inputs={model.inputs[0].name: gw.Input()})
    per_channel = "fuse,quantize{bits=8,grid=pow2,per=channel}"
    return Job("tiny_ic_resnet8", model, data.slice(0, 100), data, (per_channel,), ("cpu", "hls:pynq-z2"), samples=24)


def log_mel_windows(clips: Any) -> np.ndarray[Any, np.dtype[np.float32]]:
    """What the anomaly detector is fed (MLPerf Tiny, ad01): 128 log-mel energies of 5 frames, float32 [N, 640]; frames of 1,024
    samples every 512, power spectrum, triangular mel filters from 0 to 8 kHz, 10·log10."""
    size, hop, bands, rate = 1024, 512, 128, 16_000
    mel = np.linspace(0, 2595 * np.log10(1 + rate / 2 / 700), bands + 2)
    edges = 700 * (10 ** (mel / 2595) - 1)
    frequency = np.fft.rfftfreq(size, 1 / rate)
    rise = (frequency - edges[:-2, None]) / np.diff(edges)[:-1, None]
    fall = (edges[2:, None] - frequency) / np.diff(edges)[1:, None]
    filters = np.maximum(0, np.minimum(rise, fall))
    windows = []
    for name in clips.files:
        clip = clips[name].astype(np.float64) / 2**15
        if len(clip) < size + 4 * hop:
            continue
        frames = np.lib.stride_tricks.sliding_window_view(clip, size)[::hop] * np.hanning(size)
        energies = 10 * np.log10(np.abs(np.fft.rfft(frames)) ** 2 @ filters.T + 1e-12)
        windows += [energies[i : i + 5].reshape(-1) for i in range(len(energies) - 4)]
    return np.asarray(windows, np.float32)


def jobs(shared: Path) -> Iterator[Job]:
    yield from digits()
    for make in (mnist, anomaly, keywords, images):
        try:
            yield make(shared)
        except (GatewrightError, OSError) as error:
            print(f"skipped {make.__name__}: {error}")


def accuracy(outputs: dict[str, Any], data: gw.Dataset, count: int) -> str:
    if data.labels is None:
        return "–"
    (scores,) = list(outputs.values())[:1]
    return f"{np.mean(scores.reshape(len(scores), -1).argmax(axis=1)[:count] == np.asarray(data.labels)[:count]):.3f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--shared", type=Path, default=Path("../shared"))
    parser.add_argument("--only", default="")
    parser.add_argument("--targets", default="")
    arguments = parser.parse_args()
    wanted = [name for name in arguments.only.split(",") if name]
    table = Table("model", "pipeline", "target", "samples", "mismatching", "float", "ref", "target's", "compile s", "note")
    for job in jobs(arguments.shared):
        if wanted and not any(job.name.startswith(name) for name in wanted):
            continue
        plain = Reference(job.model).run(job.test.feeds(job.model.inputs))
        for pipeline in job.pipelines:
            model = gw.transform(job.model, pipeline, data=job.calibration)
            feeds = job.test.feeds(model.inputs)
            expected = Reference(model).run(feeds)
            for target in job.targets:
                if arguments.targets and not any(target.startswith(t) for t in arguments.targets.split(",")):
                    continue
                count = len(job.test) if target == "cpu" or job.samples is None else job.samples
                start = time.perf_counter()
                try:
                    with gw.compile(model, target).load("device" if target == "cpu" else "emulate") as executor:
                        seconds = time.perf_counter() - start
                        got = executor.run({name: array[:count] for name, array in feeds.items()})
                except GatewrightError as error:
                    table.add_row(job.name, pipeline, target, "", "", "", "", "", "", f"{type(error).__name__}: {error}")
                    continue
                different = sum(any(not np.array_equal(got[name][i], expected[name][i]) for name in expected) for i in range(count))
                table.add_row(
                    job.name, pipeline, target, str(count), str(different), accuracy(plain, job.test, count),
                    accuracy(expected, job.test, count), accuracy(got, job.test, count), f"{seconds:.1f}", "",
                )  # fmt: skip
                print(f"{job.name} {pipeline} {target}: {different} of {count} samples differ, {seconds:.1f} s", flush=True)
    Console(width=200).print(table)


if __name__ == "__main__":
    main()
