"""QONNX's operators as QDQ, compared with QONNX's own executor."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

import gatewright as gw
from gatewright.errors import MismatchError, ModelError, ToolMissing
from gatewright.frontend import qonnx_import
from gatewright.frontend.load import load

pytest.importorskip("qonnx")

DOMAIN = "qonnx.custom_op.general"
RNG = np.random.default_rng(0)


class Net:
    """A graph of QONNX under construction."""

    def __init__(self, *shape: int) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.held: list[onnx.TensorProto] = []
        self.shape = shape
        self.last = "x"

    def constant(self, array: Any) -> str:
        name = f"c{len(self.held)}"
        self.held.append(numpy_helper.from_array(np.asarray(array, np.float32), name))
        return name

    def add(self, op: str, *inputs: str, domain: str = "", **attributes: Any) -> str:
        self.last = f"v{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, list(inputs), [self.last], name=f"{op}_{len(self.nodes)}", domain=domain, **attributes))
        return self.last

    def quant(self, value: str, scale: Any, bits: float, zero: float = 0, **attributes: Any) -> str:
        given = {"signed": 1, "narrow": 0, "rounding_mode": "ROUND"} | attributes
        return self.add("Quant", value, *map(self.constant, (scale, zero, bits)), domain=DOMAIN, **given)

    def proto(self) -> onnx.ModelProto:
        x = helper.make_tensor_value_info("x", 1, list(self.shape))
        y = helper.make_tensor_value_info(self.last, 1, None)
        graph = helper.make_graph(self.nodes, "net", [x], [y], self.held)
        imports = [helper.make_opsetid("", 16), helper.make_opsetid(DOMAIN, 1)]
        return onnx.shape_inference.infer_shapes(helper.make_model(graph, opset_imports=imports, ir_version=8))


def mlp(bits: int = 8, weight_bits: int = 8) -> onnx.ModelProto:
    net = Net(1, 16)
    x = net.quant("x", 0.0625, bits)
    w = net.quant(net.constant(RNG.normal(size=(16, 12)) * 0.3), 0.125 if weight_bits < 8 else 0.0078125, weight_bits, narrow=1)
    h = net.quant(net.add("Relu", net.add("MatMul", x, w)), 0.125, bits, signed=0)
    w = net.quant(net.constant(RNG.normal(size=(12, 4)) * 0.3), np.full((1, 4), 0.0625) * [1, 2, 4, 1], weight_bits)
    net.add("Add", net.add("MatMul", h, w), net.constant(RNG.normal(size=4)))
    return net.proto()


def cnn() -> onnx.ModelProto:
    net = Net(1, 3, 8, 8)
    x = net.quant("x", 0.0625, 8)
    w = net.quant(net.constant(RNG.normal(size=(6, 3, 3, 3)) * 0.2), 2.0 ** RNG.integers(-7, -4, (6, 1, 1, 1)), 6)
    b = net.quant(net.constant(RNG.normal(size=6)), 2.0**-10, 16)
    c = net.quant(net.add("Relu", net.add("Conv", x, w, b, kernel_shape=[3, 3])), 0.125, 4, signed=0)
    net.add("GlobalAveragePool", net.add("MaxPool", c, kernel_shape=[2, 2], strides=[2, 2]))
    return net.proto()


def bipolar() -> onnx.ModelProto:
    net = Net(1, 16)
    x = net.add("BipolarQuant", "x", net.constant(1.0), domain=DOMAIN)
    w = net.add("BipolarQuant", net.constant(RNG.normal(size=(16, 8))), net.constant(0.5), domain=DOMAIN)
    net.add("BipolarQuant", net.add("MatMul", x, w), net.constant(1.0), domain=DOMAIN)
    return net.proto()


def truncated() -> onnx.ModelProto:
    net = Net(1, 16)
    x = net.quant("x", 0.0625, 8)
    net.add("Trunc", x, *map(net.constant, (0.0625, 0, 8, 4)), domain=DOMAIN, rounding_mode="FLOOR")
    return net.proto()


MODELS = {"mlp": mlp, "mlp_4_bits": lambda: mlp(4, 4), "mlp_3_bits": lambda: mlp(5, 3), "cnn": cnn, "bipolar": bipolar, "trunc": truncated}


@pytest.mark.parametrize("name", MODELS)
def test_equal_to_qonnx(name: str) -> None:
    model = load(MODELS[name]())
    step = model.history[-1]
    assert (step.action, step.details["checked"]["samples"]) == ("qonnx", 8)
    assert max(step.details["checked"]["difference"].values()) <= 1e-4
    kinds = {v.dtype.name for v in model.graph.initializers.values() if v.dtype is not None}
    assert kinds & {"INT4", "INT8", "UINT4", "INT16"}


@pytest.mark.parametrize("rounding", ["ROUND", "CEIL", "FLOOR", "UP", "DOWN", "HALF_UP", "HALF_DOWN"])
@pytest.mark.parametrize(("zero", "signed", "bits"), [(0, 1, 8), (3, 0, 8), (2, 0, 6), (0, 1, 20)])
def test_every_rounding(rounding: str, zero: int, signed: int, bits: int) -> None:
    net = Net(8, 16)
    scaled = net.add("Mul", net.add("Round", net.add("Mul", "x", net.constant(8.0))), net.constant(0.0625))
    net.quant(scaled, 0.125, bits, zero, signed=signed, rounding_mode=rounding)
    # The input lies on halves of the grid: every tie is met.
    assert max(load(net.proto()).history[-1].details["checked"]["difference"].values()) == 0


def test_a_quantized_network_fits_hls() -> None:
    assert gw.check(load(mlp()), "hls:pynq-z2").ok


def test_bytes_are_read_in_a_process_of_their_own() -> None:
    assert load(mlp().SerializeToString()).history[-1].action == "qonnx"


def test_a_wrong_conversion_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(qonnx_import._Conversion, "clipped", lambda self, q, *_: q)
    with pytest.raises(MismatchError, match="differs from that of QONNX"):
        load(mlp(3, 3))


def test_what_has_no_form_here() -> None:
    def refused(match: str, *changes: tuple[int, Any], **attributes: Any) -> None:
        net = Net(1, 4)
        values: list[Any] = [0.5, 0, 8]
        for index, value in changes:
            values[index] = value
        net.quant("x", values[0], values[2], values[1], **attributes)
        with pytest.raises(ModelError, match=match):
            load(net.proto())

    refused("'ODD', which is none of", rounding_mode="ODD")
    refused("has 40 bits", (2, 40))
    refused(r"width 7\.5 is no whole number", (2, 7.5))
    refused("scale is not positive", (0, 0.0))
    refused("lies outside of", (1, 500))
    proto = mlp()
    proto.graph.node[0].input[1] = "x"
    with pytest.raises(ModelError, match=r"scale is computed, not constant .*qonnx-cleanup"):
        load(proto)
    proto = mlp()
    proto.graph.node[0].op_type = "MultiThreshold"
    with pytest.raises(ModelError, match="MultiThreshold has no form here"):
        load(proto)
    # QONNX's executor imports a module of the domain's name.
    proto.graph.node[1].domain = "os"
    with pytest.raises(ModelError, match="of domain 'os'"):
        load(proto)


def test_without_the_extra_it_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "qonnx", None)
    with pytest.raises(ToolMissing, match=r"pip install 'gatewright\[qonnx\]'"):
        load(mlp())
