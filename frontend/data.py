"""``Dataset``: named arrays of samples and their labels; ``Input``: how raw samples become what a model's input takes.

    data = Dataset.load("mnist.npz", inputs={"Input3": Input(reshape=(1, 28, 28))})
    feeds = data.feeds(model.inputs)                # or, streaming: data.batches(model.inputs, 64)

Nothing is guessed: a missing axis, a layout or a cast from whole numbers to floats is written down in an ``Input``, and
an error says which ``Input`` would fit. Axis 0 of every array is the samples. Files are read in ``datafiles.py``.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gatewright.errors import DataError, UsageError
from gatewright.spec import Spec, construct, describe, parse

from .datafiles import Samples, read
from .model import TensorInfo

Array = NDArray[Any]

_DIGEST_ROWS = 1024


@dataclass(frozen=True)
class Input:
    """How raw samples become a model's input: reshape, then layout, then (raw − offset)·scale, then dtype.

    ``Input()`` alone says: cast whole numbers to the model's float type, values unchanged.
    """

    scale: float | tuple[float, ...] = 1.0
    """A number, or one per channel: along "C" of the final layout, axis 1 where no layout is given."""
    offset: float | tuple[float, ...] = 0.0
    """Subtracted before scaling; a number, or one per channel."""
    layout: str | None = None
    """Axes of the data and of the model, "NHWC->NCHW"; "NHWC" alone only names them (so that scale finds C)."""
    reshape: tuple[int, ...] | None = None
    """Shape of one sample (without the samples' axis), before ``layout``."""
    dtype: str | None = None
    """numpy name of the result's type. Default: what the model takes. An integer result is rounded half to even; a
    value outside of the type is an error. Arithmetic is float32, or float64 where dtype is an integer or float64."""
    source: str | None = None
    """The array's name in the file. Default: the same name, or the only array there is."""

    def __post_init__(self) -> None:
        if self.layout is not None:
            before, after = self._axes
            if sorted(before) != sorted(after) or len(set(before)) != len(before) or before[:1] != "N" or after[:1] != "N":
                raise UsageError(f"layout {self.layout!r} is none", hint="name each axis once and the samples' axis N first: NHWC->NCHW")
        if self.reshape is not None and any(size < 1 for size in self.reshape):
            raise UsageError(f"reshape {self.reshape} has a size below 1", hint="give the shape of one sample, 1x28x28")
        if self.dtype is not None:
            try:
                kind = np.dtype(self.dtype)
            except TypeError:
                raise UsageError(f"dtype {self.dtype!r} is no numpy type", hint="float32, int8, uint8, int64 …") from None
            if kind.kind not in "fiub":
                raise UsageError(f"dtype {self.dtype!r} is not a number's", hint="float32, int8, uint8, int64 …")
            object.__setattr__(self, "dtype", kind.name)
        for name in ("scale", "offset"):
            if not np.all(np.isfinite(getattr(self, name))):
                raise UsageError(f"{name} {getattr(self, name)} is not finite")

    @classmethod
    def parse(cls, text: str) -> tuple[str, Input]:
        """From ``name{offset=83,scale=0.5847029,reshape=49x10x1,layout=NHWC->NCHW}``: the model input's name, and the Input."""
        spec = parse(text)
        options = {key: value.replace("x", "|") if key == "reshape" else value for key, value in spec.options.items()}
        return spec.name, construct(cls, f"input {spec.name!r}", options)

    def text(self, name: str) -> str:
        """The inverse of ``parse``."""
        spec = parse(describe(self, name))
        return str(Spec(spec.name, {key: value.replace("|", "x") if key == "reshape" else value for key, value in spec.options.items()}))

    def code(self) -> str:
        """The expression that makes it in Python."""
        fields = [f"{f.name}={getattr(self, f.name)!r}" for f in dataclasses.fields(self) if getattr(self, f.name) != f.default]
        return f"Input({', '.join(fields)})"

    @property
    def _axes(self) -> tuple[str, str]:
        """The letters of the data's axes and of the model's."""
        before, _, after = (self.layout or "").partition("->")
        return before, after or before

    @property
    def computes(self) -> bool:
        """True where scale or offset change values."""
        return not (np.all(np.asarray(self.scale) == 1) and np.all(np.asarray(self.offset) == 0))

    def apply(self, raw: Array, name: str, dtype: np.dtype[Any] | None = None) -> Array:
        """``raw`` [samples, …] prepared. ``dtype``: what the model takes, used unless the Input says one itself."""
        value = raw
        if self.reshape is not None:
            if math.prod(raw.shape[1:]) != math.prod(self.reshape):
                raise DataError(f"input {name!r}: a sample of shape {list(raw.shape[1:])} cannot be reshaped to {list(self.reshape)}")
            value = value.reshape(raw.shape[0], *self.reshape)
        if self.layout is not None:
            before, after = self._axes
            if len(before) != value.ndim:
                held = f"the data has shape {list(value.shape)}"
                raise DataError(f"input {name!r}: layout {self.layout} names {len(before)} axes, {held}", hint="add reshape=")
            value = value.transpose([before.index(axis) for axis in after])
        target = np.dtype(self.dtype) if self.dtype else dtype
        if not self.computes:
            return value if target is None else self._cast(value, target, name)
        if target is not None and target.kind in "iub" and self.dtype is None:
            raise DataError(f"input {name!r} takes {target}, scale and offset give floats", hint=f"say dtype={target} to have them rounded")
        precision = np.float32 if target is None or (target.kind == "f" and target.itemsize <= 4) else np.float64
        offset, scale = (self._per_channel(number, value, name, precision) for number in (self.offset, self.scale))
        return self._cast((value.astype(precision) - offset) * scale, target or np.dtype(np.float32), name)

    def _per_channel(self, number: float | tuple[float, ...], value: Array, name: str, precision: type) -> Array:
        if not isinstance(number, tuple):
            return np.asarray(number, precision)
        axis = self._axes[1].find("C") if "C" in self._axes[1] else 1
        if axis >= value.ndim or len(number) != value.shape[axis]:
            held = f"the data's shape is {list(value.shape)} with channels on axis {axis}"
            raise DataError(
                f"input {name!r}: {len(number)} numbers per channel, but {held}",
                hint="name the axes with layout=, NHWC->NCHW or NHWC alone",
            )
        return np.asarray(number, precision).reshape([-1 if i == axis else 1 for i in range(value.ndim)])

    def _cast(self, value: Array, target: np.dtype[Any], name: str) -> Array:
        if value.dtype == target:
            return value
        if value.dtype.kind not in "fiub":
            raise DataError(f"input {name!r} takes {target}, the data is {value.dtype}")
        if target.kind == "f":
            return value.astype(target)
        if value.dtype.kind == "f":
            if self.dtype is None:
                raise DataError(f"input {name!r} takes {target}, the data is {value.dtype}", hint=f"say dtype={target} to have it rounded")
            value = np.rint(value)
        low, high = (0, 1) if target.kind == "b" else (np.iinfo(target).min, np.iinfo(target).max)
        if value.size and not (value.min() >= low and value.max() <= high):
            held = f"values from {value.min()} to {value.max()}"
            raise DataError(f"input {name!r}: {held} do not fit {target} ({low} to {high})", hint="add scale= or offset=")
        return value.astype(target)


@dataclass(frozen=True, eq=False)
class Dataset:
    """Samples, kept raw; preparation is applied where they are used, so that a large file is never held twice.

    Raises DataError where arrays or labels have different numbers of samples, or none.
    """

    arrays: Mapping[str, Samples]
    """Raw arrays by their name in the file, [samples, …]."""
    labels: Array | None = None
    """[samples, …]: class numbers, or values of a regression."""
    preparation: Mapping[str, Input] = field(default_factory=dict)
    """Model input name to its Input."""
    name: str = ""

    def __post_init__(self) -> None:
        if not self.arrays:
            raise DataError(f"dataset {self.name!r} holds no arrays")
        counts = {name: (array.shape[0] if array.shape else 0) for name, array in self.arrays.items()}
        if self.labels is not None:
            counts["labels"] = self.labels.shape[0] if self.labels.ndim else 0
        if len(set(counts.values())) > 1:
            held = ", ".join(f"{name} {count}" for name, count in counts.items())
            raise DataError(f"dataset {self.name!r}: numbers of samples differ: {held}")
        if not next(iter(counts.values())):
            raise DataError(f"dataset {self.name!r} has no samples")

    @classmethod
    def load(
        cls,
        path: str | Path,
        inputs: Mapping[str, Input] | None = None,
        labels: str | None = None,
        part: str | None = None,
        range: str | tuple[int | None, int | None] | None = None,
        size: tuple[int, int] | None = None,
    ) -> Dataset:
        """Read .npz, .npy, .csv, .parquet or a folder of images (one subfolder per class).

        ``labels`` names the array or column of labels (default: y, labels, label or Y, where there is one); ``part="train"``
        takes X_train and y_train; ``range`` (start, stop) or "start:stop" cuts; ``size`` (height, width) resizes images.
        """
        preparation = dict(inputs or {})
        columns = {item for name, given in preparation.items() for item in (name, given.source) if item}
        arrays, found = read(Path(path), labels=labels, part=part, columns=columns, size=size)
        whole = cls(arrays, found, preparation, Path(path).stem)
        if range is None:
            return whole
        start, stop = _range(range) if isinstance(range, str) else range
        return whole.slice(start or 0, len(whole) if stop is None else stop)

    @classmethod
    def parse(cls, text: str, inputs: Iterable[str] = ()) -> Dataset:
        """From the command line's words: ``FILE{part=train,range=0:200,labels=y,size=224x224}`` and one text for each Input."""
        spec = parse(text)
        options = {key: value.replace("x", "|") if key == "size" else value for key, value in spec.options.items()}
        given = construct(_FileOptions, f"data {spec.name!r}", options)
        preparation = dict(Input.parse(item) for item in inputs)
        size = (given.size[0], given.size[1]) if given.size else None
        return cls.load(spec.name, preparation, given.labels, given.part, given.range, size)

    @property
    def inputs(self) -> Mapping[str, Array]:
        """The arrays as prepared, all samples, by model input name; without a preparation the raw arrays."""
        if not self.preparation:
            return {name: np.asarray(array) for name, array in self.arrays.items()}
        return {name: given.apply(np.asarray(self.arrays[self._source(name, True)]), name) for name, given in self.preparation.items()}

    def __len__(self) -> int:
        return int(next(iter(self.arrays.values())).shape[0])

    def __str__(self) -> str:
        held = ", ".join(f"{name}: {array.dtype}{list(array.shape)}" for name, array in self.arrays.items())
        return f"{self.name or 'dataset'} ({held}{', labels' if self.labels is not None else ''})"

    @cached_property
    def digest(self) -> str:
        """SHA-256 over the raw arrays, the labels and the preparation."""
        sha = hashlib.sha256()

        def add(name: str, array: Samples | Array) -> None:
            sha.update(json.dumps([name, str(array.dtype), list(array.shape)]).encode())
            for start in range(0, array.shape[0], _DIGEST_ROWS):
                sha.update(np.ascontiguousarray(array[start : start + _DIGEST_ROWS]).tobytes())

        for name in sorted(self.arrays):
            add(name, self.arrays[name])
        if self.labels is not None:
            add("labels", self.labels)
        sha.update(json.dumps([given.text(name) for name, given in sorted(self.preparation.items())]).encode())
        return sha.hexdigest()

    def slice(self, start: int, stop: int) -> Dataset:
        """Samples start … stop − 1. Raises DataError if they are not all there."""
        if not 0 <= start < stop <= len(self):
            raise DataError(f"dataset {self.name!r} has samples 0 to {len(self)}, not {start}:{stop}")
        return self._select(slice(start, stop))

    def take(self, n: int) -> Dataset:
        """The first ``n`` samples, or all if there are fewer."""
        if n < 1:
            raise DataError(f"cannot take {n} samples", hint="take at least 1")
        return self.slice(0, min(n, len(self)))

    def shuffled(self, seed: int = 0) -> Dataset:
        """The samples in an order that only ``seed`` decides."""
        return self._select(_permutation(len(self), seed))

    def split(self, k: int) -> tuple[tuple[Dataset, Dataset], ...]:
        """``k`` (train, held out) pairs for cross-validation; each sample is held out once, classes are spread evenly. Deterministic."""
        if not 2 <= k <= len(self):
            raise DataError(f"cannot split {len(self)} samples into {k} folds", hint="take 2 or more, and no more than there are samples")
        order = _permutation(len(self), 0)
        if self.labels is not None and self.labels.ndim == 1 and self.labels.dtype.kind in "iubUS":
            order = order[np.argsort(self.labels[order], kind="stable")]
        fold = np.empty(len(self), np.int64)
        fold[order] = np.arange(len(self)) % k
        return tuple((self._select(np.flatnonzero(fold != i)), self._select(np.flatnonzero(fold == i))) for i in range(k))

    def feeds(self, infos: Sequence[TensorInfo]) -> dict[str, Array]:
        """Every sample, as the model's inputs ``infos`` take them. Raises DataError showing what is given and what is taken."""
        return self._feeds(infos, 0, len(self))

    def batches(self, infos: Sequence[TensorInfo], size: int) -> Iterator[dict[str, Array]]:
        """Feeds of at most ``size`` samples each, in order; only one batch is prepared at a time."""
        if size < 1:
            raise DataError(f"a batch of {size} samples is none")
        for start in range(0, len(self), size):
            yield self._feeds(infos, start, min(start + size, len(self)))

    def _select(self, index: Any) -> Dataset:
        arrays = {name: array[index] for name, array in self.arrays.items()}
        return Dataset(arrays, None if self.labels is None else self.labels[index], self.preparation, self.name)

    def _source(self, name: str, alone: bool) -> str:
        """The name of the raw array for the model input ``name``; ``alone``: the model has no other input."""
        given = self.preparation.get(name)
        if given is not None and given.source is not None:
            if given.source not in self.arrays:
                raise DataError(f"input {name!r}: the data has no array {given.source!r}, it has {', '.join(self.arrays)}")
            return given.source
        if name in self.arrays:
            return name
        if len(self.arrays) == 1 and (alone or len(self.preparation) == 1):
            return next(iter(self.arrays))
        raise DataError(
            f"input {name!r}: the data has no array of that name, it has {', '.join(self.arrays)}",
            hint=f"say which with Input(source=…), on the command line --input '{name}{{source={next(iter(self.arrays))}}}'",
        )

    def _feeds(self, infos: Sequence[TensorInfo], start: int, stop: int) -> dict[str, Array]:
        stray = set(self.preparation) - {info.name for info in infos}
        if stray:
            raise DataError(
                f"the model has no input {sorted(stray)[0]!r} to prepare, it takes {', '.join(map(str, infos))}",
                hint="name the model's input; the array's name in the file goes into source=",
            )
        return {info.name: self._feed(info, len(infos) == 1, start, stop) for info in infos}

    def _feed(self, info: TensorInfo, alone: bool, start: int, stop: int) -> Array:
        source = self._source(info.name, alone)
        raw = np.asarray(self.arrays[source][start:stop])
        given = self.preparation.get(info.name)
        if given is not None:
            value = given.apply(raw, info.name, info.dtype)
        else:
            # A float is a float: only its precision follows the model. A whole number's meaning is the user's to state.
            value = raw.astype(info.dtype) if raw.dtype.kind == info.dtype.kind == "f" else raw
        if value.shape[1:] != info.shape[1:] or not info.shape or value.dtype != info.dtype:
            kept = f"{value.dtype}[N{''.join(f', {d}' for d in value.shape[1:])}]"
            taken = f"{info.dtype}[{', '.join(map(str, ('N', *info.shape[1:]) if info.shape else ()))}]"
            how = " as prepared" if given is not None else ""
            held = f"array {source!r} of {self.name or 'the data'} is {kept}{how}"
            raise DataError(f"input {info.name!r} takes {taken}, {held}", hint=_suggest(info, raw, given))
        return np.ascontiguousarray(value)


@dataclass(frozen=True)
class _FileOptions:
    part: str | None = None
    range: str | None = None
    labels: str | None = None
    size: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        if self.size is not None and len(self.size) != 2:
            raise UsageError(f"size {self.size} is not height x width", hint="size=224x224")


def _suggest(info: TensorInfo, raw: Array, given: Input | None) -> str:
    """The Input that would make ``raw`` fit, in Python and on the command line; else what does not add up."""
    have, want = raw.shape[1:], info.shape[1:]
    base = given or Input()
    if not info.shape:
        return "the input is one number, not one per sample"
    if math.prod(have) != math.prod(want):
        return f"a sample has {math.prod(have)} values, the input takes {math.prod(want)}"
    wanted = dataclasses.replace(base, layout=None, reshape=None)
    if have != want:
        moved = {"NHWC->NCHW": have[-1:] + have[:-1], "NCHW->NHWC": have[1:] + have[:1]} if len(have) == 3 else {}
        layout = next((text for text, shape in moved.items() if shape == want), None)
        wanted = dataclasses.replace(wanted, layout=layout) if layout else dataclasses.replace(wanted, reshape=want)
    if info.dtype.kind in "iub" and (raw.dtype.kind == "f" or base.computes or base.dtype not in (None, info.dtype.name)):
        wanted = dataclasses.replace(wanted, dtype=info.dtype.name)
    elif info.dtype.kind == "f" and base.dtype is not None and base.dtype != info.dtype.name:
        wanted = dataclasses.replace(wanted, dtype=None)
    elif raw.dtype == np.uint8 and info.dtype == np.int8 and not base.computes:
        wanted = dataclasses.replace(wanted, offset=128.0, dtype="int8")
    return f"this would fit: inputs={{{info.name!r}: {wanted.code()}}}, on the command line --input '{wanted.text(info.name)}'"


def _range(text: str) -> tuple[int | None, int | None]:
    start, colon, stop = text.partition(":")
    try:
        if not colon:
            raise ValueError
        return (int(start) if start else None), (int(stop) if stop else None)
    except ValueError:
        raise UsageError(f"range {text!r} is not start:stop", hint="range=0:200, range=5000: or range=:200") from None


def _permutation(n: int, seed: int) -> Array:
    # RandomState's stream is frozen for all versions of numpy; Generator's is not.
    return np.random.RandomState(seed).permutation(n)
