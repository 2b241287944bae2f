"""The compiling process: ``python -m gatewright.targets.tvm.worker FOLDER``. TVM is only ever imported here.

A process of its own, because TVM's C++ may crash on a model, or never end, and ignores Python's signals. FOLDER holds
``model.onnx`` and ``job.json``; the library and the constants are written there, and ``result.json`` says how it went.
What it is doing goes to standard output, so that the last line of a process that died says where.
"""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

MODEL, JOB, RESULT = "model.onnx", "job.json", "result.json"


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
    """The files for ``model.onnx`` on the device of the job; returns what the manifest says of them."""
    import onnx_ir as ir

    from gatewright.frontend.model import Model
    from gatewright.hw.device import Device, Processor

    from .codegen import generate
    from .kernel import Policy
    from .link import link
    from .machine import Machine
    from .steps import program

    job = json.loads((folder / JOB).read_text(encoding="utf-8"))
    device = Device.from_json(job["device"])
    assert isinstance(device, Processor)
    model = Model(ir.load(folder / MODEL), job["name"])
    steps = program(model)
    policy = Policy(strict=job["strict"])
    module = generate(steps, Machine.of(device, job["threads"]), policy, lambda label: print(label, flush=True))
    print(f"machine code of {len(module.functions)} kernels", flush=True)
    return asdict(link(module, steps, device, job["linker"], folder))


if __name__ == "__main__":
    # tvm_ffi imports torch where it is installed, for a conversion that nothing here uses; that takes a second.
    sys.modules["torch"] = None  # type: ignore[assignment]
    sys.exit(main(Path(sys.argv[1])))
