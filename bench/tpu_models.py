"""Real models on target ``tpu``: compiled ahead of time for TPUs that nobody has to own, emulated here, compared.

    python bench/tpu_models.py run --shared ../shared --results tpu.jsonl [--only resnet,bert] [--parts float,slices,int8,transformers]
    python bench/tpu_models.py table --results tpu.jsonl

float         every float model for one v5e; the error of its emulation against ONNX Runtime, relative to the largest output; where that
              is large, both against the model evaluated in float64, which says whose error it is
slices        three of them for four v5e chips, and for one v6e
int8          int8 files as they are, and float models quantized here: how much multiplies as integers, equality with ``ref``
transformers  ResNet-50, BERT and GPT shapes: memory, roofline, and the collectives on four chips by samples and by halved weights

A line of results per model and target; what is there is not run again. Nothing here was measured on a TPU.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import models
import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

Array = NDArray[Any]

PARTS = ("float", "slices", "int8", "transformers")
FILES: dict[str, dict[str, int]] = {
    "mnist_cntk": {}, "tflm_sine": {}, "oww_okay_nabu": {}, "skl_digits_mlp": {}, "skl_digits_pca_logreg": {}, "skl_digits_rf": {},
    "skl_digits_svc_rbf": {}, "skl_breast_gbc": {}, "skl_iris_rf_zipmap": {}, "skl_wine_svc_prob": {},
    "melspectrogram": {"samples": 16000}, "ultraface_slim320_nopost": {}, "ppocr_cls": {"x.2": 48, "x.3": 192},
    "silero_vad_ifless": {"sequence": 576}, "qonnx_espcn_subpixel_q": {},
}  # fmt: skip
"""Float models beside those of ``models.py``, with their free axes."""
INT8_FILES = (
    "tflm_micro_speech_int8", "tiny_ad01_int8", "tiny_kws_dscnn_int8", "tiny_sww_int8", "tiny_ic_resnet8_int8", "tiny_vww_int8",
)  # fmt: skip
SLICED = ("tiny_ic_resnet8_fp32", "light_squeezenet", "light_resnet50")
QUANTIZED = ("tiny_kws_dscnn_fp32", "tiny_ic_resnet8_fp32", "tiny_vww_fp32", "light_squeezenet", "light_shufflenet", "light_resnet50",
             "bert", "gpt")  # fmt: skip
SHAPES = ("bert", "gpt", "light_resnet50")
CLEAR = 1e-5
"""Errors up to this need no explanation."""


@dataclass(frozen=True)
class Task:
    """One model on one target."""

    part: str
    name: str
    target: str
    load: Callable[[Path], Any]
    emulated: bool = True

    @property
    def key(self) -> str:
        return f"{self.part} {self.name} {self.target}"


def tasks() -> Iterator[Task]:
    """Smaller models first."""
    subjects = {subject.name: subject for subject in models.SUBJECTS}
    order = [
        *(n for n in subjects if not n.startswith("light") and n not in ("bert", "gpt")),
        *(n for n in subjects if n.startswith("light")),
    ]
    for name, dims in FILES.items():
        yield Task("float", name, _target("v5e"), _file(name, dims))
    for name in INT8_FILES:
        # A matrix times one vector does not use the matrix unit: models of nothing else get eight samples.
        yield Task("int8", name, _target("v5e", "batches=8" if name == "tiny_ad01_int8" else None), _file(name, {}))
    for name in SLICED:
        for chip, option in (("v5e", "topology=2x2"), ("v6e", None)):
            yield Task("slices", name, _target(chip, option), subjects[name].load, emulated=False)
    for name in order:
        yield Task("float", name, _target("v5e"), subjects[name].load)
    for name in QUANTIZED:
        yield Task("int8", f"{name}, quantized", _target("v5e"), _quantized(subjects[name]))
    for name in SHAPES:
        yield Task("transformers", name, _target("v5e"), subjects[name].load, emulated=False)
        for mesh in ("data", "model"):
            yield Task("transformers", name, _target("v5e", f"topology=2x2,mesh={mesh}"), subjects[name].load, emulated=False)


def _target(chip: str, options: str | None = None) -> str:
    """XLA's full effort takes minutes for the larger models, and changes none of the figures but the code's size."""
    return f"tpu:{chip}{{{options + ',' if options else ''}effort=quick}}"


def _file(name: str, dims: dict[str, int]) -> Callable[[Path], Any]:
    import gatewright as gw

    return lambda shared: gw.load(shared / "models" / f"{name}.onnx", dims=dims or None, name=name)


def _quantized(subject: models.Subject) -> Callable[[Path], Any]:
    import gatewright as gw

    def load(shared: Path) -> Any:
        model = subject.load(shared)
        return gw.transform(model, "fuse,quantize{bits=8,per=channel}", models.samples(subject, model, shared, count=4))

    return load


def run(task: Task, shared: Path) -> dict[str, Any]:
    """What came of it."""
    import gatewright as gw
    from gatewright.errors import GatewrightError
    from gatewright.frontend.ortrun import OrtSession
    from gatewright.frontend.reference import Reference
    from gatewright.runtime.bench import random_feeds
    from gatewright.targets.ort.legalize import for_onnxruntime

    found: dict[str, Any] = {"part": task.part, "name": task.name, "target": task.target}
    try:
        model = task.load(shared)
        with tempfile.TemporaryDirectory(prefix="gatewright-tpu-") as folder:
            os.environ["GATEWRIGHT_CACHE_DIR"] = folder
            began = time.monotonic()
            artifact = gw.compile(model, task.target)
            found["build_s"] = round(time.monotonic() - began, 1)
            if artifact.parts:
                found["parts"] = [f"{part['target']}: {part['nodes']} operations" for part in artifact.parts]
            # Of several parts the figures are those of the largest on the TPU.
            own = [part["folder"] for part in artifact.parts if part["target"].startswith("tpu")]
            opened = [gw.Artifact.open(artifact.path / folder, artifact.context) for folder in own] or [artifact]
            target = max((one.manifest["target"] for one in opened), key=lambda t: t["estimates"]["latency"]["value"])
            bucket = target["buckets"][0]
            found |= {
                "ahead_of_time": target["ahead_of_time"],
                "latency_s": target["estimates"]["latency"]["value"],
                "batch": bucket["batch"],
            }
            if target["ahead_of_time"]:
                products = {key: value for key, value in bucket["products"].items() if key != "layers"}
                found |= {"memory": bucket["memory"], "products": products, "collectives": bucket["collectives"]}
            if task.emulated:
                feeds = models._plausible(random_feeds(model.inputs, 0))
                with artifact.load("emulate") as executor:
                    began = time.monotonic()
                    got = executor.run(feeds)
                    found["emulated_s"] = round(time.monotonic() - began, 1)
                if task.part == "int8":
                    wanted = Reference(model).run(feeds)
                    found["unequal"] = sum(int(np.count_nonzero(got[name] != wanted[name])) for name in wanted)
                else:
                    wanted = OrtSession(for_onnxruntime(model)).run(feeds)
                    found["error"] = max(_relative(got[name], wanted[name]) for name in wanted)
                    if found["error"] > CLEAR:
                        exact = Reference(in_float64(model)).run({k: _widened(v) for k, v in feeds.items()})
                        for key, outputs in (("error64", got), ("ort64", wanted)):
                            found[key] = max(_relative(outputs[name], exact[name]) for name in exact)
        return {**found, "status": "ok"}
    except (GatewrightError, OSError) as error:
        return {**found, "status": type(error).__name__, "reason": str(error)[:400]}


def in_float64(model: Any) -> Any:
    """The same operators on the same weights, every float32 tensor a float64 one."""
    import onnx_ir as ir

    edited = model.copy_ir()
    for value in edited.graph.initializers.values():
        if value.dtype == ir.DataType.FLOAT:
            value.const_value = ir.tensor(_widened(value.const_value.numpy()), name=value.name)
    for value in [*edited.graph.initializers.values(), *edited.graph.inputs, *(v for node in edited.graph for v in node.outputs)]:
        if value.dtype == ir.DataType.FLOAT:
            value.type = ir.TensorType(ir.DataType.DOUBLE)
    for node in edited.graph:
        if node.op_type == "Cast" and node.attributes["to"].as_int() == ir.DataType.FLOAT:
            node.attributes["to"] = ir.AttrInt64("to", ir.DataType.DOUBLE)
    return model.with_ir(edited)


def _widened(array: Array) -> Array:
    return array.astype(np.float64) if array.dtype == np.float32 else array


def _relative(got: Array, wanted: Array) -> float:
    """The largest difference over the largest magnitude."""
    if got.shape != wanted.shape:
        return float("inf")
    a, b = got.astype(np.float64), wanted.astype(np.float64)
    return float(np.max(np.abs(a - b), initial=0.0) / max(float(np.max(np.abs(b), initial=0.0)), 1e-30))


def read(results: Path) -> dict[str, dict[str, Any]]:
    if not results.exists():
        return {}
    lines = [json.loads(line) for line in results.read_text(encoding="utf-8").splitlines() if line.strip()]
    return {f"{line['part']} {line['name']} {line['target']}": line for line in lines}


def show(results: Path) -> None:
    """Everything that is there, by part."""
    console = Console(width=170)
    for part in PARTS:
        lines = [line for line in read(results).values() if line["part"] == part]
        if not lines:
            continue
        heads = ("model", "target", "status", "error vs ort", "≠ ref", "integer MACs", "full-rate MACs", "memory, a core", "≈latency")
        table = Table(*heads, "collectives", "build s", title=part)
        for line in lines:
            table.add_row(line["name"], line["target"], *_cells(line))
        console.print(table)


def _cells(line: dict[str, Any]) -> list[str]:
    if line["status"] != "ok":
        return [f"{line['status']}: {line['reason'][:90]}"]
    products, memory = line.get("products", {}), line.get("memory", {})
    said = ", ".join(f"{v['count']} {kind} {v['bytes'] / 1e6:.2f} MB" for kind, v in line.get("collectives", {}).items())
    room = f"{memory['total'] / 1e6:.1f} of {memory['available'] / 1e6:.0f} MB" if memory else "not compiled"
    error = f"{line['error']:.1e}" if "error" in line else "–"
    if "error64" in line:
        error += f"; against float64 {line['error64']:.1e}, ort {line['ort64']:.1e}"
    shares = [_share(products.get(key)) for key in ("integer_share", "matrix_share")]
    latency = f"{line['latency_s'] * 1e6:.1f} µs"
    return ["ok", error, str(line.get("unequal", "–")), *shares, room, latency, said or "none", str(line["build_s"])]


def _share(value: float | None) -> str:
    return "–" if value is None else f"{value:.1%}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("verb", choices=["run", "table"])
    parser.add_argument("--shared", type=Path, default=Path("../shared"))
    parser.add_argument("--results", type=Path, default=Path("tpu_models.jsonl"))
    parser.add_argument("--only", default="", help="parts of names, with commas")
    parser.add_argument("--parts", default=",".join(PARTS))
    arguments = parser.parse_args()
    if arguments.verb == "run":
        wanted = [word for word in arguments.only.split(",") if word]
        for task in tasks():
            chosen = task.part in arguments.parts.split(",") and (not wanted or any(word in task.name for word in wanted))
            if not chosen or task.key in read(arguments.results):
                continue
            print(f"{task.key} …", file=sys.stderr, flush=True)
            line = run(task, arguments.shared)
            with open(arguments.results, "a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")
            print("  " + "  ".join(_cells(line)), file=sys.stderr, flush=True)
    show(arguments.results)


if __name__ == "__main__":
    main()
