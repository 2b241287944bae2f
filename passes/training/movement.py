"""Operators that move, select and reduce values, as torch computes them. Axes, shapes and steps are constants of the graph."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from .resize import resize
from .site import Function, Maker, Site


def _reshape(site: Site) -> Function:
    target, copies = site.numbers(1, "target shape"), not site.get("allowzero", 0)
    return lambda x, *_: x.reshape([x.shape[i] if d == 0 and copies else d for i, d in enumerate(target)])


def _transpose(site: Site) -> Function:
    perm = site.get("perm", tuple(reversed(range(site.rank()))))
    return lambda x: x.permute(perm)


def _concat(site: Site) -> Function:
    axis = site.get("axis")
    return lambda *inputs: torch.cat(inputs, dim=axis)


def _slice(site: Site) -> Function:
    starts, ends = site.numbers(1, "start"), site.numbers(2, "end")
    axes = site.numbers(3, "axes") if site.given(3) else tuple(range(len(starts)))
    steps = site.numbers(4, "steps") if site.given(4) else (1,) * len(starts)

    def cut(x: Tensor, *_: Tensor) -> Tensor:
        for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
            first, last, stride = slice(start, end, step).indices(x.shape[axis])
            if step > 0:
                index: list[slice] = [slice(None)] * x.ndim
                index[axis] = slice(first, max(last, first), stride)
                x = x[tuple(index)]
            else:
                x = x.index_select(axis, torch.arange(first, last, stride, device=x.device))
        return x

    return cut


def _split(site: Site) -> Function:
    axis, count = site.get("axis", 0), len(site.node.outputs)
    size = site.shape(0)[axis]
    even = math.ceil(size / count)
    sizes = site.numbers(1, "split") if site.given(1) else (*(even,) * (count - 1), size - even * (count - 1))
    return lambda x, *_: torch.split(x, list(sizes), dim=axis)


def _gather(site: Site) -> Function:
    axis = site.get("axis", 0) % site.rank()

    def gather(x: Tensor, index: Tensor) -> Tensor:
        whole = torch.where(index < 0, index + x.shape[axis], index).to(torch.int64)
        picked = x.index_select(axis, whole.reshape(-1))
        return picked.reshape(*x.shape[:axis], *index.shape, *x.shape[axis + 1 :])

    return gather


def _gather_elements(site: Site) -> Function:
    axis = site.get("axis", 0)
    return lambda x, index: torch.gather(x, axis, torch.where(index < 0, index + x.shape[axis], index).to(torch.int64))


def _gather_nd(site: Site) -> Function:
    if site.get("batch_dims", 0):
        raise site.refused("batch_dims is not supported")

    def gather(x: Tensor, index: Tensor) -> Tensor:
        columns = [torch.where(i < 0, i + x.shape[n], i).to(torch.int64) for n, i in enumerate(index.unbind(-1))]
        return x[tuple(columns)]

    return gather


def _scatter_elements(site: Site) -> Function:
    axis, reduction = site.get("axis", 0), site.get("reduction", "none")
    if reduction not in ("none", "add"):
        raise site.refused(f"reduction {reduction!r} is not supported")

    def scatter(x: Tensor, index: Tensor, updates: Tensor) -> Tensor:
        whole = torch.where(index < 0, index + x.shape[axis], index).to(torch.int64)
        return torch.scatter(x, axis, whole, updates) if reduction == "none" else torch.scatter_add(x, axis, whole, updates)

    return scatter


def _scatter_nd(site: Site) -> Function:
    reduction = site.get("reduction", "none")
    if reduction not in ("none", "add"):
        raise site.refused(f"reduction {reduction!r} is not supported")

    def scatter(x: Tensor, index: Tensor, updates: Tensor) -> Tensor:
        columns = tuple(torch.where(i < 0, i + x.shape[n], i).to(torch.int64) for n, i in enumerate(index.unbind(-1)))
        return torch.index_put(x, columns, updates, accumulate=reduction == "add")

    return scatter


def _expand(site: Site) -> Function:
    target = site.numbers(1, "target shape")
    return lambda x, *_: x.broadcast_to(torch.broadcast_shapes(tuple(x.shape), target))


def _tile(site: Site) -> Function:
    repeats = site.numbers(1, "repeats")
    return lambda x, *_: x.repeat(repeats)


def _squeeze(site: Site) -> Function:
    axes = site.numbers(1, "axes") if site.given(1) else tuple(i for i, d in enumerate(site.shape(0)) if d == 1)
    return lambda x, *_: x.squeeze(tuple(a % x.ndim for a in axes))


def _unsqueeze(site: Site) -> Function:
    axes, rank = site.numbers(1, "axes"), site.rank()
    places = sorted(a % (rank + len(axes)) for a in axes)

    def unsqueeze(x: Tensor, *_: Tensor) -> Tensor:
        for axis in places:
            x = x.unsqueeze(axis)
        return x

    return unsqueeze


def _flatten(site: Site) -> Function:
    axis = site.get("axis", 1) % (site.rank() + 1)
    return lambda x: x.reshape(math.prod(x.shape[:axis]), -1)


def _pad(site: Site) -> Function:
    rank, pads, mode = site.rank(), site.numbers(1, "pads"), site.get("mode", "constant")
    axes = [a % rank for a in site.numbers(3, "axes")] if site.given(3) else list(range(rank))
    ends = {axis: (pads[i], pads[i + len(axes)]) for i, axis in enumerate(axes)}
    if mode == "constant":
        # functional.pad counts axes from the last, and negative amounts crop.
        amounts = [n for axis in reversed(range(rank)) for n in ends.get(axis, (0, 0))]
        fill = float(site.constant(2, "fill").reshape(-1)[0]) if site.given(2) else 0.0
        return lambda x, *_: functional.pad(x, amounts, value=fill)
    if mode not in ("reflect", "edge", "wrap"):
        raise site.refused(f"mode {mode!r} is not known")

    def pad(x: Tensor, *_: Tensor) -> Tensor:
        for axis, (begin, end) in ends.items():
            if begin or end:
                numpy_mode = {"reflect": "reflect", "edge": "edge", "wrap": "wrap"}[mode]
                kept = np.arange(max(0, -begin), x.shape[axis] - max(0, -end))
                index = np.pad(kept, (max(0, begin), max(0, end)), mode=numpy_mode)  # type: ignore[call-overload]
                x = x.index_select(axis, torch.from_numpy(index).to(x.device))
        return x

    return pad


def _depth_to_space(site: Site) -> Function:
    b, columns = site.get("blocksize"), site.get("mode", "DCR") == "DCR"

    def depth_to_space(x: Tensor) -> Tensor:
        n, c, h, w = x.shape
        if columns:
            return x.reshape(n, b, b, c // b**2, h, w).permute(0, 3, 4, 1, 5, 2).reshape(n, c // b**2, h * b, w * b)
        return x.reshape(n, c // b**2, b, b, h, w).permute(0, 1, 4, 2, 5, 3).reshape(n, c // b**2, h * b, w * b)

    return depth_to_space


def _space_to_depth(site: Site) -> Function:
    b = site.get("blocksize")

    def space_to_depth(x: Tensor) -> Tensor:
        n, c, h, w = x.shape
        return x.reshape(n, c, h // b, b, w // b, b).permute(0, 3, 5, 1, 2, 4).reshape(n, c * b**2, h // b, w // b)

    return space_to_depth


def _trilu(site: Site) -> Function:
    diagonal = site.numbers(1, "diagonal")[0] if site.given(1) else 0
    keep = torch.triu if site.get("upper", 1) else torch.tril
    return lambda x, *_: keep(x, diagonal)


def _cumulative(site: Site) -> Function:
    (axis,), exclusive, reverse = site.numbers(1, "axis"), site.get("exclusive", 0), site.get("reverse", 0)

    def cumulative(x: Tensor, *_: Tensor) -> Tensor:
        y = x.flip(axis) if reverse else x
        total = torch.cumsum(y, axis)
        total = total - y if exclusive else total
        return total.flip(axis) if reverse else total

    return cumulative


def _one_hot(site: Site) -> Function:
    (depth,), axis = site.numbers(1, "depth"), site.get("axis", -1)

    def one_hot(index: Tensor, _: Tensor, values: Tensor) -> Tensor:
        whole = torch.where(index < 0, index + depth, index).to(torch.int64)
        along = [-1 if i == axis % (index.ndim + 1) else 1 for i in range(index.ndim + 1)]
        hot = whole.unsqueeze(axis) == torch.arange(depth, device=index.device).reshape(along)
        return torch.where(hot, values[1], values[0])

    return one_hot


def _einsum(site: Site) -> Function:
    equation = site.get("equation")
    return lambda *inputs: torch.einsum(equation, *inputs)


def _top_k(site: Site) -> Function:
    (k,), axis = site.numbers(1, "k"), site.get("axis", -1)
    largest, ordered = bool(site.get("largest", 1)), bool(site.get("sorted", 1))
    return lambda x, *_: tuple(torch.topk(x, k, dim=axis, largest=largest, sorted=ordered))


def _arg(site: Site) -> Function:
    axis, keep, last = site.get("axis", 0), site.get("keepdims", 1), site.get("select_last_index", 0)
    find = torch.argmax if site.node.op_type == "ArgMax" else torch.argmin

    def arg(x: Tensor) -> Tensor:
        found = find(x.flip(axis) if last else x, dim=axis, keepdim=bool(keep))
        return x.shape[axis] - 1 - found if last else found

    return arg


Reduction = Callable[[Tensor, Sequence[int], bool], Tensor]


def _product(x: Tensor, axes: Sequence[int], keep: bool) -> Tensor:
    for axis in sorted(axes, reverse=True):
        x = torch.prod(x, dim=axis, keepdim=keep)
    return x


_REDUCTIONS: dict[str, Reduction] = {
    "ReduceSum": lambda x, a, k: torch.sum(x, dim=a, keepdim=k), "ReduceMean": lambda x, a, k: torch.mean(x, dim=a, keepdim=k),
    "ReduceMax": lambda x, a, k: torch.amax(x, dim=a, keepdim=k), "ReduceMin": lambda x, a, k: torch.amin(x, dim=a, keepdim=k),
    "ReduceProd": _product, "ReduceSumSquare": lambda x, a, k: torch.sum(x * x, dim=a, keepdim=k),
    "ReduceL1": lambda x, a, k: torch.sum(torch.abs(x), dim=a, keepdim=k),
    "ReduceL2": lambda x, a, k: torch.linalg.vector_norm(x, dim=a, keepdim=k),
    "ReduceLogSum": lambda x, a, k: torch.log(torch.sum(x, dim=a, keepdim=k)),
    "ReduceLogSumExp": lambda x, a, k: torch.logsumexp(x, dim=a, keepdim=k),
}  # fmt: skip


def _reduce(site: Site) -> Function:
    function, keep, rank = _REDUCTIONS[site.node.op_type], bool(site.get("keepdims", 1)), site.rank()
    axes = [a % rank for a in site.numbers(1, "axes")] if site.given(1) else []
    if not axes:
        if site.get("noop_with_empty_axes", 0):
            return lambda x, *_: x
        axes = list(range(rank))
    return lambda x, *_: function(x, axes, keep)


MAKERS: dict[str, Maker] = {
    **dict.fromkeys(_REDUCTIONS, _reduce),
    "Reshape": _reshape, "Transpose": _transpose, "Concat": _concat, "Slice": _slice, "Split": _split,
    "Gather": _gather, "GatherElements": _gather_elements, "GatherND": _gather_nd, "ScatterElements": _scatter_elements,
    "ScatterND": _scatter_nd, "Expand": _expand, "Tile": _tile, "Squeeze": _squeeze, "Unsqueeze": _unsqueeze, "Flatten": _flatten,
    "Pad": _pad, "DepthToSpace": _depth_to_space, "SpaceToDepth": _space_to_depth, "Trilu": _trilu, "CumSum": _cumulative,
    "OneHot": _one_hot, "Einsum": _einsum, "TopK": _top_k, "ArgMax": _arg, "ArgMin": _arg, "Resize": resize,
}  # fmt: skip
