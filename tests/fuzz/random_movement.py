"""Operators that move values."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from random_base import Array, Base


class Movement(Base):
    """Reshapes, slices, gathers, scatters, Resize."""

    def any(self, fits: Callable[[Array], Any] = lambda a: True) -> str | None:
        return self.pick(fits, "f" if self.chance(0.7) else "fiub")

    def reshape(self) -> None:
        x = self.any()
        if x is None:
            return
        shape, size = list(self.values[x].shape), self.values[x].size
        if size == 0:
            return
        if len(shape) > 1 and self.chance(0.5):
            at = int(self.random.integers(len(shape) - 1))
            shape[at : at + 2] = [shape[at] * shape[at + 1]]
        elif shape and self.chance(0.6):
            at = int(self.random.integers(len(shape)))
            whole = shape[at]
            part = self.choose([d for d in range(1, whole + 1) if whole % d == 0])
            shape[at : at + 1] = [part, whole // part]
        else:
            shape = [size]
        target = [0 if i < self.values[x].ndim and d == self.values[x].shape[i] and self.chance(0.3) else d for i, d in enumerate(shape)]
        if target and self.chance(0.4):
            target[int(self.random.integers(len(target)))] = -1
        self.add("Reshape", [x, self.numbers(target)])

    def transpose(self) -> None:
        x = self.any(lambda a: a.ndim > 1)
        if x is not None:
            self.add("Transpose", [x], **({"perm": self.random.permutation(self.values[x].ndim).tolist()} if self.chance(0.9) else {}))

    def flatten(self) -> None:
        x = self.any()
        if x is not None:
            self.add("Flatten", [x], axis=self.axis(x))

    def squeeze(self) -> None:
        x = self.any(lambda a: 1 in a.shape)
        if x is None:
            return
        axes = [i for i, d in enumerate(self.values[x].shape) if d == 1]
        axes = sorted(self.random.choice(axes, int(self.random.integers(1, len(axes) + 1)), replace=False).tolist())
        self.with_axes("Squeeze", x, axes, 13)

    def unsqueeze(self) -> None:
        x = self.any(lambda a: a.ndim < 5)
        if x is not None:
            count = int(self.random.integers(1, 3))
            axes = sorted(self.random.choice(self.values[x].ndim + count, count, replace=False).tolist())
            self.with_axes("Unsqueeze", x, axes, 13)

    def with_axes(self, op: str, x: str, axes: list[int], since: int) -> None:
        if self.opset >= since:
            self.add(op, [x, self.numbers(axes)])
        else:
            self.add(op, [x], axes=axes)

    def concat(self) -> None:
        x = self.any(lambda a: a.ndim)
        if x is None:
            return
        a, axis = self.values[x], self.axis(x)
        around = [d for i, d in enumerate(a.shape) if i != axis % a.ndim]

        def joins(b: Array) -> bool:
            return b.dtype == a.dtype and b.ndim == a.ndim and [d for i, d in enumerate(b.shape) if i != axis % a.ndim] == around

        others = [self.pick(joins, a.dtype.kind) or x for _ in range(int(self.random.integers(1, 4)))]
        if self.chance(0.3):
            shape = list(a.shape)
            shape[axis] = self.size()
            others.append(self.constant(self.drawn(shape, a.dtype), shared=True))
        self.add("Concat", [x, *others], axis=axis)

    def slice(self) -> None:
        x = self.any(lambda a: a.ndim and a.size)
        if x is None:
            return
        shape = self.values[x].shape
        axes = sorted(self.random.choice(len(shape), int(self.random.integers(1, len(shape) + 1)), replace=False).tolist())
        starts, ends, steps = [], [], []
        for axis in axes:
            size = shape[axis]
            step = int(self.choose([1, 1, 1, 2, 3, -1, -2])) if self.opset >= 10 else 1
            first, last = sorted(self.random.integers(0, size + 1, 2).tolist())
            if first == last and self.chance(0.95):
                first, last = 0, size
            starts.append(first - size if self.chance(0.2) and first < size else first)
            ends.append(int(self.choose([last, last, 2**31 - 1])))
            if step < 0:
                starts[-1], ends[-1] = (
                    int(self.choose([last, 2**31 - 1, -1])),
                    int(self.choose([first - 1 if first else -size - 1, -(2**31)])),
                )
            steps.append(step)
        if self.opset < 10:
            self.add("Slice", [x], axes=axes, starts=starts, ends=ends)
            return
        kind = self.choose([np.int64, np.int32])
        self.add("Slice", [x, *(self.constant(v, kind) for v in (starts, ends, axes, steps))])

    def split(self) -> None:
        x = self.any(lambda a: a.ndim and max(a.shape) > 1)
        if x is None:
            return
        axis = self.axis(x)
        size = self.values[x].shape[axis]
        if size < 2:
            return
        first = int(self.random.integers(1, size))
        if self.chance(0.3) and size % 2 == 0:
            self.add("Split", [x], 2, axis=axis, **({"num_outputs": 2} if self.opset >= 18 else {}))
        elif self.opset >= 13:
            self.add("Split", [x, self.numbers([first, size - first])], 2, axis=axis)
        else:
            self.add("Split", [x], 2, axis=axis, split=[first, size - first])

    def pad(self) -> None:
        x = self.pick(lambda a: a.ndim and a.size and a.dtype == self.float)
        if x is None:
            return
        shape = self.values[x].shape
        mode = self.choose(["constant", "constant", "reflect", "edge", "wrap"])
        most = [min(3, d - 1) if mode in ("reflect", "wrap") else 3 for d in shape]
        amounts = [
            int(self.random.integers(-1 if mode == "constant" and d > 3 else 0, m + 1))
            for _ in range(2)
            for d, m in zip(shape, most, strict=True)
        ]
        if self.opset < 11:
            self.add("Pad", [x], pads=amounts, mode=mode, **({"value": 0.5} if self.chance(0.3) else {}))
            return
        fill = [self.constant(self.choose([0, 1.5, -1]), self.values[x].dtype)] if self.chance(0.5) else []
        self.add("Pad", [x, self.numbers(amounts), *fill], mode=mode)

    def expand(self) -> None:
        x = self.any(lambda a: a.ndim == 0 or 1 in a.shape)
        if x is not None:
            shape = [d if d != 1 or self.chance(0.3) else self.size() for d in self.values[x].shape]
            self.add("Expand", [x, self.numbers([self.size(), *shape] if self.chance(0.3) else shape)])

    def tile(self) -> None:
        x = self.any(lambda a: a.ndim)
        if x is not None:
            self.add("Tile", [x, self.numbers(self.random.integers(1, 4, self.values[x].ndim))])

    def indices(self, shape: Sequence[int], size: int) -> str:
        array = self.random.integers(-size if self.opset >= 11 else 0, size, tuple(shape))
        kind = self.choose([np.int64, np.int64, np.int32])
        if self.chance(0.7):
            return self.constant(array, kind)
        name = self.fresh("x")
        self.inputs[name] = self.values[name] = np.asarray(array, kind)
        return name

    def gather(self) -> None:
        x = self.any(lambda a: a.ndim and a.size)
        if x is None:
            return
        axis, shape = self.axis(x), self.values[x].shape
        kind = self.random.random()
        if kind < 0.5:
            self.add("Gather", [x, self.indices(self.choose([(), (1,), (3,), (2, 2)]), shape[axis])], axis=axis)
        elif kind < 0.75:
            own = [min(d, int(self.random.integers(1, d + 1))) if i != axis % len(shape) else self.size() for i, d in enumerate(shape)]
            self.add("GatherElements", [x, self.indices(own, shape[axis])], axis=axis)
        else:
            depth = int(self.random.integers(1, len(shape) + 1))
            columns = [self.random.integers(0, d, 3) for d in shape[:depth]]
            self.add("GatherND", [x, self.numbers(np.stack(columns, -1))])

    def scatter(self) -> None:
        x = self.pick(lambda a: a.ndim and a.size)
        if x is None or self.opset < 11:
            return
        a, axis = self.values[x], self.axis(x)
        reduction = {"reduction": self.choose(["none", "add", "mul", "max", "min"])} if self.opset >= 18 else {}
        if self.chance(0.5):
            own = [int(self.random.integers(1, d + 1)) for d in a.shape]
            places = np.zeros(own, np.int64)
            for lane in np.ndindex(*[d for i, d in enumerate(own) if i != axis % a.ndim]):
                at = list(lane)
                at.insert(axis % a.ndim, slice(None))  # type: ignore[arg-type]
                places[tuple(at)] = self.random.permutation(a.shape[axis])[: own[axis]]
            self.add("ScatterElements", [x, self.numbers(places), self.constant(self.drawn(own, a.dtype))], axis=axis, **reduction)
            return
        depth = int(self.random.integers(1, a.ndim + 1))
        count = min(2, int(np.prod(a.shape[:depth])))
        flat = self.random.permutation(int(np.prod(a.shape[:depth])))[:count]
        where = np.stack(np.unravel_index(flat, a.shape[:depth]), -1)
        self.add("ScatterND", [x, self.numbers(where), self.constant(self.drawn([count, *a.shape[depth:]], a.dtype))], **reduction)

    def shuffle(self) -> None:
        x = self.pick(lambda a: a.ndim == 4 and a.size)
        if x is None:
            return
        _, channels, height, width = self.values[x].shape
        if channels % 4 == 0:
            self.add("DepthToSpace", [x], blocksize=2, **({"mode": self.choose(["DCR", "CRD"])} if self.opset >= 11 else {}))
        elif height % 2 == 0 and width % 2 == 0:
            self.add("SpaceToDepth", [x], blocksize=2)

    def triangle(self) -> None:
        x = self.pick(lambda a: a.ndim > 1)
        if x is not None and self.opset >= 14:
            more = [self.constant(int(self.random.integers(-2, 3)), np.int64)] if self.chance(0.6) else []
            self.add("Trilu", [x, *more], upper=int(self.random.integers(2)))

    def one_hot(self) -> None:
        x = self.pick(lambda a: a.ndim < 4 and a.size, "i")
        if x is not None and self.opset >= 9:
            self.add(
                "OneHot",
                [x, self.numbers([int(self.choose([3, 10]))]), self.constant([0.0, 1.0], np.float32)],
                axis=int(self.choose([-1, 0])),
            )

    def reverse(self) -> None:
        x = self.pick(lambda a: a.ndim > 1 and a.size)
        if x is not None and self.opset >= 10:
            a = self.values[x]
            lengths = self.random.integers(1, a.shape[0] + 1, a.shape[1])
            self.add("ReverseSequence", [x, self.numbers(lengths)], batch_axis=1, time_axis=0)

    def resize(self) -> None:
        x = self.pick(lambda a: a.ndim in (3, 4) and a.size and a.dtype == np.float32)
        if x is None or self.opset < 11:
            return
        a = self.values[x]
        mode = self.choose(["nearest", "linear", "nearest", "linear", "cubic"])
        transform = self.choose(["half_pixel", "asymmetric", "align_corners", "pytorch_half_pixel"])
        attributes = {"mode": mode, "coordinate_transformation_mode": transform}
        if mode == "nearest" and self.chance(0.7):
            attributes["nearest_mode"] = self.choose(["floor", "ceil", "round_prefer_floor", "round_prefer_ceil"])
        roi = self.constant(np.zeros(0), np.float32) if self.opset < 13 else None
        if self.chance(0.5):
            scales = [1.0, 1.0, *(float(self.choose([0.5, 1.0, 1.5, 2.0, 3.0])) for _ in a.shape[2:])]
            self.add("Resize", [x, roi, self.constant(scales, np.float32)], **attributes)
            return
        sizes = [*a.shape[:2], *(int(self.random.integers(1, 9)) for _ in a.shape[2:])]
        blank = self.constant(np.zeros(0), np.float32) if self.opset < 13 else None
        self.add("Resize", [x, roi, blank, self.numbers(sizes)], **attributes)
