"""What the teachers say about a batch: their logits, softened and averaged, and inner tensors to match.

A teacher is any model that loads: it is only run (by ONNX Runtime), never differentiated.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from gatewright.errors import DataError, PassError
from gatewright.frontend.batch import batch_reason, with_batch
from gatewright.frontend.edit import Array
from gatewright.frontend.model import Model, TensorInfo
from gatewright.frontend.ortrun import OrtSession
from gatewright.frontend.queries import shape_of

from .. import rewrite
from .objective import logits_of

BATCH = 64
"""Samples in one run of a teacher."""
SMALLEST = 1e-7
"""Probabilities below this count as this, where a teacher gives probabilities and no logits."""


class Teacher:
    """``classes``: the shape of one sample's logits, which tells the right output where there are several. ``taps``: inner tensors.

    ``remember``: the same sample will come again (no augmentation), so its logits are kept, by the sample's hash.
    """

    def __init__(
        self, model: Model, inputs: Sequence[TensorInfo], classes: tuple[int, ...], taps: Sequence[str] = (), remember: bool = False
    ) -> None:
        self.model, self.taps = model, tuple(taps)
        self._known: dict[bytes, Array] | None = {} if remember and not taps else None
        self._renamed = _matched(model, inputs)
        edited = model.copy_ir()
        named = {v.name: v for node in edited.graph for v in node.outputs}
        candidates = [v for v in edited.graph.outputs if v.dtype is not None and v.dtype.is_floating_point()]
        fitting = [v for v in candidates if shape_of(logits_of(v)[0])[1:] == classes or shape_of(v)[1:] == classes]
        if not fitting:
            given = ", ".join(f"{v.name} {list(shape_of(v)[1:])}" for v in edited.graph.outputs)
            told = f"teacher {model.name} gives {given} for a sample, the student {list(classes)}"
            raise PassError(told, hint="a teacher with the same classes")
        logits, activation = logits_of(fitting[0])
        softmax = activation in ("Softmax", "LogSoftmax") and shape_of(logits)[1:] == classes
        value = logits if softmax else fitting[0]
        self.value = value.name or ""
        self._may_be_probabilities = not softmax
        for tap in self.taps:
            if tap not in named:
                told = f"teacher {model.name} has no tensor {tap!r} to match"
                raise PassError(told, hint="features=student:teacher takes names of inner tensors")
        for name in (self.value, *self.taps):
            if not named[name].is_graph_output():
                edited.graph.outputs.append(named[name])
        tapped = model.with_ir(edited)
        self.batch = BATCH if batch_reason(tapped) is None else model.inputs[0].shape[0]
        ready = with_batch(tapped, self.batch) if self.batch == BATCH else tapped
        # Optimized 8-bit kernels may saturate; a quantized teacher is run without them.
        # Its idle threads would spin beside torch's: it gets as many as those.
        self._session = OrtSession(ready, optimize=not rewrite.is_quantized(model.graph), threads=torch.get_num_threads())

    def __call__(self, feeds: dict[str, Array]) -> tuple[Tensor, list[Tensor]]:
        """Logits (up to a constant per sample) and the taps, for all samples of ``feeds``."""
        renamed = {theirs: feeds[ours] for ours, theirs in self._renamed.items()}
        if self._known is None:
            return self._said(renamed)
        keys = [_hash([array[i] for array in renamed.values()]) for i in range(len(next(iter(renamed.values()))))]
        fresh = [i for i, key in enumerate(keys) if key not in self._known]
        if fresh:
            said, _ = self._said({name: array[fresh] for name, array in renamed.items()})
            self._known.update(zip((keys[i] for i in fresh), said.numpy(), strict=True))
        return torch.from_numpy(np.stack([self._known[key] for key in keys])), []

    def _said(self, renamed: dict[str, Array]) -> tuple[Tensor, list[Tensor]]:
        samples = len(next(iter(renamed.values())))
        parts = []
        for start in range(0, samples, self.batch):
            part = {name: array[start : start + self.batch] for name, array in renamed.items()}
            missing = self.batch - len(next(iter(part.values())))
            if missing:
                part = {name: np.concatenate([array, np.repeat(array[-1:], missing, axis=0)]) for name, array in part.items()}
            parts.append(self._session.run(part))
        joined = [torch.from_numpy(np.concatenate([part[name] for part in parts])[:samples]) for name in (self.value, *self.taps)]
        z = joined[0].to(torch.float32)
        return torch.log(z.clamp_min(SMALLEST)) if self._may_be_probabilities and _are_probabilities(z) else z, joined[1:]


def _are_probabilities(z: Tensor) -> bool:
    """Shares that sum to one for every sample, as a forest's votes do; logits of many samples never all do."""
    return bool((z >= 0).all() and torch.allclose(z.sum(dim=-1), torch.ones(()), atol=1e-3))


def _hash(arrays: Sequence[Array]) -> bytes:
    return hashlib.blake2b(b"".join(array.tobytes() for array in arrays), digest_size=16).digest()


def softened(logits: Sequence[Tensor], temperature: float, axis: int) -> Tensor:
    """The mean over teachers of softmax(z/T)."""
    return torch.stack([torch.softmax(z / temperature, dim=axis) for z in logits]).mean(0)


def _matched(model: Model, inputs: Sequence[TensorInfo]) -> dict[str, str]:
    """The student's input names to the teacher's: by name, or the only one of each."""
    theirs = {info.name: info for info in model.inputs}
    pairs = {info.name: info.name for info in inputs if info.name in theirs}
    if len(pairs) < len(theirs) and len(theirs) == len(inputs) == 1:
        pairs = {inputs[0].name: model.inputs[0].name}
    for info in inputs:
        other = theirs.get(pairs.get(info.name, ""))
        if other is not None and (other.shape[1:] != info.shape[1:] or other.dtype != info.dtype):
            raise DataError(f"teacher {model.name} takes {other}, the student {info}", hint="both learn from the same prepared data")
    if len(pairs) < len(theirs):
        taken, ours = (", ".join(map(str, given)) for given in (model.inputs, inputs))
        raise DataError(f"teacher {model.name} takes {taken}, the student {ours}", hint="give their inputs the same names")
    return pairs
