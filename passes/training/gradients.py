"""Gradients of a model's loss for each sample, for those who judge weights by them (pruning, sensitivity). torch is imported when called.

r = importance(model, data, "gradient")["fc1.weight"]       # (1/N)·Σ_n |∂L_n/∂w|, an array like the weight
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Literal

import numpy as np

from gatewright.errors import PassError
from gatewright.frontend.batch import batch_reason
from gatewright.frontend.data import Dataset
from gatewright.frontend.edit import Array
from gatewright.frontend.model import Model
from gatewright.progress import Progress, silent

from .options import Training
from .require import require_torch

Kind = Literal["gradient", "taylor", "fisher"]
"""gradient: |∂L_n/∂w|. taylor: |w·∂L_n/∂w|, what the loss would change by without w, to first order (Molchanov et al. 2017,
arXiv:1611.06440; SNIP, Lee et al. 2019, arXiv:1810.02340). fisher: (∂L_n/∂w)², the diagonal of the empirical Fisher matrix."""

CHUNK_BYTES = 128 << 20
"""Gradients of single samples that are held at once stay below this."""


def importance(
    model: Model, data: Dataset, kind: Kind = "gradient", *, options: Training | None = None, progress: Progress = silent
) -> dict[str, Array]:
    """The mean over samples of ``kind``, by the weight's ONNX name, float64, in the weight's shape.

    A quantized weight's is that of the real number it stands for. ``options`` say which loss, which output and what is frozen, as
    for fine-tuning. Raises DataError without labels, UnsupportedOp for an operator without a gradient.
    """
    require_torch("gradient importance")
    import torch

    from .executor import Executor
    from .finetune import Finetune
    from .objective import Task

    options = options or Finetune()
    task = Task.of(model, data, options)
    net = Executor(model, freeze=options.freeze)
    if not net.parameters:
        raise PassError(f"{model.name} has no weights with a gradient", hint="check freeze=")
    weights = {name: p.detach() for name, p in net.parameters.items()}
    total = {name: np.zeros(tuple(p.shape)) for name, p in weights.items()}

    def loss(parameters: dict[str, torch.Tensor], feeds: dict[str, torch.Tensor], label: torch.Tensor) -> torch.Tensor:
        z = net.run({name: x.unsqueeze(0) for name, x in feeds.items()}, [task.value], parameters=parameters)[task.value]
        return task.loss(z, label.unsqueeze(0))

    each: Callable[..., dict[str, torch.Tensor]] = torch.func.grad(loss)
    size = _chunk(model, sum(p.numel() for p in weights.values()))
    if size > 1:
        each = torch.func.vmap(each, in_dims=(None, 0, 0))
    done = 0
    for part in _parts(data, size):
        feeds, labels = net.feeds(part.feeds(model.inputs)), torch.from_numpy(np.array(part.labels))
        if size == 1:
            feeds, labels = {name: x[0] for name, x in feeds.items()}, labels[0]
        for name, gradient in each(weights, feeds, labels).items():
            magnitude = (gradient * weights[name] if kind == "taylor" else gradient).to(torch.float64)
            magnitude = magnitude**2 if kind == "fisher" else magnitude.abs()
            total[name] += (magnitude if size == 1 else magnitude.sum(0)).numpy()
        done += len(part)
        progress("gradients of single samples", done, len(data))
    return {name: array / len(data) for name, array in total.items()}


def _chunk(model: Model, numbers: int) -> int:
    """How many samples' gradients to hold at once; 1 where the model mixes samples (then one is run at a time)."""
    if batch_reason(model) is not None:
        if model.inputs[0].shape[:1] != (1,):
            raise PassError(f"{model.name} takes {model.inputs[0].shape[0]} samples at once and mixes them: they have no gradient each")
        return 1
    return max(1, min(64, CHUNK_BYTES // (4 * max(numbers, 1))))


def _parts(data: Dataset, size: int) -> Iterator[Dataset]:
    for start in range(0, len(data), size):
        yield data.slice(start, min(start + size, len(data)))
