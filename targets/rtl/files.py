"""A network as a file, so that an artifact runs without the model: JSON, one row per node."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from gatewright.errors import GatewrightError

from .network import Network, Node, Port


def dump(network: Network) -> str:
    """Deterministic text."""
    rows = ",\n".join(json.dumps([n.op, list(n.args), list(n.params), n.lo, n.hi, n.layer], separators=(",", ":")) for n in network.nodes)
    head = {
        "inputs": [_port(port) for port in network.inputs],
        "outputs": [_port(port) for port in network.outputs],
        "results": [list(nodes) for nodes in network.results],
        "layers": list(network.layers),
        "traced": [[name, list(shape), list(nodes)] for name, shape, nodes in network.traced],
    }
    return json.dumps(head, separators=(",", ":"))[:-1] + f',"nodes":[\n{rows}\n]}}\n'


def load(path: Path) -> Network:
    """The inverse of ``dump``. Raises GatewrightError on a damaged file."""
    try:
        data: Any = json.loads(path.read_text(encoding="utf-8"))
        return Network(
            inputs=tuple(Port(**{**entry, "shape": tuple(entry["shape"])}) for entry in data["inputs"]),
            outputs=tuple(Port(**{**entry, "shape": tuple(entry["shape"])}) for entry in data["outputs"]),
            nodes=tuple(Node(op, tuple(args), tuple(params), lo, hi, layer) for op, args, params, lo, hi, layer in data["nodes"]),
            results=tuple(tuple(nodes) for nodes in data["results"]),
            layers=tuple(data["layers"]),
            traced=tuple((name, tuple(shape), tuple(nodes)) for name, shape, nodes in data["traced"]),
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise GatewrightError(f"{path} is no network of this version: {error}", hint="compile the model again") from None


def _port(port: Port) -> dict[str, Any]:
    return {"value": port.value, "shape": list(port.shape), "dtype": port.dtype, "lo": port.lo, "hi": port.hi}
