"""What the verbs of the command line show: each result as JSON values and as tables for people."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import RenderableType

from gatewright.errors import UsageError, nearest
from gatewright.frontend import work
from gatewright.frontend.integer import IntegerOp, plan
from gatewright.frontend.model import Model
from gatewright.hw.cost import LayerCost
from gatewright.hw.device import Board, Device, Kind, Part, Processor, host
from gatewright.hw.device import devices as all_devices
from gatewright.hw.measurement import Measurement
from gatewright.targets.base import Artifact, Check

from . import driver
from .console import facts, figure, legend, parts_lines, table
from .front import Front
from .report import shorten, show
from .session import Run

KINDS: tuple[Kind, ...] = ("cpu", "gpu", "tpu", "board", "part")


@dataclass(frozen=True)
class Inspection:
    """A model, seen from outside."""

    model: Model
    operators: Mapping[str, int]
    layers: tuple[LayerCost, ...]
    parameters: int
    """Numbers in its weights."""
    weight_bytes: int
    nonzero_share: float
    memory_bytes: int
    """Weights, and the most activations alive at once."""
    quantization: Mapping[str, int]
    """Integer operations by the width of weights and activations: "8-bit weights, 8-bit activations" -> how many."""
    float_operations: int
    """Operations left in floating point, quantization itself apart."""
    notes: tuple[str, ...]

    @property
    def macs(self) -> int:
        return sum(layer.macs for layer in self.layers)

    def to_json(self) -> dict[str, Any]:
        model = self.model
        return {
            "name": model.name,
            "digest": model.digest,
            "inputs": [{"name": i.name, "shape": list(i.shape), "dtype": str(i.dtype)} for i in model.inputs],
            "outputs": [{"name": i.name, "shape": list(i.shape), "dtype": str(i.dtype)} for i in model.outputs],
            "operators": dict(self.operators),
            "parameters": self.parameters,
            "weight_bytes": self.weight_bytes,
            "nonzero_weights": self.nonzero_share,
            "macs": self.macs,
            "peak_memory": Measurement(float(self.memory_bytes), "B", "estimated").to_json(),
            "quantization": dict(self.quantization),
            "float_operations": self.float_operations,
            "notes": list(self.notes),
            "layers": [{"name": c.name, "op": c.op, "macs": c.macs, "weight_bytes": c.weight_bytes, "dtype": c.dtype} for c in self.layers],
            "history": [step.to_json() for step in model.history],
        }

    def tables(self) -> list[RenderableType]:
        model = self.model
        kinds = ", ".join(f"{count} × {what}" for what, count in self.quantization.items())
        pairs = {
            "model": f"{model.name}  {model.digest[:12]}",
            "inputs": ", ".join(map(str, model.inputs)),
            "outputs": ", ".join(map(str, model.outputs)),
            "operators": ", ".join(f"{op} {count}" for op, count in self.operators.items()),
            "weights": f"{self.parameters:,} in {bytes_text(self.weight_bytes)}, {self.nonzero_share:.1%} not zero",
            "work": f"{self.macs:,} multiply-accumulates in one run",
            "memory": f"{bytes_text(self.memory_bytes)} of weights and live activations (estimated)",
            "quantized": f"{kinds}; {self.float_operations} operations in floating point" if kinds else "no, it computes in floating point",
            "history": " → ".join(step.text for step in model.history) or "none",
            **_imported(model),
        }
        shown: list[RenderableType] = [facts(pairs)]
        heavy = [layer for layer in self.layers if layer.macs]
        if heavy:
            rows = [
                (shorten(c.name, 48), c.op, f"{c.macs:,}", f"{c.macs / self.macs:.1%}", bytes_text(c.weight_bytes), c.dtype) for c in heavy
            ]
            shown += ["", table(None, ("layer", "op", "MACs", "share", "weights", "computes in"), rows, right=("MACs", "share", "weights"))]
        return [*shown, *(f"note: {note}" for note in self.notes)]


def _imported(model: Model) -> dict[str, str]:
    """What importers and loading told of the model: how far it is from its source framework, and what else a user should know."""
    found = {}
    for word, steps in (
        ("loaded", [step for step in model.history if step.action == "load" and "checked" not in step.details]),
        ("imported", [step for step in model.history if "checked" in step.details]),
    ):
        if notes := [note for step in steps for note in step.notes]:
            found[word] = "; ".join(notes)
    return found


def inspect(model: Model) -> Inspection:
    """Everything that can be said of a model without running it."""
    view = plan(model)
    quantization = Counter(_widths(op) for op in view.integer_ops if op.kind in ("conv", "matmul"))
    edges = {"QuantizeLinear", "DequantizeLinear"}
    floats = sum(1 for step in view.steps if not isinstance(step, IntegerOp) and step.node.op_type not in edges)
    weights = [value.const_value for value in model.graph.initializers.values() if value.const_value is not None]
    return Inspection(
        model,
        operators=dict(Counter(node.op_type for node in model.graph).most_common()),
        layers=work.layer_costs(model),
        parameters=sum(int(weight.size) for weight in weights),
        weight_bytes=work.weight_bytes(model),
        nonzero_share=work.nonzero_share(model),
        memory_bytes=work.peak_memory_bytes(model),
        quantization=dict(quantization.most_common()),
        float_operations=floats,
        notes=view.notes,
    )


def said(model: Model, before: Model) -> list[str]:
    """What the passes that made ``model`` of ``before`` have to say: what was saved, what could not be done and why."""
    steps = model.history[len(before.history) :]
    return [f"{step.text.partition('{')[0]}: {note}" for step in steps for note in step.notes]


def known_devices(kind: str | None) -> list[Device]:
    """The shipped devices, and this machine among the CPUs. Raises UsageError for an unknown kind."""
    if kind is not None and kind not in KINDS:
        raise UsageError(f"there is no kind of device {kind!r}", hint=nearest(kind, KINDS, "kinds"))
    found = [device for device in all_devices() if kind in (None, device.kind)]
    return [host(), *found] if kind in (None, "cpu") else found


def device_tables(found: Sequence[Device]) -> list[RenderableType]:
    rows = [
        ("host" if device.source == "host" else device.name, device.kind, device.description or device.name, _figures_of(device))
        for device in found
    ]
    return [table(None, ("name", "kind", "what", "figures"), rows), "\nyour own: -t hls:path/to/board.toml, in the form of a shipped one"]


def check_json(model: Model, target: str, found: Check) -> dict[str, Any]:
    return {
        "model": {"name": model.name, "digest": model.digest},
        "target": target,
        "ok": found.ok,
        "problems": [{"node": p.node, "op": p.op, "rule": p.rule, "hint": p.hint} for p in found.problems],
        "shortfalls": list(found.shortfalls),
        "notes": list(found.notes),
        "figures": {name: value.to_json() for name, value in found.figures.items()},
        "available": {name: value.to_json() for name, value in found.available.items()},
        "host": {name: value.to_json() for name, value in _host_figures(model).items()},
    }


def check_tables(model: Model, target: str, found: Check) -> list[RenderableType]:
    verdict = "supported" if not found.problems else f"not supported: {len(found.problems)} of its operations are refused"
    fit = "" if found.problems else ", and it fits" if not found.shortfalls else ", but it does not fit"
    shown: list[RenderableType] = [f"{model.name} on {target}: {verdict}{fit}"]
    if found.problems:
        rows = [(shorten(p.node, 48), p.op, p.rule, p.hint or "") for p in found.problems]
        shown += ["", table(None, ("node", "op", "refused because", "try"), rows)]
    shown += [f"too little of {text}" for text in found.shortfalls]
    if found.figures:
        ours = _host_figures(model)
        order = sorted(found.figures, key=lambda name: name.isupper())  # resources, LUT and DSP, last
        columns = {target: found.figures, **({"available": found.available} if found.available else {}), "this CPU": ours}
        rows_of_figures = [(name, *(figure(known[name]) if name in known else "" for known in columns.values())) for name in order]
        shown += ["", table(None, ("", *columns), rows_of_figures, right=tuple(columns))]
        shown += [legend([*found.figures.values(), *found.available.values(), *ours.values()])]
        shown += _helps(found, ours)
    return [*shown, *(f"note: {note}" for note in found.notes)]


def artifact_json(artifact: Artifact) -> dict[str, Any]:
    return {"path": str(artifact.path), **artifact.manifest}


def artifact_tables(artifact: Artifact) -> list[RenderableType]:
    manifest = artifact.manifest
    size = sum((artifact.path / name).stat().st_size for name in manifest["files"])
    last = (
        "run it: gatewright run DIR --data FILE"
        if artifact.stage == "built"
        else "run it: gatewright run DIR --data FILE (emulated); its tools: gatewright build DIR"
    )
    pairs = {
        "written": str(artifact.path),
        "what": f"{manifest['name']} for {artifact.target_text}, {artifact.stage}",
        "files": f"{len(manifest['files'])}, {bytes_text(size)}",
        "history": " → ".join(step["text"] for step in manifest["model"]["history"]) or "none",
    }
    for edge, meaning in (("host_pre", "on the host, before"), ("host_post", "on the host, after")):
        if manifest["target"].get(edge):
            pairs[meaning] = str(manifest["target"][edge])
    shown: list[RenderableType] = [facts(pairs)]
    figures = manifest["target"].get("figures", {})
    found = {name: Measurement(entry["value"], entry["unit"], entry["source"]) for name, entry in figures.items()}
    if found:
        order = sorted(found, key=lambda name: (name.isupper(), name))
        shown += [table(None, ("", "figure"), [(name, figure(found[name])) for name in order], right=("figure",))]
        shown += [legend(found.values())]
    return [*shown, *(f"note: {note}" for note in manifest["target"].get("notes", ())), last]


def opened_tables(artifact: Artifact) -> list[RenderableType]:
    """As ``artifact_tables``, with how each kernel was chosen, where a target says so ("kernels" and "attention" in its part of the
    manifest)."""
    heads = ("kernel", "problem", "algorithm", "blocks", "chosen", "time")
    rows = [
        (
            name, shorten(entry["problem"], 60), entry["algorithm"], ", ".join(map(str, entry["blocks"])), entry["choice"],
            show(Measurement(entry["seconds"], "s", "measured")) if "seconds" in entry else "",
        )
        for name, entries in artifact.manifest["target"].get("kernels", {}).items() for entry in entries
    ]  # fmt: skip
    shown = artifact_tables(artifact)
    if artifact.parts:
        parts = [
            (
                part["target"], str(part["nodes"]), f"{part['macs']:,}", bytes_text(part["received_bytes"]),
                "; ".join(f"{node}: {reason}" for node, reason in part["reasons"].items()),
            )
            for part in artifact.parts
        ]  # fmt: skip
        heads_of_parts = ("part on", "operations", "MACs", "received", "because")
        shown += ["", table(None, heads_of_parts, parts, right=("operations", "MACs", "received"))]
    shown += _buckets(artifact)
    shown += list(artifact.manifest["target"].get("attention", ()))
    return [*shown, "", table(None, heads, rows, right=("time",))] if rows else shown


def _buckets(artifact: Artifact) -> list[RenderableType]:
    """Where a target compiled for several batch sizes ahead of time: what each takes, how it multiplies, what cores say to one another."""
    described = artifact.manifest["target"]
    if described.get("not_compiled"):
        return ["", f"not compiled ahead of time: {described['not_compiled']}"]
    rows = []
    for bucket in described.get("buckets", ()):
        products, memory = bucket["products"], bucket["memory"]
        units = ", ".join(f"{unit} {count / products['macs']:.1%}" for unit, count in products["by_unit"].items())
        said = ", ".join(f"{found['count']} {kind}, {bytes_text(found['bytes'])}" for kind, found in bucket["collectives"].items())
        room = f"{bytes_text(memory['total'])} of {bytes_text(memory['available'])}" if memory["available"] else bytes_text(memory["total"])
        rows.append((str(bucket["batch"]), room, f"{products['macs']:,}", units, said or "none"))
    return ["", table(None, ("batch", "memory of a core", "MACs", "multiplied in", "collectives"), rows, right=("MACs",))] if rows else []


def run_json(ran: Run, out: Path | None) -> dict[str, Any]:
    return {
        "samples": ran.samples,
        "seconds": ran.seconds,
        "throughput" if ran.is_device else "emulation_rate": ran.rate.to_json(),
        "peak_memory": ran.peak_memory.to_json() if ran.peak_memory else None,
        "saturations": ran.saturations,
        "outputs": [{"name": name, "shape": list(array.shape), "dtype": str(array.dtype)} for name, array in ran.outputs.items()],
        "parts": [part.to_json() for part in ran.parts],
        "path": str(out) if out else None,
    }


def run_tables(ran: Run, out: Path | None) -> list[RenderableType]:
    saturated = ", ".join(f"{shorten(name, 48)} {count}" for name, count in ran.saturations.items() if count)
    seconds, who = show(Measurement(ran.seconds, "s", "measured")), "device" if ran.is_device else "emulator"
    pairs = {
        "samples": f"{ran.samples} in {seconds}, {show(ran.rate)} ({who})",
        "outputs": ", ".join(f"{name}: {array.dtype}{list(array.shape)}" for name, array in ran.outputs.items()),
        "saturated": saturated or "nothing",
    }
    if ran.peak_memory:
        pairs["memory"] = f"{show(ran.peak_memory)} at most, this whole process"
    return [facts(pairs), *parts_lines("note", ran.parts), *([f"written: {out}"] if out else [])]


def _helps(found: Check, ours: Mapping[str, Measurement]) -> list[RenderableType]:
    """Does the device help, beside this machine's CPU? Both sides are estimates."""
    said = []
    for name, better, worse in (("latency", "faster", "slower"), ("energy", "less energy", "more energy")):
        if name in found.figures and name in ours and found.figures[name].value > 0 and ours[name].value > 0:
            ratio = ours[name].value / found.figures[name].value
            said.append(
                f"the same {name}" if 0.95 < ratio < 1.05 else f"{ratio:.3g} × {better}" if ratio > 1 else f"{1 / ratio:.3g} × {worse}"
            )
    return [f"beside this CPU: {', '.join(said)} (both estimated)"] if said else []


