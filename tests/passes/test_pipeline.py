"""Pipelines: text to passes and back, history, errors, and verification between stages that catches a pass that lies."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir
import pytest
from strategies import build, dataset

from gatewright.errors import PassError, UsageError
from gatewright.frontend.load import load
from gatewright.frontend.model import Model
from gatewright.passes.base import Effect, Pass, PassContext, PassResult
from gatewright.passes.fuse import Fuse
from gatewright.passes.pipeline import PASSES, Pipeline, pass_class
from gatewright.passes.quantize import Quantize


@pytest.mark.parametrize(
    "text",
    ["", "fuse", "fold{cse=false},fuse", "fuse,prune{kind=channel,amount=0.3,exclude=a|b},quantize{bits=4,grid=pow2}", "prune{norm=l1}"],
)
def test_text_round_trips(text: str) -> None:
    assert str(Pipeline.parse(text)) == text
    assert Pipeline.parse(str(Pipeline.parse(text))) == Pipeline.parse(text)


def test_every_registered_pass_is_a_frozen_dataclass_of_that_name() -> None:
    for name in PASSES:
        cls = pass_class(name)
        assert cls.name == name
        assert cls.effect in ("exact", "lossy")
        assert cls() == cls()
        with pytest.raises(AttributeError):
            cls().anything = 1  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("fuze", "did you mean fuse"), ("fuse{x=1}", "no option 'x'"), ("fuse{", "never closed"), ("prune{amount=many}", "takes a number"),
        ("prune{amount=0.1,amount=0.2}", "twice"), ("prune{kind}", "key=value"),
    ],
)  # fmt: skip
def test_wrong_words(text: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Pipeline.parse(text)


def test_what_a_user_may_hand_over() -> None:
    assert Pipeline.of("fuse") == Pipeline.of(Fuse()) == Pipeline.of(Pipeline((Fuse(),)))
    assert Pipeline.of("quantize").needs_data
    assert not Pipeline.of("fuse").needs_data


def test_history_replays_the_model() -> None:
    model = build(1, ["conv", "batch_norm", "relu"])
    context = PassContext(data=dataset(model))
    small = Pipeline.parse("fuse,prune{amount=0.2},quantize{grid=pow2}").run(model, context)
    steps = [step.text for step in small.history if step.action == "pass"]
    assert steps == ["fuse", "prune{amount=0.2}", "quantize{grid=pow2}"]
    again = Pipeline.parse(",".join(steps)).run(model, context)
    assert again.digest == small.digest
    assert again.to_bytes() == small.to_bytes()


def test_the_given_model_is_left_alone() -> None:
    model = build(1, ["conv", "batch_norm", "relu", "pad_conv"])
    before = model.digest
    Pipeline.parse("fold,fuse,prune{amount=0.5},prune{kind=channel},quantize").run(model, PassContext(data=dataset(model)))
    assert model.digest == before


def test_results_survive_a_file() -> None:
    model = build(1, ["conv", "relu"])
    q = Pipeline.parse("fuse,quantize{bits=4}").run(model, PassContext(data=dataset(model)))
    again = load(q.to_bytes(), name=q.name)
    assert again.digest == q.digest


def test_an_error_names_the_pass_and_those_before() -> None:
    model = build(1, ["conv"])
    with pytest.raises(PassError, match=r"pass quantize \(after fuse,fold\) needs data"):
        Pipeline.parse("fuse,fold,quantize").run(model)
    with pytest.raises(PassError, match=r"pass prune \(after fuse,quantize\): .*prune first"):
        Pipeline.parse("fuse,quantize,prune").run(model, PassContext(data=dataset(model)))
    with pytest.raises(PassError, match=r"pass stumbles \(after fuse\) failed on random: ZeroDivisionError"):
        Pipeline((Fuse(), Stumbles())).run(model)


@dataclass(frozen=True)
class Stumbles(Pass):
    name: ClassVar[str] = "stumbles"
    effect: ClassVar[Effect] = "exact"

    def run(self, model: Model, context: PassContext) -> PassResult:
        return PassResult(model, bool(1 // 0))


@dataclass(frozen=True)
class Nudges(Pass):
    """Claims to be exact, and changes one weight by ``by``."""

    name: ClassVar[str] = "nudges"
    effect: ClassVar[Effect] = "exact"
    by: float = 0.01

    def run(self, model: Model, context: PassContext) -> PassResult:
        edited = model.copy_ir()
        weights = (v for v in edited.graph.initializers.values() if v.dtype in (ir.DataType.FLOAT, ir.DataType.INT8))
        value = next(v for v in weights if len(v.shape or ()) > 1)
        assert value.const_value is not None
        array = np.array(value.const_value.numpy())
        array.flat[0] += array.dtype.type(self.by)
        value.const_value = ir.Tensor(array, name=value.name)
        return PassResult(model.with_ir(edited), True)


@dataclass(frozen=True)
class Breaks(Pass):
    """Leaves a broken graph in one of several ways."""

    name: ClassVar[str] = "breaks"
    effect: ClassVar[Effect] = "lossy"
    how: str = "name"

    def run(self, model: Model, context: PassContext) -> PassResult:
        edited = model.copy_ir()
        nodes = list(edited.graph)
        match self.how:
            case "name":
                nodes[0].name = nodes[1].name
            case "value":
                nodes[0].outputs[0].name = nodes[1].outputs[0].name
            case "shape":
                nodes[0].outputs[0].shape = ir.Shape([1, 2, 3, 4])
            case "order":
                edited.graph.remove(nodes[0])
                edited.graph.append(nodes[0])
            case "dead":
                edited.graph.append(ir.node("Relu", [nodes[0].outputs[0]], name="dead"))
            case "input":
                nodes[0].replace_input_with(1, None)
        return PassResult(model.with_ir(edited), True)


@pytest.mark.parametrize("how", ["name", "value", "shape", "order", "dead", "input"])
def test_a_broken_graph_is_caught(how: str) -> None:
    model = build(1, ["conv", "relu"])
    with pytest.raises(PassError, match=r"pass breaks.* left a broken graph"):
        Pipeline((Breaks(how),)).run(model)
    Pipeline((Breaks(how),)).run(model, verify="none")


def test_a_pass_that_lies_about_being_exact_is_caught() -> None:
    model = build(1, ["conv", "relu"])
    with pytest.raises(PassError, match=r"pass nudges.*says that it is exact"):
        Pipeline((Nudges(),)).run(model, verify="numeric")
    Pipeline((Nudges(),)).run(model)
    Pipeline((Nudges(1e-9),)).run(model, verify="numeric")


def test_one_step_of_one_integer_weight_is_caught() -> None:
    model = build(1, ["conv", "relu"])
    q = Pipeline((Fuse(), Quantize())).run(model, PassContext(data=dataset(model)))
    with pytest.raises(PassError, match=r"says that it is exact, but 'v\d+(_q)?' changed"):
        Pipeline((Nudges(1.0),)).run(q, verify="numeric")
