"""Candidates of a kernel, built and timed. Everything here runs in a forked process (``contained.py``).

The kernel is the whole one, with what is fused behind it and with the model's own weights. Candidates take turns, run by
run, so that all of them meet the same machine; where the model's weights do not fit the last cache, each run reads other
copies of them, as it would in the model. A candidate's time is the lower decile of its runs: whatever else the machine does
only ever adds to them, and on a quiet one decile and median are the same.
"""

from __future__ import annotations

import math
import os
import statistics
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import tvm
import tvm_ffi

from gatewright.frontend.integer import Array

from .codegen import Graph, scheduled
from .contained import Tell
from .executor import aligned_empty
from .fusion import Group
from .kernel import Choice, Kernel, Policy, first
from .tuning import text

TOLERANCE = {"float64": 1e-10, "float32": 1e-4, "float16": 2e-2, "bfloat16": 1e-1}
"""How far two candidates' results may lie apart, as a share of the largest value. Winograd F(4x4) takes 1e-5."""
_SHARE_ALL_CORES = -3
"""TVM's affinity mode in which every worker may run on any of the given cores."""
_LEAST_ROUNDS, _MOST_ROUNDS = 12, 200
_SECONDS, _MOST_SECONDS = 0.25, 3.0
"""Of timing one problem's candidates, where the rounds allow; and where the machine is disturbed."""
_DISTURBED = 1.2
"""Median over lower decile."""
_HOPELESS = 1.5
"""A candidate this many times slower than the best after the least rounds is not run again."""
_CLEARLY = 0.98
"""Another candidate than the analytic one is taken where it needs at most this share of its time."""


@dataclass(frozen=True)
class Trial:
    """One candidate for one problem of one group, under the name of its function."""

    name: str
    group: Group
    problem: str
    choice: Choice


@dataclass(frozen=True)
class Bench:
    """What all trials share."""

    graph: Graph
    policy: Policy
    target: Any
    """TVM's."""
    folder: Path
    threads: int
    footprint: int
    """Bytes of weights that pass between two uses of the same ones; 0: they stay in the cache."""

    def lowered(self, trial: Trial) -> tuple[Kernel, Any]:
        def choose(problem: str, candidates: Sequence[Choice]) -> Choice:
            return trial.choice if problem == trial.problem else first(problem, candidates)

        return self.graph.lowered(trial.group, replace(self.policy, choose=choose))

    def build(self, trial: Trial, tell: Tell) -> str:
        """The object file of a trial. Raises whatever TVM raises."""
        tell(trial.name)
        kernel, function = self.lowered(trial)
        made = scheduled(kernel, function, trial.group.output.output.dtype, trial.name).with_attr("target", self.target)
        path = self.folder / f"{trial.name}.o"
        tvm.tirx.build(tvm.IRModule({trial.name: made}), target=self.target).write_to_file(str(path), "o")
        return str(path)

    def compare(self, library: Path, trials: Sequence[Trial], tell: Tell) -> dict[str, Any]:
        """{"seconds": {name: time}, "rejected": {name: why}} of trials of one problem; the first one decides what is right."""
        module = _loaded(library)
        _use_threads(self.threads)
        rejected: dict[str, str] = {}
        runs: dict[str, list[tuple[Any, ...]]] = {}
        feeds: list[Array] | None = None
        expected: Array | None = None
        for trial in trials:
            tell(trial.name)
            kernel, _ = self.lowered(trial)
            if feeds is None:
                feeds = [_sample(tensor, self.graph, name) for name, tensor in kernel.reads.items()]
                out = _poisoned(kernel.layout.buffer_shape(trial.group.output.output.shape), trial.group.output.output.dtype)
            exact = not any(str(array.dtype).startswith("float") for array in feeds)
            copies = self._copies(kernel, len(trials))
            arguments = [tuple(tvm_ffi.from_dlpack(a) for a in (*feeds, *copy, out)) for copy in copies]
            out[...] = _poisoned(out.shape, str(out.dtype))
            module[trial.name](*arguments[0])
            if expected is None:
                expected = out.copy()
            elif why := difference(expected, out, exact):
                rejected[trial.name] = f"it computes something else than {text(trials[0].choice)}: {why}"
                continue
            runs[trial.name] = arguments
        tell("")
        return {"seconds": _timed({name: module[name] for name in runs}, runs), "rejected": rejected}

    def _copies(self, kernel: Kernel, trials: int) -> list[list[Array]]:
        """The kernel's constants, as many times as it takes to push the first out of the cache before it is used again."""
        arrays = [array for _, array in kernel.parameters]
        size = sum(array.nbytes for array in arrays)
        count = min(64, math.ceil(self.footprint / max(1, trials) / size)) if size else 1
        return [[_aligned(array) for array in arrays] for _ in range(max(1, count))]


