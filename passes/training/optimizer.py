"""SGD with Nesterov's momentum, and Adam, over named tensors: their state is arrays by name, as a checkpoint wants it.

(torch.optim has both; importing it takes three seconds, for its compiler, and it numbers what here has names.)
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

BETA1, BETA2, EPSILON = 0.9, 0.999, 1e-8
"""Kingma and Ba 2015, arXiv:1412.6980, Algorithm 1."""


@dataclass
class Optimizer:
    """One step for every tensor that has a gradient."""

    kind: Literal["adam", "sgd"]
    tensors: Mapping[str, Tensor]
    rates: Mapping[str, float]
    """Learning rate of each tensor; a step multiplies it by its factor."""
    momentum: float = 0.9
    state: dict[str, Tensor] = field(default_factory=dict)
    """Moments by "m NAME" and "v NAME"; the number of steps of a tensor by "t NAME"."""

    @torch.no_grad()  # type: ignore[untyped-decorator]
    def step(self, factor: float) -> None:
        for name, tensor in self.tensors.items():
            if tensor.grad is not None:
                update = self._adam(name, tensor.grad) if self.kind == "adam" else self._sgd(name, tensor.grad)
                tensor.sub_(update * (self.rates[name] * factor))

    def clear(self) -> None:
        """No gradients."""
        for tensor in self.tensors.values():
            tensor.grad = None

    def _sgd(self, name: str, gradient: Tensor) -> Tensor:
        """The velocity looked ahead: g + μ·(μ·v + g)."""
        if not self.momentum:
            return gradient
        velocity = self.state.setdefault(f"v {name}", torch.zeros_like(gradient))
        velocity.mul_(self.momentum).add_(gradient)
        return gradient + self.momentum * velocity

    def _adam(self, name: str, gradient: Tensor) -> Tensor:
        mean = self.state.setdefault(f"m {name}", torch.zeros_like(gradient))
        square = self.state.setdefault(f"v {name}", torch.zeros_like(gradient))
        steps = self.state.setdefault(f"t {name}", torch.zeros((), dtype=torch.float64))
        steps += 1
        mean.lerp_(gradient, 1 - BETA1)
        square.mul_(BETA2).addcmul_(gradient, gradient, value=1 - BETA2)
        t = float(steps)
        return mean / (1 - BETA1**t) / (torch.sqrt(square / (1 - BETA2**t)) + EPSILON)


@torch.no_grad()  # type: ignore[untyped-decorator]
def clip(tensors: Mapping[str, Tensor], largest: float) -> None:
    """Scale all gradients together so that their norm is at most ``largest``."""
    gradients = [tensor.grad for tensor in tensors.values() if tensor.grad is not None]
    norm = math.sqrt(sum(float((g.to(torch.float64) ** 2).sum()) for g in gradients))
    if norm > largest:
        for gradient in gradients:
            gradient.mul_(largest / norm)
