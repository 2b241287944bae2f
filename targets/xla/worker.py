"""The compiling process: ``python -m gatewright.targets.xla.worker FOLDER``. JAX is only ever imported here and in ``serve.py``.

FOLDER holds ``model.onnx`` and ``job.json``; the portable programs, the weights and, if the job asks for it, what XLA's TPU compiler
made are written there, and ``result.json`` says how it went. What it is doing goes to standard output.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from gatewright.frontend.model import Model

    from .chips import Slice
    from .program import Program

MODEL, JOB, RESULT, WEIGHTS = "model.onnx", "job.json", "result.json", "weights.bin"
ALIGNMENT = 64
"""Of every weight in the file, bytes."""
QUICK = {"exec_time_optimization_effort": -1.0, "memory_fitting_effort": -1.0}
"""XLA's compiler options for less searching; 0 is its usual effort."""
TRACED_BYTES = 64 << 20
"""Inner tensors of one sample up to this many bytes may be looked at (Executor.trace)."""


def main(folder: Path) -> int:
    """Compile; an error that a user can act on goes into RESULT, any other ends the process."""
    from gatewright.errors import GatewrightError

    try:
        result: dict[str, Any] = {"built": build(folder)}
    except GatewrightError as error:
        result = {"error": type(error).__name__, "message": error.message, "hint": error.hint}
    (folder / RESULT).write_text(json.dumps(result), encoding="utf-8")
    return 0


def build(folder: Path) -> dict[str, Any]:
    """The files for ``model.onnx``; returns what the manifest says of them."""
    from gatewright.frontend.batch import batch_reason, with_batch
    from gatewright.frontend.mapped import reopened
    from gatewright.frontend.model import Model

    from .mesh import splits
    from .program import Policy, Program

    job = json.loads((folder / JOB).read_text(encoding="utf-8"))
    model = Model(reopened(folder / MODEL), job["name"])
    policy = Policy(job["precision"], job["int4"])
    per_sample = batch_reason(model) is None
    batches: Sequence[int] = job["batches"] if per_sample else [_batch(model)]
    entries, weights, split = [], None, {}
    for batch in batches:
        sized = with_batch(model, batch) if per_sample and _batch(model) != batch else model
        program = Program(sized, policy)
        if weights is None:
            weights, split = program.weights, splits(program.plan, program.weights) if job["mesh"] == "model" else {}
            index = _write_weights(folder / WEIGHTS, weights)
        entries.append(_portable(program, batch, folder))
        if job["slice"]:
            entries[-1] |= _ahead_of_time(program, sized, batch, job, split, folder)
    _tell("tracing the inner tensors")
    single = with_batch(model, 1) if per_sample and _batch(model) != 1 else model
    return {
        "per_sample": per_sample, "weights": index, "buckets": entries, "splits": {name: list(axes) for name, axes in split.items()},
        "outputs": list(program.names), "trace": _trace(single, policy, folder),
    }  # fmt: skip


def _batch(model: Model) -> int:
    return model.inputs[0].shape[0] if model.inputs and model.inputs[0].shape else 1


def _write_weights(file: Path, weights: dict[str, Any]) -> list[dict[str, Any]]:
    """Raw bytes one after the other; 4-bit values one to a byte."""
    index, offset = [], 0
    with open(file, "wb") as stream:
        for name, array in weights.items():
            pad = -offset % ALIGNMENT
            data = np.ascontiguousarray(array).tobytes()
            stream.write(bytes(pad) + data)
            offset += pad
            index.append({"name": name, "dtype": array.dtype.name, "shape": list(array.shape), "offset": offset})
            offset += len(data)
    return index


def _shapes(program: Program, sharding: Any = None, weights: Any = None) -> tuple[dict[str, Any], list[Any]]:
    """Abstract weights and inputs; ``sharding``: of an input, by rank; ``weights``: of a weight, by name."""
    import jax

    held = {
        name: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=weights(name) if weights else None) for name, a in program.weights.items()
    }
    given = [jax.ShapeDtypeStruct(s, d, sharding=sharding(s) if sharding else None) for _, s, d in program.inputs]
    return held, given