def fastest(trials: Sequence[Trial], seconds: Mapping[str, float]) -> Trial | None:
    """The trial to take: the first one (the analytic choice) unless another is clearly faster."""
    timed = [trial for trial in trials if trial.name in seconds]
    if not timed:
        return None
    best = min(timed, key=lambda trial: seconds[trial.name])
    return timed[0] if seconds[best.name] > _CLEARLY * seconds[timed[0].name] else best


def difference(expected: Array, found: Array, exact: bool) -> str | None:
    """Why ``found`` is not what another algorithm may give for ``expected``; None where it is.

    Integers are equal; where they were rounded from floats (not ``exact``) they may be one step apart.
    """
    tolerance = TOLERANCE.get(str(expected.dtype))
    a, b = expected.astype(np.float64), found.astype(np.float64)
    if tolerance is None:
        apart = float(np.abs(a - b).max(initial=0.0))
        return None if apart <= (0 if exact else 1) else f"values are {apart:.0f} apart"
    finite = np.isfinite(a)
    if not np.array_equal(a[~finite], b[~finite], equal_nan=True) or not np.isfinite(b[finite]).all():
        return "other values are not finite, or some were not written"
    scale = float(np.abs(a[finite]).max(initial=0.0))
    apart = float(np.abs(a[finite] - b[finite]).max(initial=0.0))
    return None if apart <= tolerance * scale else f"values are {apart:.3g} apart where the largest is {scale:.3g}"


@cache
def _loaded(library: Path) -> Any:
    return tvm_ffi.load_module(str(library))


@cache
def _use_threads(count: int) -> None:
    """Make TVM's pool ``count`` threads wide, anywhere on the cores: left alone it takes half of them and pins each thread to one."""
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else list(range(os.cpu_count() or 1))
    # The pool is never wider than this list is long.
    places = [str(cores[i % len(cores)]) for i in range(max(count, len(cores)))]
    tvm_ffi.get_global_func("runtime.config_threadpool")(_SHARE_ALL_CORES, count, places)


def _timed(functions: Mapping[str, Any], runs: Mapping[str, list[tuple[Any, ...]]]) -> dict[str, float]:
    """Seconds of a run by name; those who are hopeless stop early."""
    times: dict[str, list[float]] = {name: [] for name in functions}
    alive, turn, clock = list(functions), 0, time.perf_counter
    started = clock()
    while alive and turn < _MOST_ROUNDS and (turn < _LEAST_ROUNDS or clock() - started < _limit_s(times[name] for name in alive)):
        for name in alive:
            arguments = runs[name][turn % len(runs[name])]
            start = clock()
            functions[name](*arguments)
            times[name].append(clock() - start)
        turn += 1
        if turn >= _LEAST_ROUNDS:
            # By the shortest run of each: a few runs that were disturbed say nothing against a candidate.
            best = min(min(times[name]) for name in alive)
            alive = [name for name in alive if min(times[name]) <= _HOPELESS * best]
    return {name: _decile(found) for name, found in times.items()}


def _limit_s(times: Iterable[Sequence[float]]) -> float:
    """How long to go on: longer where every candidate is disturbed in every other run."""
    quiet = any(statistics.median(own) <= _DISTURBED * _decile(own) for own in times)
    return _SECONDS if quiet else _MOST_SECONDS


def _decile(times: Sequence[float]) -> float:
    return sorted(times)[len(times) // 10]


def _sample(tensor: Any, graph: Graph, name: str) -> Array:
    """Values for an input: normal floats, integers of the whole range of their grid, zeros where they could be an index."""
    random = np.random.default_rng(0)
    array = aligned_empty(tuple(int(d) for d in tensor.shape), str(tensor.dtype))
    if array.dtype.kind not in "iub":
        array[...] = random.standard_normal(array.shape)
    elif array.dtype.kind == "b":
        array[...] = random.integers(0, 2, array.shape)
    elif array.dtype.itemsize > 2:
        array[...] = 0
    else:
        grid = next((s.grid for s in graph.program.steps if s.output.name == name), None)
        bounds = np.iinfo(array.dtype)
        low, high = (grid.lo, grid.hi) if grid is not None else (bounds.min, bounds.max)
        array[...] = random.integers(low, high + 1, array.shape)
    return array


def _poisoned(shape: tuple[int, ...], dtype: str) -> Array:
    """A result that nobody has written yet: not-a-number, or a pattern of bits."""
    array = aligned_empty(shape, dtype)
    array[...] = np.nan if array.dtype.kind not in "iub" else 0x55
    return array


def _aligned(array: Array) -> Array:
    copy = aligned_empty(array.shape or (1,), array.dtype)
    copy[...] = array
    return copy
