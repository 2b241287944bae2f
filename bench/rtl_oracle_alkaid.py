"""alkaid's side of ``rtl_oracle.py``: runs in a Python that has alkaid (LGPL), speaks JSON, imports nothing of gatewright.

    {"weight": …, "bounds": …}                             one matrix: alkaid's list of additions
    {"bounds": …, "layers": …, "stages": …, "x": …,        a whole network: its outputs for x; Verilog goes to "folder"
     "folder": …, "rounding": …, "ternary": …}

A layer is {"gather": [positions][taps] into the values before it, −1 for padding; "weight": [rows][taps]; "bias": [rows];
"shift": [rows], "lo", "hi"}: clamp(round((weight·taps + bias)·2^−shift)), its values in the order [rows][positions].
"""

from __future__ import annotations

import json
import sys
import time
from typing import Any


def matrix(given: dict[str, Any]) -> dict[str, Any]:
    import numpy as np
    from alkaid._binary import cmvm_solve

    start = time.perf_counter()
    stages = cmvm_solve(np.array(given["weight"], np.float32).T.copy(), qintervals=[(lo, hi, 1.0) for lo, hi in given["bounds"]])
    return {
        "seconds": time.perf_counter() - start,
        "stages": [
            {
                "shifts": [int(v) for v in s.inp_shifts], "out": [int(v) for v in s.out_idxs], "out_shifts": [int(v) for v in s.out_shifts],
                "out_negs": [bool(v) for v in s.out_negs], "ops": [[o.opcode, list(o.addr), list(o.data)] for o in s.ops],
            } for s in stages
        ],
    }  # fmt: skip


def network(given: dict[str, Any]) -> dict[str, Any]:
    import numpy as np
    from alkaid.codegen import RTLModel
    from alkaid.trace import FVArray, HWConfig, trace
    from alkaid.trace.pipeline import to_pipeline

    start = time.perf_counter()
    low, high = (np.array(ends, float) for ends in zip(*given["bounds"], strict=True))
    inputs = FVArray.from_lhs(low, high, np.ones(len(low)), hwconf=HWConfig(1, -1, -1))
    values: Any = inputs
    for layer in given["layers"]:
        weight, bias, shift = (np.array(layer[key], float) for key in ("weight", "bias", "shift"))
        signed = layer["lo"] < 0
        bits = (max(layer["hi"], -layer["lo"] - 1)).bit_length()
        rows = []
        for taps in layer["gather"]:
            there = [position for position, tap in enumerate(taps) if tap >= 0]
            total = values[[taps[position] for position in there]] @ weight[:, there].T + bias
            rows.append((total * 2.0**-shift).quantize(int(signed), bits, 0, overflow_mode="SAT", round_mode=given["rounding"]))
        values = FVArray(np.stack([np.asarray(row) for row in rows], axis=1).reshape(-1))
    found = trace(inputs, values, keep_dead_inputs=True)
    outputs = found.predict(np.array(given["x"], float))
    machine = to_pipeline(found, n_stages=given["stages"], verbose=False, reg_inp=False, reg_out=True)
    RTLModel(machine, given["folder"], "oracle", print_latency=False, ternary_fuse=given["ternary"]).write()
    return {"seconds": time.perf_counter() - start, "y": np.asarray(outputs).astype(int).tolist(), "cost": float(found.cost)}


if __name__ == "__main__":
    request = json.load(sys.stdin)
    json.dump(matrix(request) if "weight" in request else network(request), sys.stdout)
