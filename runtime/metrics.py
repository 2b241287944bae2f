"""How good outputs are: accuracy, top5, auc, mse, psnr against labels, agreement against the baseline's outputs, or a user's own function.

A metric is named by text, ``accuracy`` or ``accuracy{output=logits}``; without ``output`` it judges the first output.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from gatewright.errors import DataError, UsageError, nearest
from gatewright.spec import construct, parse

Array = NDArray[Any]
MetricFunction = Callable[[Mapping[str, Array], Array | None], float]
"""A user's own: outputs by name, labels (or None) -> a number, the higher the better."""

IDENTICAL_DB = 200.0
"""The PSNR of two identical images, whose formula has no finite value."""


@dataclass(frozen=True)
class Metric:
    """A number for a whole data set. ``judge(output, truth)``: truth is the labels, or the baseline's same output."""

    name: str
    unit: str
    needs: Literal["labels", "baseline", "nothing"]
    judge: Callable[[Array, Array], float]
    higher_is_better: bool = True
    output: str | None = None
    function: MetricFunction | None = None
    """A user's own, in place of ``judge``."""

    def __call__(self, outputs: Mapping[str, Array], labels: Array | None, baseline: Mapping[str, Array] | None) -> float:
        """Raises DataError where there are no labels (no baseline), or they do not fit the output."""
        if self.function is not None:
            return float(self.function(outputs, labels))
        name = self.output or next(iter(outputs))
        if name not in outputs:
            raise UsageError(
                f"metric {self.name} judges output {name!r}, which the model does not have", hint=nearest(name, outputs, "outputs")
            )
        return float(self.judge(outputs[name], self._truth(name, labels, baseline)))

    def drop(self, value: float, baseline: float) -> float:
        """How much worse ``value`` is than ``baseline``; negative where it is better."""
        return baseline - value if self.higher_is_better else value - baseline

    def require(self, labels: Array | None) -> None:
        """Raises DataError at once where labels are needed and there are none."""
        if self.needs == "labels" and labels is None:
            raise DataError(
                f"metric {self.name} needs labels and the data has none",
                hint="name them, --data 'FILE{labels=NAME}', or take --metric agreement, which compares with the baseline",
            )

    def _truth(self, name: str, labels: Array | None, baseline: Mapping[str, Array] | None) -> Array:
        self.require(labels)
        if self.needs == "labels":
            assert labels is not None
            return labels
        if baseline is None:
            raise DataError(f"metric {self.name} compares with the baseline, which did not run")
        return baseline[name] if name in baseline else next(iter(baseline.values()))


def metric(given: str | Metric | MetricFunction | None, labels: Array | None) -> Metric:
    """The metric that a text or a function means. None: accuracy of labels that are classes, mse of numbers, agreement without labels."""
    if given is None:
        given = "agreement" if labels is None else "mse" if labels.dtype.kind == "f" and not _whole(labels) else "accuracy"
    if isinstance(given, Metric):
        return given
    if callable(given):
        name = getattr(given, "__name__", "metric")
        return Metric(name, "1", "nothing", _never, bool(getattr(given, "higher_is_better", True)), function=given)
    spec = parse(given)
    name = spec.name.replace("-", "").replace("_", "").lower()
    if name not in METRICS:
        raise UsageError(f"there is no metric {spec.name!r}", hint=nearest(name, METRICS, "metrics"))
    return replace(METRICS[name], output=construct(_Options, f"metric {name}", spec.options).output)


@dataclass(frozen=True)
class _Options:
    output: str | None = None


def classes(output: Array) -> Array | None:
    """The class that each sample's output names, or None where it is a number and not a class.

    Whole numbers or strings [N] name it themselves; else it is the largest of axis 1, or for one float per sample
    whether it is above 0.5 (above 0, where it is no probability).
    """
    output = _squeezed(output)
    if output.ndim >= 2:
        return np.asarray(output.argmax(axis=1))
    if output.dtype.kind == "f":
        threshold = 0.5 if output.size and output.min() >= 0 and output.max() <= 1 else 0.0
        return np.asarray(output > threshold).astype(np.int64)
    return output if output.dtype.kind in "iubUSO" else None


def top1_changed(output: Array, other: Array) -> int | None:
    """In how many samples the winning class differs; None where the output is one number per sample and has no classes."""
    ours, theirs = _squeezed(output), _squeezed(other)
    if ours.shape != theirs.shape or (ours.ndim == 1 and ours.dtype.kind == "f"):
        return None
    a, b = classes(ours), classes(theirs)
    return None if a is None or b is None else int(np.count_nonzero(_per_sample(a != b)))


def _accuracy(output: Array, labels: Array) -> float:
    found = classes(output)
    if found is None:
        raise DataError(f"accuracy needs classes, the output is {output.dtype}{list(output.shape)}", hint="take --metric mse")
    truth = _class_labels(labels, _squeezed(output))
    if found.shape != truth.shape:
        raise DataError(f"accuracy: the output names classes of shape {list(found.shape)}, the labels have {list(truth.shape)}")
    if found.dtype.kind in "USO" or truth.dtype.kind in "USO":
        found, truth = found.astype(str), truth.astype(str)
    return float(np.mean((found == truth) & ~_undefined(output, found)))


def _undefined(output: Array, found: Array) -> NDArray[np.bool_]:
    """Where a class was found among scores with a NaN: argmax then gives that NaN's place."""
    scores = _squeezed(output)
    if scores.dtype.kind != "f":
        return np.zeros(found.shape, bool)
    return np.asarray(np.isnan(scores).any(axis=1) if scores.ndim >= 2 else np.isnan(scores))


