"""What a search may combine: one decision after the other, ending in the text of a pipeline.

A decision is one of a few values, so that equal candidates meet and are evaluated once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Protocol

from gatewright.errors import UsageError, nearest
from gatewright.targets.base import Target

METHODS = ("prune", "finetune", "distil", "quantize", "qat")
"""Families of passes, in the order in which a pipeline has them."""

AMOUNTS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.85, 0.9)
BITS = (8, 7, 6, 5, 4, 3, 2)
EPOCHS = (5, 15)
TEMPERATURES = (2.0, 4.0, 8.0)

Choices = Mapping[str, str | float | int]


class Chooser(Protocol):
    """Who decides; Optuna's trial is one."""

    def suggest_categorical(self, name: str, choices: Sequence[str | float | int]) -> str | float | int: ...


@dataclass(frozen=True)
class Space:
    """Pipelines of ``methods`` for a target that does or does not take float models."""

    methods: tuple[str, ...]
    must_quantize: bool
    teacher: str | None = None
    """The file of the uncompressed model, which teaches where distil is among the methods."""

    @classmethod
    def of(cls, target: Target, methods: Sequence[str] | None, has_labels: bool, teacher: str) -> Space:
        """``methods`` None: pruning, quantization, and fine-tuning where there are labels and torch is installed.

        Raises UsageError for an unknown method, for a target that takes quantized models when quantization is left out,
        and for a method that needs labels or torch where they are missing.
        """
        can_train = find_spec("torch") is not None
        chosen = tuple(methods) if methods is not None else ("prune", *(("finetune",) if has_labels and can_train else ()), "quantize")
        for name in chosen:
            if name not in METHODS:
                raise UsageError(f"there is no search method {name!r}", hint=nearest(name, METHODS, "methods"))
            if name in ("finetune", "qat") and not has_labels:
                raise UsageError(f"method {name!r} trains on labels and the data has none", hint="name them, --data 'FILE{labels=NAME}'")
            if name in ("finetune", "distil", "qat") and not can_train:
                raise UsageError(f"method {name!r} trains, which needs torch", hint="pip install 'gatewright[torch]'")
        must = target.quantization is not None
        if must and not {"quantize", "qat"} & set(chosen):
            raise UsageError(f"target {target.name} takes quantized models, and the methods leave quantization out", hint="add quantize")
        return cls(chosen, must, teacher)

    def suggest(self, chooser: Chooser) -> str:
        """The pipeline of one candidate."""
        parts = ["fuse"]
        kinds = ["none", "channel", "magnitude"] if "prune" in self.methods else ["none"]
        kind = chooser.suggest_categorical("prune", kinds)
        if kind != "none":
            amount = chooser.suggest_categorical("amount", AMOUNTS)
            scope = ",scope=global" if kind == "magnitude" else ""
            parts.append(f"prune{{kind={kind},amount={amount}{scope}}}")
        trainings = ["none", *(m for m in ("finetune", "distil") if m in self.methods)]
        training = chooser.suggest_categorical("training", trainings)
        if training != "none":
            parts.append(self._training(str(training), chooser))
        parts += self._quantization(chooser)
        return ",".join(parts)

    def anchors(self) -> tuple[Choices, ...]:
        """Candidates that everybody would try first; what is found is held against them."""
        start: Choices = {"prune": "none", "training": "none"}
        if not {"quantize", "qat"} & set(self.methods):
            return (start,)
        how = "quantize" if "quantize" in self.methods else "qat"
        uniform = [{**start, "quantization": how, "bits": bits, "grid": "pow2", "per": "tensor", "range": "minmax"} for bits in (8, 6, 4)]
        if how == "qat":
            uniform = [{**one, "qat_epochs": EPOCHS[0]} for one in uniform]
        finer: Choices = {**uniform[0], "grid": "affine", "per": "channel"}
        float_model: tuple[Choices, ...] = () if self.must_quantize else ({**start, "quantization": "none"},)
        return (*float_model, *uniform, finer)

    def _training(self, method: str, chooser: Chooser) -> str:
        epochs = chooser.suggest_categorical("epochs", EPOCHS)
        if method == "finetune":
            return f"finetune{{epochs={epochs}}}"
        temperature = chooser.suggest_categorical("temperature", TEMPERATURES)
        return f"distil{{epochs={epochs},temperature={temperature},teacher={self.teacher}}}"

    def _quantization(self, chooser: Chooser) -> list[str]:
        kinds = [*(() if self.must_quantize else ("none",)), *(m for m in ("quantize", "qat") if m in self.methods)]
        if not kinds:
            return []
        how = chooser.suggest_categorical("quantization", kinds)
        if how == "none":
            return []
        bits = chooser.suggest_categorical("bits", BITS)
        grid = chooser.suggest_categorical("grid", ("pow2", "affine"))
        per = chooser.suggest_categorical("per", ("tensor", "channel"))
        span = chooser.suggest_categorical("range", ("minmax", "percentile"))
        wide = ",percentile=99.9" if span == "percentile" else ""
        epochs = f",epochs={chooser.suggest_categorical('qat_epochs', EPOCHS)}" if how == "qat" else ""
        return [f"{how}{{bits={bits},grid={grid},per={per},range={span}{wide}{epochs}}}"]
