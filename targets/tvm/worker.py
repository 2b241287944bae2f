"""The compiling process: ``python -m gatewright.targets.tvm.worker FOLDER``. TVM is only ever imported here.

A process of its own, because TVM's C++ may crash on a model, or never end, and ignores Python's signals. FOLDER holds
``model.onnx`` and ``job.json``; the library and the constants are written there, and ``result.json`` says how it went.
What it is doing goes to standard output, so that the last line of a process that died says where.
"""

from __future__ import annotations

import json
import signal
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gatewright.hw.device import Processor

    from .codegen import Graph
    from .kernel import Policy
    from .search import Choices

MODEL, JOB, RESULT = "model.onnx", "job.json", "result.json"
MACHINE_CODE = "machine code"
"""How the line begins that says that LLVM is at work on all kernels at once."""


def main(folder: Path) -> int:
    """Compile; an error that a user can act on goes into RESULT, any other ends the process."""
    import tvm_ffi  # noqa: F401 (it installs a handler that prints a page of its own stack, behind the line that says where)

    from gatewright.errors import GatewrightError, UnsupportedOp

    signal.signal(signal.SIGSEGV, signal.SIG_DFL)
    try:
        result: dict[str, Any] = {"built": build(folder)}
    except UnsupportedOp as error:
        result = {"refused": {"node": error.node, "op": error.op, "rule": error.rule, "hint": error.hint}}
    except GatewrightError as error:
        result = {"error": type(error).__name__, "message": error.message, "hint": error.hint}
    (folder / RESULT).write_text(json.dumps(result), encoding="utf-8")
    return 0


def build(folder: Path) -> dict[str, Any]:
    """The files for ``model.onnx`` on the device of the job; returns what the manifest says of them."""
    from gatewright.errors import GatewrightError
    from gatewright.frontend.batch import batch_reason
    from gatewright.frontend.mapped import reopened
    from gatewright.frontend.model import Model
    from gatewright.hw.device import Device, Processor

    from .codegen import Graph, generate, names, refusal
    from .kernel import Policy, first
    from .link import Job, link
    from .machine import Machine
    from .outcome import described, unbuildable
    from .steps import program

    job = json.loads((folder / JOB).read_text(encoding="utf-8"))
    device = Device.from_json(job["device"])
    assert isinstance(device, Processor)
    model = Model(reopened(folder / MODEL), job["name"])
    steps = program(model)
    graph = Graph.of(steps, Machine.of(device, job["threads"]))
    policy = Policy(strict=job["strict"])
    choices = _searched(graph, policy, device, job, folder) if job["level"] else None
    policy = Policy(policy.strict, choices or first)
    module = generate(graph, policy, _tell)
    per_sample = batch_reason(model) is None
    batch = model.inputs[0].shape[0] if per_sample else 1
    purpose = Job(job["name"], batch, per_sample, job["threads"], job["linker"], job["cross"])
    refused = unbuildable(module, device, job["jobs"], _tell) if job["careful"] else {}
    for careful in (bool(refused), True):
        if refused:
            module = generate(graph, policy, _tell, refused)
            for call in module.calls:
                # Plain loops may not help either: then it is no kernel for this processor at all.
                if names(call.group) in refused and (why := unbuildable(module, device, job["jobs"], _tell).get(names(call.group))):
                    raise refusal(call.group, why)
        _tell(f"{MACHINE_CODE} of {len(module.functions)} kernels")
        try:
            files = asdict(link(module, steps, device, purpose, folder))
            break
        except GatewrightError:
            raise
        except Exception:
            # TVM refuses one of the kernels only now, in whatever words: which one is found by building each alone.
            refused = {} if careful else unbuildable(module, device, job["jobs"], _tell)
            if not refused:
                raise
    found = described(module, choices)
    return {**files, **found, "notes": [*found["notes"], *steps.notes]}


def _searched(graph: Graph, policy: Policy, device: Processor, job: dict[str, Any], folder: Path) -> Choices:
    """What levels 1 and 2 choose."""
    import tempfile
    from importlib.metadata import version

    from gatewright.hw.device import host

    from .link import llvm_target
    from .search import Search, footprint_bytes, linked
    from .timing import Bench
    from .tuning import TuningCache, fingerprint, source_digest

    damaged: list[str] = []

    def tell(what: str) -> None:
        _tell(what)
        damaged.append(what)

    footprint = footprint_bytes(list(graph.program.constants.values()), device)
    basis = {
        "device": fingerprint(device), "measured_on": fingerprint(host()), "threads": job["threads"], "tvm": version("apache-tvm"),
        "schedules": source_digest(), "footprint": footprint,
    }  # fmt: skip
    with tempfile.TemporaryDirectory(dir=folder) as work:
        bench = Bench(graph, policy, llvm_target(device), Path(work), job["threads"], footprint)
        cache = TuningCache(Path(job["tuning"]), basis, tell)
        link = linked(job["linker"])
        choices = Search(graph, policy, device, cache, Path(work), bench, link, job["jobs"], job["budget"], _tell).run(job["level"])
    choices.notes[:0] = damaged
    return choices


def _tell(what: str) -> None:
    print(what, flush=True)


if __name__ == "__main__":
    # tvm_ffi imports torch where it is installed, for a conversion that nothing here uses; that takes a second.
    sys.modules["torch"] = None  # type: ignore[assignment]
    sys.exit(main(Path(sys.argv[1])))