def _host_figures(model: Model) -> dict[str, Measurement]:
    """What this machine would take, as the target ``cpu`` tells before it compiles."""
    found = driver.check(model, "cpu").figures
    return {name: found[name] for name in ("latency", "energy") if name in found}


def _widths(op: IntegerOp) -> str:
    weights = f"{op.weight_grid.bits}-bit weights, " if op.weight_grid is not None else ""
    return f"{weights}{max(o.grid.bits for o in op.operands)}-bit activations"


def _figures_of(device: Device) -> str:
    if isinstance(device, Board):
        memory = f", {bytes_text(device.memory_bytes)} memory" if device.memory_bytes else ""
        return f"{device.part.name} at {device.clock_hz / 1e6:g} MHz{memory}; {_figures_of(device.part)}"
    if isinstance(device, Part):
        return f"{device.luts:,} LUT, {device.ffs:,} FF, {device.dsps:,} DSP, {device.bram_blocks:,} BRAM; {', '.join(device.toolchains)}"
    assert isinstance(device, Processor)
    clock = f" at {device.clock_hz / 1e9:.3g} GHz" if device.clock_hz else ""
    peaks = ", ".join(f"{dtype} {rate / 1e12:.3g} Top/s" for dtype, rate in device.peak_ops_per_s.items())
    memory = f", {device.memory_bandwidth_bytes_per_s / 1e9:.3g} GB/s" if device.memory_bandwidth_bytes_per_s else ""
    return f"{device.cores} cores{clock}; {peaks}{memory}"


