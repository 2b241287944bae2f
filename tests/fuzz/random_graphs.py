"""Random valid ONNX graphs with inputs, and what each of their values is.

    graph = random_graph(17)          # the same seed gives the same graph
    graph.proto, graph.feeds, graph.values

A graph grows node by node. ONNX Runtime (without its optimizer), or onnx's reference evaluator where that lacks the operator, runs
each proposed node alone on the values at hand; what neither runs, what overflows and what grows too large is not taken. So every
graph is valid, every shape is known, and the values are an oracle that shares no code with this project.
"""

from __future__ import annotations

import numpy as np
from random_base import Graph
from random_elementwise import Elementwise
from random_movement import Movement
from random_quantized import Quantized

PROPOSALS = {
    "unary": 6, "binary": 6, "compare": 1, "logic": 0.7, "bits": 0.7, "where": 1, "clip": 1.5, "cast": 1.5, "reduce": 3, "arg": 0.7,
    "cumulative": 0.4, "top": 0.4, "reshape": 2, "transpose": 2, "flatten": 0.7, "squeeze": 0.8, "unsqueeze": 0.8, "concat": 1.5,
    "slice": 2, "split": 1, "pad": 1.2, "expand": 0.8, "tile": 0.7, "gather": 1.5, "scatter": 0.5, "shuffle": 0.6, "triangle": 0.4,
    "one_hot": 0.3, "reverse": 0.2, "resize": 0.8, "conv": 2.5, "conv_transpose": 0.8, "pool": 2, "global_pool": 0.7, "gemm": 1.5,
    "matmul": 2, "normalization": 1.5, "softmax": 1, "einsum": 0.4, "recurrent": 0.3, "branch": 0.3, "quantized": 5,
    "integer_operator": 0.8,
}  # fmt: skip
"""Methods of Maker, and how often each is tried."""


class Maker(Elementwise, Movement, Quantized):
    """One graph. Each method named in ``PROPOSALS`` tries to add something; one that finds no operand adds nothing."""

    def graph(self, nodes: int) -> Graph:
        self.input(self.shape())
        names = list(PROPOSALS)
        weights = np.array([PROPOSALS[name] for name in names], float)
        for _ in range(12 * nodes):
            if len(self.nodes) >= nodes:
                break
            getattr(self, str(self.random.choice(names, p=weights / weights.sum())))()
        return self.finish()


def random_graph(seed: int, most_nodes: int = 12) -> Graph:
    maker = Maker(seed)
    return maker.graph(int(maker.random.integers(1, most_nodes)))
