"""The fuzzer itself: its graphs agree, a planted bug is found, and what it finds is shrunk to the node that is wrong."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent))

import differential
import random_graphs
from agreement import Judge

from gatewright.frontend import elementwise, float_layers, float_ops
from gatewright.frontend.load import load


def test_graphs_are_the_same_for_the_same_seed() -> None:
    one, again = random_graphs.random_graph(11), random_graphs.random_graph(11)
    assert one.proto.SerializeToString() == again.proto.SerializeToString()


def test_twenty_graphs_agree() -> None:
    found = differential.run_chunk(range(500, 520), ["cpu"], None)
    assert found["failures"] == []
    assert found["graphs"] == 20
    assert found["checked"]["oracle"] >= 15
    assert found["checked"]["ort"] >= 10


PLANTED = {
    # a seed whose graph has the operator in a place that matters, and a wrong meaning for it
    "Relu": (elementwise.FUNCTIONS, lambda node, v: np.maximum(v[0], np.asarray(0.01, v[0].dtype))),
    "Pad": (float_layers.OPERATORS, lambda node, v: float_layers.pad(node, v) + 1),
    "Concat": (float_ops.OPERATORS, lambda node, v: np.concatenate(v[::-1], axis=node.attributes["axis"].as_int())),
}


@pytest.mark.parametrize("operator", PLANTED)
def test_a_planted_bug_is_found_and_shrunk_to_its_node(monkeypatch: pytest.MonkeyPatch, operator: str) -> None:
    table, wrong = PLANTED[operator]
    monkeypatch.setitem(table, operator, wrong)
    for seed in range(2000, 2080):
        graph = random_graphs.random_graph(seed)
        if operator not in graph.operators or len(graph.proto.graph.node) < 3 or graph.is_quantized:
            continue
        found, _, _ = differential.run_graph(graph, differential.PASSES)
        if "oracle" in [stage for stage, _ in found.wrong]:
            small, why = differential.shrunk(graph, differential.PASSES, "oracle")
            assert [node.op_type for node in small.proto.graph.node if node.op_type != "Constant"] == [operator]
            assert "differ" in why
            return
    pytest.fail("no graph shows it")


def test_rounding_is_allowed_and_no_more() -> None:
    graph = next(g for g in map(random_graphs.random_graph, range(3000, 3100)) if "MatMul" in g.operators and not g.is_quantized)
    judge = Judge(load(graph.proto), graph.feeds)
    floats = {name: array for name, array in judge.wanted.items() if array.dtype == np.float32 and array.any()}
    for name, array in floats.items():
        assert judge.compare({**judge.wanted, name: np.asarray(array * np.float32(1.01))}) is not None
    assert judge.compare(judge.wanted) is None
