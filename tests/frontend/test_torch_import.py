"""PyTorch modules, compared with themselves."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import pytest

from gatewright.errors import MismatchError, ModelError, ToolMissing, UsageError
from gatewright.frontend.batch import batch_reason
from gatewright.frontend.load import load
from gatewright.frontend.ortrun import OrtSession

torch = pytest.importorskip("torch")


class Convolutional(torch.nn.Module):  # type: ignore[misc, name-defined]
    def __init__(self) -> None:
        super().__init__()
        self.conv = torch.nn.Conv2d(1, 4, 3, padding=1)
        self.norm = torch.nn.BatchNorm2d(4)
        self.drop = torch.nn.Dropout(0.5)
        self.head = torch.nn.Linear(4 * 7 * 7, 10)

    def forward(self, x: Any) -> Any:
        x = torch.nn.functional.max_pool2d(torch.relu(self.norm(self.conv(x))), 2)
        return self.head(self.drop(x.flatten(1)))


def test_a_convolutional_network() -> None:
    torch.manual_seed(0)
    module = Convolutional().train()
    model = load(module, example_inputs=torch.randn(3, 1, 14, 14))
    assert module.training, "the module's mode was changed"
    assert model.name == "Convolutional"
    assert model.history[-1].action == "torch"
    assert model.inputs[0].shape == (1, 1, 14, 14)
    assert batch_reason(model) is None
    x = torch.randn(1, 1, 14, 14)
    with torch.no_grad():
        expected = module.eval()(x).numpy()
    result = next(iter(OrtSession(model).run({model.inputs[0].name: x.numpy()}).values()))
    np.testing.assert_allclose(result, expected, rtol=1e-4, atol=1e-5)


def test_the_batch_can_be_set() -> None:
    model = load(torch.nn.Linear(4, 2), example_inputs=(torch.ones(1, 4),), dims={"batch": 5}, name="linear")
    assert (model.name, model.inputs[0].shape) == ("linear", (5, 4))
    with pytest.raises(UsageError, match="no dynamic axis 'time'"):
        load(torch.nn.Linear(4, 2), example_inputs=(torch.ones(1, 4),), dims={"time": 5})


@pytest.mark.parametrize("examples", [None, (), [1.0], (1, 2)])
def test_examples_are_needed(examples: Any) -> None:
    with pytest.raises(UsageError, match=r"load\(module, example_inputs=\(x,\)\)"):
        load(torch.nn.Linear(4, 2), example_inputs=examples)


def test_examples_that_do_not_fit() -> None:
    with pytest.raises(ModelError, match="Linear fails on its example_inputs"):
        load(torch.nn.Linear(4, 2), example_inputs=torch.ones(1, 3))


class Counting(torch.nn.Module):  # type: ignore[misc, name-defined]
    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def forward(self, x: Any) -> Any:
        self.calls += 1
        return x + 1, x * self.calls


def test_a_module_that_changes_is_noticed_at_its_worst_output() -> None:
    with pytest.raises(MismatchError, match=r"output 'mul' of 'Counting' differs"):
        load(Counting(), example_inputs=torch.ones(1, 2))


class Undecided(torch.nn.Module):  # type: ignore[misc, name-defined]
    def forward(self, x: Any) -> Any:
        return x if float(x.sum()) > 0 else -x


def test_what_torch_cannot_export() -> None:
    with pytest.raises(ModelError, match="torch cannot export Undecided"):
        load(Undecided(), example_inputs=torch.ones(1, 2))


def test_without_torch_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(ToolMissing, match=r"pip install 'gatewright\[torch\]'"):
        load(Convolutional(), example_inputs=None)


def test_a_transformer_layer_and_a_recurrent_one() -> None:
    class Sequence(torch.nn.Module):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.layer = torch.nn.TransformerEncoderLayer(32, 4, 64, batch_first=True)
            self.recurrent = torch.nn.GRU(32, 16, batch_first=True)
            self.head = torch.nn.Linear(16, 3)

        def forward(self, x: Any) -> Any:
            y, _ = self.recurrent(self.layer(x))
            return self.head(y[:, -1])

    torch.manual_seed(0)
    model = load(Sequence(), example_inputs=torch.randn(1, 8, 32))
    assert {"GRU", "LayerNormalization", "Softmax"} <= {node.op_type for node in model.graph}


class RelativeAttention(torch.nn.Module):  # type: ignore[misc, name-defined]
    """As T5 and Swin have it: what is added to the scores is looked up, and its axes lie in another order than its memory."""

    def __init__(self) -> None:
        super().__init__()
        self.project, self.output, self.bias = torch.nn.Linear(16, 48), torch.nn.Linear(16, 16), torch.nn.Embedding(12, 2)

    def forward(self, x: Any) -> Any:
        q, k, v = self.project(x).reshape(1, 6, 3, 2, 8).permute(2, 0, 3, 1, 4)
        distance = torch.arange(6)[:, None] + torch.arange(6)[None]
        mask = self.bias(distance).permute(2, 0, 1).unsqueeze(0)
        y = torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return self.output(y.transpose(1, 2).contiguous().reshape(1, 6, -1).contiguous())


@pytest.mark.parametrize("as_program", [False, True], ids=["module", "program"])
def test_attention_whose_mask_is_learned(as_program: bool) -> None:
    torch.manual_seed(0)
    x = torch.randn(1, 6, 16)
    module = RelativeAttention().eval()
    model = load(torch.export.export(module, (x,))) if as_program else load(module, example_inputs=x)
    with torch.no_grad():
        expected = module(x).numpy()
    result = next(iter(OrtSession(model).run({model.inputs[0].name: x.numpy()}).values()))
    np.testing.assert_allclose(result, expected, rtol=1e-4, atol=1e-5)
