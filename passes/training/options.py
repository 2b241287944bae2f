"""The options that everything which trains has in common, and their checks. Imports no torch: a pipeline's text parses without it."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from gatewright.errors import UsageError
from gatewright.frontend.model import Model

from ..base import Effect, Pass, PassContext

if TYPE_CHECKING:
    from .outset import Outset


@dataclass(frozen=True)
class Training(Pass):
    """Mini-batch gradient descent on the weights of a model. Lossy; needs data."""

    effect: ClassVar[Effect] = "lossy"
    needs_data: ClassVar[bool] = True
    data_for: ClassVar[str] = "data to learn from"

    epochs: int = 10
    lr: float = 1e-3
    """Learning rate at its highest."""
    optimizer: Literal["adam", "sgd"] = "adam"
    momentum: float = 0.9
    """sgd: Nesterov's."""
    schedule: Literal["cosine", "step", "constant"] = "cosine"
    """cosine: down to zero at the end. step: a tenth after 60 % of the steps, a hundredth after 85 %."""
    warmup: float = 0.0
    """The fraction of all steps over which lr rises from zero."""
    batch: int = 64
    loss: Literal["auto", "cross_entropy", "mse"] = "auto"
    """auto: cross entropy for labels that are class numbers, mean squared error for others."""
    smoothing: float = 0.0
    """cross entropy: this much of each label is spread over all classes."""
    output: str | None = None
    """The output that the labels belong to; the first float one that fits them."""
    l1: float = 0.0
    """Adds l1·Σ|w| over weights (not biases) to the loss."""
    l2: float = 0.0
    """Adds l2/2·Σw²."""
    clip: float = 0.0
    """The gradient's norm is scaled down to this; 0: never."""
    precision: Literal["float32", "bf16"] = "float32"
    """bf16: products and convolutions compute in bfloat16; the weights, their sums and the optimizer stay float32."""
    validation: float = 0.1
    """The fraction of the data that is held out; the weights of its best epoch are kept. 0: train on all, keep the last."""
    patience: int = 0
    """Stop after so many epochs without a better one on the held-out data; 0: never."""
    zeros: Literal["keep", "free"] = "keep"
    """keep: weights that are zero at the start (pruned) stay zero."""
    batchnorm: Literal["frozen", "train"] = "frozen"
    """train: BatchNormalization uses each batch's statistics and moves the running ones."""
    freeze: tuple[str, ...] = ()
    """Names or patterns of weights that are left alone."""
    shift: int = 0
    """Augmentation: images move by up to so many pixels each way."""
    rotate: float = 0.0
    """Augmentation: images turn by up to so many degrees."""
    zoom: float = 0.0
    """Augmentation: images grow or shrink by up to this fraction."""
    image: tuple[int, ...] = ()
    """Augmentation: channels|height|width of a sample that the model takes in another shape."""
    workers: int = 1
    """Processes that each compute the gradients of a part of the data (``crew.py``)."""
    sync: bool = True
    """Workers: each takes a share of every batch, as one process would compute it. false: each takes batches of its own and its
    gradients are applied as they come, a little stale; faster where workers are unequal, and no two runs are the same."""

    def __post_init__(self) -> None:
        self._within("epochs", self.epochs >= 1, "1 or more")
        self._within("batch", self.batch >= 1, "1 or more")
        self._within("lr", 0 < self.lr < 1e3, "more than 0")
        self._within("validation", 0 <= self.validation <= 0.5, "0 to 0.5")
        self._within("workers", 1 <= self.workers <= 256, "1 to 256")
        self._within("image", len(self.image) in (0, 3), "channels|height|width")
        for name, top in (("momentum", 1.0), ("warmup", 1.0), ("smoothing", 1.0), ("zoom", 0.9)):
            self._within(name, 0 <= getattr(self, name) < top, f"0 up to, not including, {top:g}")
        for name in ("l1", "l2", "clip", "patience", "shift", "rotate"):
            self._within(name, 0 <= getattr(self, name) < float("inf"), "0 or more")
        if self.patience and not self.validation:
            raise UsageError(f"option 'patience' of pass {self.name!r} needs held-out data", hint="validation=0.1")
        if not self.sync and self.workers == 1:
            raise UsageError(f"sync=false of pass {self.name!r} is about several workers", hint="workers=2")

    @abstractmethod
    def outset(self, model: Model, context: PassContext, teachers: Sequence[Model] = ()) -> Outset:
        """What training begins with: the same from the same arguments, in whichever process."""

    def _within(self, option: str, right: bool, takes: str) -> None:
        if not right:
            raise UsageError(f"option {option!r} of pass {self.name!r} is {getattr(self, option)}; it takes {takes}")
