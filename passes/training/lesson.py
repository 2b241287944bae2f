"""The loss of distillation: what the teachers say, what the labels say, and the inner tensors that are to look alike."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from gatewright.errors import DataError, PassError, UsageError
from gatewright.frontend.data import Dataset
from gatewright.frontend.edit import Array
from gatewright.frontend.model import Model
from gatewright.frontend.queries import shape_of

from .augment import augmentation
from .distil import Distil
from .executor import Executor
from .objective import Task
from .teacher import Teacher, softened


@dataclass(frozen=True)
class Lesson:
    """An ``Objective``. Without labels a sample counts as right where student and teachers agree."""

    options: Distil
    task: Task
    teachers: tuple[Teacher, ...]
    features: tuple[str, ...]
    """Inner tensors of the student; the first teacher's taps in the same order."""
    projections: dict[str, Tensor]
    """By the student's tensor: [teacher's channels, student's channels], learned along, where the two differ."""

    @classmethod
    def of(cls, options: Distil, net: Executor, teachers: Sequence[Model], data: Dataset, seed: int) -> Lesson:
        model = net.model
        if data.labels is not None:
            task = Task.of(model, data, options)
        elif options.alpha == 1:
            task = Task.unlabelled(model, options)
        else:
            told = f"pass 'distil' with alpha={options.alpha:g} learns from labels too, {data.name or 'the data'} has none"
            raise DataError(told, hint="alpha=1 learns from the teachers alone")
        values = {v.name or "": v for node in model.graph for v in node.outputs}
        pairs = [(pair.partition(":")[0], pair.partition(":")[2]) for pair in options.features]
        for ours, _ in pairs:
            if ours not in values:
                raise UsageError(f"features={ours}: the student has no such inner tensor", hint="gatewright inspect lists them")
        shape = shape_of(values[task.value])[1:]
        again, taps_of = augmentation(options, model) is None, [theirs for _, theirs in pairs]
        panel = tuple(Teacher(t, model.inputs, shape, taps_of if i == 0 else (), again) for i, t in enumerate(teachers))
        taps = {v.name or "": v for node in teachers[0].graph for v in node.outputs}
        random = np.random.default_rng([seed, 7])
        projections = {}
        for ours, theirs in pairs:
            found = _projection(ours, shape_of(values[ours]), theirs, shape_of(taps[theirs]), random)
            if found is not None:
                projections[ours] = found
        return cls(options, task, panel, tuple(ours for ours, _ in pairs), projections)

    def __call__(self, net: Executor, feeds: dict[str, Array], labels: Array | None, training: bool) -> tuple[Tensor, float]:
        run = net.run(net.feeds(feeds), [self.task.value, *self.features], training=training)
        z = run[self.task.value].float()
        with torch.autocast("cpu", enabled=False):
            loss, right = z.new_zeros(()), 0.0
            said = [teacher(feeds) for teacher in self.teachers] if self.options.alpha or self.features else []
            if self.options.alpha:
                taught, agreed = self.taught(z, [logits for logits, _ in said])
                loss, right = self.options.alpha * taught, agreed * len(z)
            if labels is not None:
                y = torch.from_numpy(np.array(labels))
                loss, right = loss + (1 - self.options.alpha) * self.task.loss(z, y), self.task.right(z.detach(), y)
            for name, theirs in zip(self.features, said[0][1] if said else [], strict=True):
                ours = run[name].float()
                if name in self.projections:
                    axis = _channel_axis(ours.ndim)
                    ours = torch.tensordot(ours, self.projections[name], dims=([axis], [1])).movedim(-1, axis)
                loss = loss + self.options.beta * functional.mse_loss(ours, theirs)
        return loss, right

    def taught(self, z: Tensor, teachers: Sequence[Tensor]) -> tuple[Tensor, float]:
        """T²·KL(mean of the softened teachers ‖ softened student), the mean over samples (and positions), and how many agree, 0 … 1.

        Of values, not classes: the mean squared error to the teachers' mean.
        """
        temperature = self.options.temperature
        if self.task.kind == "values":
            return functional.mse_loss(z, torch.stack(list(teachers)).mean(0)), 0.0
        if self.task.kind == "binary":
            p = torch.stack([torch.sigmoid(t / temperature) for t in teachers]).mean(0)
            agree = ((p > 0.5) == (z.detach() > 0)).to(torch.float64).mean()
            return temperature**2 * functional.binary_cross_entropy_with_logits(z / temperature, p), float(agree)
        axis = self.task.axis
        p = softened(teachers, temperature, axis)
        log_q = torch.log_softmax(z / temperature, dim=axis)
        divergence = (torch.xlogy(p, p) - p * log_q).sum(axis).mean()
        return temperature**2 * divergence, float((p.argmax(axis) == z.detach().argmax(axis)).to(torch.float64).mean())


def _channel_axis(rank: int) -> int:
    """1 for [N, C] and images [N, C, …], 2 for sequences [N, T, C]."""
    return 2 if rank == 3 else 1


def _projection(ours: str, a: tuple[int, ...], theirs: str, b: tuple[int, ...], random: np.random.Generator) -> Tensor | None:
    axis = _channel_axis(len(a))
    alike = len(a) == len(b) and len(a) > 1 and a[1:axis] + a[axis + 1 :] == b[1:axis] + b[axis + 1 :]
    if not alike:
        raise PassError(f"features={ours}:{theirs}: {list(a[1:])} and {list(b[1:])} differ in more than their channels")
    if a[axis] == b[axis]:
        return None
    drawn = random.normal(0, 1 / np.sqrt(a[axis]), (b[axis], a[axis])).astype(np.float32)
    return torch.from_numpy(drawn).requires_grad_(True)