def _portable(program: Program, batch: int, folder: Path) -> dict[str, Any]:
    """The program as StableHLO that any of XLA's platforms runs, weights apart."""
    import jax
    from jax import export

    _tell(f"the portable program for batch {batch}")
    held, given = _shapes(program)
    found = export.export(jax.jit(program.__call__), platforms=["cpu", "tpu", "cuda"])(held, *given)
    name, text = f"program_b{batch}.bin", f"stablehlo_b{batch}.mlir"
    (folder / name).write_bytes(found.serialize())
    (folder / text).write_text(found.mlir_module(), encoding="utf-8")
    outputs = [{"shape": list(a.shape), "dtype": np.dtype(a.dtype).name} for a in found.out_avals]
    return {"batch": batch, "program": name, "stablehlo": text, "outputs": outputs}


def _trace(model: Model, policy: Any, folder: Path) -> dict[str, Any] | None:
    """A program of one sample that gives every inner tensor; None where those are too large."""
    import jax
    from jax import export

    from .program import Program

    program = Program(model, policy, inner=True)
    held, given = _shapes(program)
    found = export.export(jax.jit(program.__call__), platforms=["cpu"])(held, *given)
    outputs = [
        {"name": name, "shape": list(a.shape), "dtype": np.dtype(a.dtype).name}
        for name, a in zip(program.names, found.out_avals, strict=True)
    ]
    if sum(int(np.prod(o["shape"])) * np.dtype(o["dtype"]).itemsize for o in outputs) > TRACED_BYTES:
        return None
    (folder / "trace.bin").write_bytes(found.serialize())
    return {"program": "trace.bin", "outputs": outputs}


def _ahead_of_time(program: Program, model: Model, batch: int, job: dict[str, Any], split: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Compiled by libtpu for the job's slice: the executable, its HLO, and what they say of memory, products and collectives."""
    import jax
    from jax.errors import JaxRuntimeError

    from gatewright.errors import DoesNotFit, ToolFailed

    from .chips import Slice
    from .outcome import described

    where = Slice(*job["slice"])
    _tell(f"XLA for {where.name}, batch {batch}")
    sharding, of_weight = _shardings(where, job["mesh"], split)
    held, given = _shapes(program, sharding, of_weight)
    try:
        compiled = jax.jit(program.__call__).lower(held, *given).compile(QUICK if job["quick"] else None)
    except JaxRuntimeError as error:
        said = str(error).strip()
        line = next((part.strip() for part in said.splitlines() if part.strip()), "it says nothing")[:300]
        if "RESOURCE_EXHAUSTED" in said or "memory space hbm" in said:
            raise DoesNotFit(
                f"{job['name']} does not fit the memory of {where.name}: {line}", hint="a smaller batch, int8, or mesh=model"
            ) from None
        raise ToolFailed(f"XLA cannot compile {job['name']} for {where.name}: {line}") from None
    text = compiled.as_text() or ""
    files = {"hlo": f"hlo_b{batch}.txt", "executable": f"executable_b{batch}.bin"}
    (folder / files["hlo"]).write_text(text, encoding="utf-8")
    (folder / files["executable"]).write_bytes(compiled.runtime_executable().serialize())
    return {**files, **described(text, compiled.memory_analysis(), model, job)}


def _shardings(where: Slice, mesh: str, split: dict[str, Any]) -> tuple[Any, Any]:
    """Of an input by its shape, and of a weight by its name, on the slice's cores."""
    from jax.experimental import topologies
    from jax.sharding import SingleDeviceSharding

    more: dict[str, Any] = {} if where.host_bounds is None else {"chips_per_host_bounds": where.host_bounds}
    devices = list(topologies.get_topology_desc(platform="tpu", topology_name=where.name, **more).devices)
    if mesh == "none":
        single = SingleDeviceSharding(devices[0])
        return (lambda shape: single), (lambda name: single)
    return placed(devices, mesh, split)


def placed(devices: Sequence[Any], mesh: str, split: dict[str, Any]) -> tuple[Any, Any]:
    """Shardings over several cores: samples over the axis "data", weights as ``split`` says over "model"."""
    import jax
    from jax.sharding import NamedSharding, PartitionSpec

    from .chips import ways

    data, halves = ways(mesh, len(devices))  # type: ignore[arg-type]
    grid = jax.sharding.Mesh(np.asarray(devices).reshape(data, halves), ("data", "model"))

    def of_input(shape: tuple[int, ...]) -> Any:
        return NamedSharding(grid, PartitionSpec("data") if shape and shape[0] % data == 0 else PartitionSpec())

    def of_weight(name: str) -> Any:
        return NamedSharding(grid, PartitionSpec(*split.get(name, ())))

    return of_input, of_weight


def _tell(what: str) -> None:
    print(what, flush=True)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