def _top5(output: Array, labels: Array) -> float:
    scores = _squeezed(output)
    if scores.ndim != 2:
        raise DataError(f"top5 needs a score for each class, the output is {output.dtype}{list(output.shape)}")
    truth = _class_labels(labels, scores)
    # A stable sort, so that of equal scores the first wins, as in argmax.
    best = np.argsort(-scores.astype(np.float64), axis=1, kind="stable")[:, :5]
    return float(np.mean((best == truth[:, None]).any(axis=1)))


def _auc(output: Array, labels: Array) -> float:
    """Area under the ROC curve: the rank statistic (Mann-Whitney U, ties count half); of several classes the mean, one against the rest."""
    scores = _squeezed(output)
    truth = _class_labels(labels, scores)
    if scores.ndim == 1 or scores.shape[1] == 2:
        values = np.unique(truth)
        if len(values) != 2:
            raise DataError(f"auc of one score needs labels of two classes, the data has {len(values)}")
        return _one_auc(scores if scores.ndim == 1 else scores[:, 1].astype(np.float64) - scores[:, 0], truth == values[1])
    if scores.ndim != 2:
        raise DataError(f"auc needs a score for each class, the output is {output.dtype}{list(output.shape)}")
    present = [c for c in range(scores.shape[1]) if 0 < np.count_nonzero(truth == c) < len(truth)]
    if not present:
        raise DataError("auc needs labels of at least two classes")
    return float(np.mean([_one_auc(scores[:, c], truth == c) for c in present]))


def _one_auc(scores: Array, positive: Array) -> float:
    _, inverse, counts = np.unique(scores, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    rank = (last - (counts - 1) / 2)[inverse.ravel()]
    n = int(np.count_nonzero(positive))
    return float((rank[positive].sum() - n * (n + 1) / 2) / (n * (len(scores) - n)))


def _mse(output: Array, labels: Array) -> float:
    return float(np.mean(np.square(_same_shape(output, labels))))


def _psnr(output: Array, labels: Array) -> float:
    """10·log10(peak²/MSE); peak is 255 for labels beyond 1, else 1."""
    error = _mse(output, labels)
    peak = 255.0 if labels.size and np.max(labels) > 1 else 1.0
    return IDENTICAL_DB if error == 0 else float(10 * np.log10(peak * peak / error))


def _agreement(output: Array, baseline: Array) -> float:
    """The share of samples with the baseline's class; of numbers, the share within 1 % of the baseline's range."""
    ours, theirs = _squeezed(output), _squeezed(baseline)
    if ours.shape != theirs.shape:
        raise DataError(f"agreement: the output is {list(output.shape)}, the baseline's is {list(baseline.shape)}")
    changed = top1_changed(ours, theirs)
    if changed is not None:
        return 1 - changed / len(ours)
    near = np.abs(ours - theirs) <= 0.01 * (np.max(theirs) - np.min(theirs))
    return float(np.mean(_per_sample(near, np.all)))


def _never(output: Array, truth: Array) -> float:
    raise TypeError("a metric made of a function has no judge")


METRICS: dict[str, Metric] = {
    "accuracy": Metric("accuracy", "1", "labels", _accuracy),
    "top5": Metric("top5", "1", "labels", _top5),
    "auc": Metric("auc", "1", "labels", _auc),
    "mse": Metric("mse", "1", "labels", _mse, higher_is_better=False),
    "psnr": Metric("psnr", "dB", "labels", _psnr),
    "agreement": Metric("agreement", "1", "baseline", _agreement),
}


def _squeezed(output: Array) -> Array:
    """Without axes of size 1 after the samples' axis: [N, 10, 1, 1] is [N, 10], [N, 1] is [N]."""
    return output.reshape(output.shape[0], *(size for size in output.shape[1:] if size != 1)) if output.ndim else output.reshape(1)


def _per_sample(flags: Array, over: Callable[..., Any] = np.any) -> Array:
    return np.asarray(over(flags.reshape(len(flags), -1), axis=1))


def _class_labels(labels: Array, scores: Array) -> Array:
    """Labels as class numbers [N, …]; one-hot ones are turned into numbers."""
    truth = _squeezed(labels)
    if len(truth) != len(scores):
        raise DataError(f"{len(scores)} outputs, but {len(truth)} labels")
    if truth.ndim == scores.ndim == 2 and truth.shape == scores.shape:
        truth = np.asarray(truth.argmax(axis=1))
    if truth.dtype.kind == "f":
        if not _whole(truth):
            raise DataError("the labels are not whole numbers, so they name no classes", hint="take --metric mse or auc")
        truth = truth.astype(np.int64)
    if scores.ndim >= 2 and truth.dtype.kind in "iu" and truth.size and not 0 <= truth.min() <= truth.max() < scores.shape[1]:
        raise DataError(f"labels go from {truth.min()} to {truth.max()}, the output has {scores.shape[1]} classes")
    return truth


def _same_shape(output: Array, labels: Array) -> Array:
    """output − labels in float64."""
    if output.size != labels.size or len(output) != len(labels):
        raise DataError(f"the output is {list(output.shape)}, the labels are {list(labels.shape)}: they cannot be subtracted")
    return np.asarray(output.reshape(labels.shape).astype(np.float64) - labels.astype(np.float64))


def _whole(labels: Array) -> bool:
    return bool(np.all(np.isfinite(labels)) and np.all(labels == np.rint(labels)))
