"""``gatewright demo``: two digit classifiers, each as float, int8, int4 and pruned int8, on a CPU and an emulated FPGA.

Everything it needs is in ``demo_data/`` (bench/train_digits.py made it): 8×8 pixel digits, an MLP and a CNN. The first run
compiles the FPGA emulators with g++; they are kept in the cache.
"""

from __future__ import annotations

from importlib.resources import as_file, files
from pathlib import Path

from gatewright.errors import UsageError
from gatewright.frontend.data import Dataset, Input
from gatewright.frontend.model import Model
from gatewright.progress import Progress, silent

from .driver import compare, load, transform
from .report import Report

VARIANTS = {
    "int8": "fuse,quantize{bits=8,grid=pow2}",
    "int4": "fuse,quantize{bits=4,grid=pow2,range=percentile,percentile=99.9}",
    "pruned_int8": "fuse,prune{kind=magnitude,amount=0.4,scope=global},quantize{bits=8,grid=pow2}",
}
"""Name to pipeline; power-of-two grids, so that an FPGA computes them as fixed-point numbers, bit for bit."""

SOFTWARE = ("ref", "ort", "cpu")
FPGA = "hls:pynq-z2"

_PIXELS = 1 / 16
"""Raw pixels are 0 … 16."""


def run(out: Path, *, full: bool = False, progress: Progress = silent) -> tuple[Report, tuple[Path, ...]]:
    """The report, and the files that were written to the folder ``out``. ``full``: the CNN's designs are emulated too."""
    if out.exists() and not out.is_dir():
        raise UsageError(f"{out} is a file", hint="give a folder, -o DIR")
    models, data = [], {}
    for name, reshape in (("digits_mlp", None), ("digits_cnn", (1, 8, 8))):
        for model in variants(name, reshape, progress):
            models.append(model)
            data[model.name] = digits(reshape)
    targets = {model.name: _targets(model, full) for model in models}
    report = compare(models, targets, data, "accuracy", rounds=1, progress=progress)
    out.mkdir(parents=True, exist_ok=True)
    written = (out / "report.html", out / "report.json")
    report.save_html(written[0])
    report.save_json(written[1])
    return report, written


def variants(name: str, reshape: tuple[int, ...] | None, progress: Progress = silent) -> list[Model]:
    """The float model and what VARIANTS make of it, calibrated on the training part."""
    with as_file(files("gatewright.runtime").joinpath("demo_data", f"{name}.onnx")) as path:
        float_model = load(path, name=name)
    training = digits(reshape, part="train")
    made = [transform(float_model, pipeline, training, progress=progress).renamed(f"{name}_{kind}") for kind, pipeline in VARIANTS.items()]
    return [float_model, *made]


def digits(reshape: tuple[int, ...] | None, part: str | None = None) -> Dataset:
    """The test part, or ``part="train"``: x in 0 … 1, [N, 64] or [N, *reshape]."""
    with as_file(files("gatewright.runtime").joinpath("demo_data", "digits.npz")) as path:
        return Dataset.load(path, inputs={"x": Input(scale=_PIXELS, reshape=reshape)}, part=part)


def _targets(model: Model, full: bool) -> tuple[str, ...]:
    small = "mlp" in model.name
    return (*SOFTWARE, FPGA) if small or full else SOFTWARE