def bytes_text(count: int) -> str:
    return show(Measurement(float(count), "B", "estimated"))


def front_tables(front: Front, folder: Path) -> list[RenderableType]:
    """The front, the choice, the finalists, and where the files are."""
    rows: list[list[RenderableType]] = []
    for one in front.points:
        marks = front.marks(one)
        costs = [figure(one.costs[name]) for name in front.objectives]
        rows.append([one.pipeline, f"{one.metric:.4g} ± {one.spread:.2g}", f"{front.drop(one):.4g}", *costs, ", ".join(marks)])
    columns = ("pipeline", f"{front.metric} (folds)", "drop", *front.objectives, "")
    failed = sum(one.problem is not None for one in front.tried)
    summary = f"{len(front.tried)} pipelines tried, {failed} impossible or far off; uncompressed, {front.metric} is {front.baseline:.4g}"
    found: list[RenderableType] = [table(None, columns, rows, right=("drop", *front.objectives)), summary]
    found += [front.verdict] if front.verdict else []
    found += [f"chosen: {front.chosen.pipeline}", front.reason]
    for made in front.finalists:
        low, high = made.interval
        against = "uniform 8-bit" if front.uniform is not None else "uncompressed"
        told = f"{made.name}: {front.metric} {show(made.metric)} ({made.metric.source})"
        found.append(f"{told}, {made.difference:+.4f} [{low:+.4f}, {high:+.4f}] to {against}; {made.exactness}")
    if front.report is not None:
        found.append(front.report.table())
    return [*found, *(f"note: {note}" for note in front.notes), f"written: {folder}/front.html, front.json, best.onnx, best/"]
