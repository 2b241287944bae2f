"""What training minimizes: which value of the graph is held to the labels, by which loss, and when a sample counts as right.

A classifier is trained on its logits: where its output is a Softmax or Sigmoid (quantized or not), the value before it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
import onnx_ir as ir
import torch
from torch import Tensor
from torch.nn import functional

from gatewright.errors import DataError, UsageError, nearest
from gatewright.frontend.data import Dataset
from gatewright.frontend.edit import Array
from gatewright.frontend.model import Model
from gatewright.frontend.queries import shape_of

from .executor import Executor
from .options import Training

Kind = Literal["classes", "binary", "values"]


class Objective(Protocol):
    """One batch's loss."""

    def __call__(self, net: Executor, feeds: dict[str, Array], labels: Array | None, training: bool) -> tuple[Tensor, float]:
        """The mean loss over the samples of ``feeds``, and how many of them are right (0 where nothing is right or wrong).

        ``training``: BatchNormalization is in training mode.
        """


@dataclass(frozen=True)
class Task:
    """Labels and the value they belong to. An ``Objective``: the label loss alone."""

    value: str
    """Name of the logits, or of the values."""
    kind: Kind
    axis: int = -1
    """classes: the axis of the classes."""
    smoothing: float = 0.0

    @classmethod
    def of(cls, model: Model, data: Dataset, options: Training) -> Task:
        """Raises DataError without labels, or where no output fits them."""
        if data.labels is None:
            told = f"pass {options.name!r} learns from labels, {data.name or 'the data'} has none"
            raise DataError(told, hint="labels=NAME of their array")
        tried = []
        for output in _outputs(model, options.output):
            logits, activation = logits_of(output)
            task = _fits(logits, activation, data.labels, options)
            if isinstance(task, Task):
                return task
            tried.append(f"{output.name} {list(shape_of(output))}: {task}")
        given = f"labels {data.labels.dtype}{list(data.labels.shape)}"
        raise DataError(f"{given} fit no output ({'; '.join(tried)})", hint="name it with output=")

    @classmethod
    def unlabelled(cls, model: Model, options: Training) -> Task:
        """Of the first float output: classes along axis 1 of images, else along the last."""
        logits, _ = logits_of(_outputs(model, options.output)[0])
        return cls(logits.name or "", "classes", 1 if len(shape_of(logits)) == 4 else -1)

    def __call__(self, net: Executor, feeds: dict[str, Array], labels: Array | None, training: bool) -> tuple[Tensor, float]:
        z = net.run(net.feeds(feeds), [self.value], training=training)[self.value]
        assert labels is not None
        y = torch.from_numpy(np.array(labels))
        return self.loss(z, y), self.right(z.detach(), y)

    def loss(self, z: Tensor, y: Tensor) -> Tensor:
        """The mean loss of values ``z`` against labels ``y``."""
        # Under bfloat16 the loss itself is computed in float32.
        z = z.float() if z.dtype == torch.bfloat16 else z
        if self.kind == "classes":
            return functional.cross_entropy(z.movedim(self.axis, 1), y.to(torch.int64), label_smoothing=self.smoothing)
        y = y.to(z.dtype).reshape(z.shape)
        return functional.binary_cross_entropy_with_logits(z, y) if self.kind == "binary" else functional.mse_loss(z, y)

    def right(self, z: Tensor, y: Tensor) -> float:
        """How many samples are right; a sample with a label for each position counts by the share of them that are."""
        if self.kind == "values":
            return 0.0
        right = z.argmax(self.axis) == y if self.kind == "classes" else (z > 0) == (y.reshape(z.shape) > 0.5)
        return float(right.to(torch.float64).mean()) * len(y)


def logits_of(output: ir.Value) -> tuple[ir.Value, str | None]:
    """The value before a final Softmax, LogSoftmax or Sigmoid, and which it was; the output itself where there is none."""
    value: ir.Value | None = output
    while value is not None:
        producer = value.producer()
        if producer is None:
            break
        if producer.op_type in ("Softmax", "LogSoftmax", "Sigmoid"):
            source = producer.inputs[0]
            assert source is not None
            return source, producer.op_type
        if producer.op_type not in ("DequantizeLinear", "QuantizeLinear", "Clip", "Identity", "Reshape", "Cast"):
            break
        value = producer.inputs[0]
    return output, None


def _outputs(model: Model, name: str | None) -> list[ir.Value]:
    outputs = [v for v in model.graph.outputs if name is None or v.name == name]
    if not outputs:
        known = [v.name or "" for v in model.graph.outputs]
        raise UsageError(f"output={name} is no output of {model.name}", hint=nearest(str(name), known, "outputs"))
    floats = [v for v in outputs if v.dtype is not None and v.dtype.is_floating_point()]
    # A quantized classifier gives integers: its logits are computed all the same.
    return floats or outputs


def _fits(value: ir.Value, activation: str | None, labels: Array, options: Training) -> Task | str:
    """The task of predicting ``labels`` (axis 0: samples) with ``value``, or why it is none."""
    shape, wanted = shape_of(value), labels.shape
    whole = labels.dtype.kind in "iub"
    if activation == "Sigmoid" and options.loss != "mse" and _same(shape[1:], wanted[1:]):
        return Task(value.name or "", "binary")
    if options.loss == "cross_entropy" or (options.loss == "auto" and whole):
        if not whole:
            return "cross entropy takes class numbers"
        for axis in dict.fromkeys((len(shape) - 1, 1)):
            others = shape[1:axis] + shape[axis + 1 :]
            if 1 <= axis < len(shape) and _same(others, wanted[1:]) and shape[axis] > 1:
                low, high = int(labels.min()), int(labels.max())
                if low < 0 or high >= shape[axis]:
                    raise DataError(f"labels run from {low} to {high}, output {value.name!r} has {shape[axis]} classes")
                return Task(value.name or "", "classes", axis, options.smoothing)
        if options.loss == "cross_entropy":
            return "no axis of classes is left over"
    if labels.dtype.kind in "iufb" and _same(shape[1:], wanted[1:]):
        return Task(value.name or "", "values")
    return "another shape"


def _same(a: tuple[int, ...], b: tuple[int, ...]) -> bool:
    """Equal shapes of a sample, axes of one aside."""
    return [d for d in a if d != 1] == [d for d in b if d != 1]
