"""What a compiled program's HLO and memory analysis mean for the model: per node the unit that multiplies, and shares of the whole."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

from gatewright.errors import DoesNotFit
from gatewright.frontend.model import Model
from gatewright.frontend.work import layer_costs

from .hlo import read
from .names import mangled

INTEGER_UNITS = ("int4", "int8", "vector-int")
MATRIX_UNITS = ("int4", "int8", "bf16")
"""What multiplies at the matrix unit's full rate; float32 takes several passes there."""


def described(text: str, memory: Any, model: Model, job: dict[str, Any]) -> dict[str, Any]:
    """For the manifest. Raises DoesNotFit where the cores' memory is too small.

    Memory, of one core: arguments (weights and inputs), results, scratch space and code.
    """
    sizes = {
        "arguments": memory.argument_size_in_bytes, "outputs": memory.output_size_in_bytes, "temporaries": memory.temp_size_in_bytes,
        "code": memory.generated_code_size_in_bytes, "aliased": memory.alias_size_in_bytes,
    }  # fmt: skip
    total = sum(sizes.values()) - 2 * sizes["aliased"]
    if job["memory_bytes"] is not None and total > job["memory_bytes"]:
        raise DoesNotFit(
            f"{job['name']} needs {total:,} bytes of a core's memory, {job['label']} has {job['memory_bytes']:,}",
            hint="a smaller batch, int8 weights, or mesh=model over more chips",
        )
    reading = read(text)
    units = reading.units()
    layers = []
    by_unit: dict[str, int] = defaultdict(int)
    for cost in layer_costs(model):
        if cost.macs:
            unit = units.get(mangled(cost.name), "none")
            by_unit[unit] += cost.macs
            layers.append({"name": cost.name, "op": cost.op, "macs": cost.macs, "unit": unit})
    compiled: dict[str, int] = defaultdict(int)
    for product in reading.products:
        compiled[product.unit] += product.macs
    macs = sum(by_unit.values())
    return {
        "memory": {**sizes, "total": total, "available": job["memory_bytes"]},
        "products": {
            "layers": layers, "macs": macs, "by_unit": dict(by_unit), "compiled_macs": dict(compiled),
            "integer_share": sum(by_unit[unit] for unit in INTEGER_UNITS) / macs if macs else None,
            "matrix_share": sum(by_unit[unit] for unit in MATRIX_UNITS) / macs if macs else None,
        },
        "collectives": {kind: {"count": count, "bytes": size} for kind, (count, size) in sorted(reading.collectives.items())},
    }  # fmt: skip
