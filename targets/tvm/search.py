"""Levels 1 and 2: which way to make each kernel, by measuring on this machine, within a budget of seconds.

Level 1 times the first ``CANDIDATES`` of what a lowering proposes. Level 2 goes on from there where a kernel stays below
``GOOD`` of the processor's peak: it changes the block sizes of the best candidate a step at a time, an evolutionary search
over the project's own schedules. (TVM's MetaSchedule is not used: it takes 25 s to propose the first candidates of a single
convolution, and then its builder's processes run into their time limit.) Problems come in the order of the work that hangs
on them, what is found out is stored at once (``tuning.py``), and a search that was interrupted goes on where it was.
"""

from __future__ import annotations

import math
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

from gatewright.errors import ToolFailed
from gatewright.frontend.integer import IntegerOp
from gatewright.hw.device import Processor

from .codegen import Graph, names
from .contained import Failure, each
from .fusion import Group
from .kernel import Choice, Policy, first
from .timing import Bench, Trial, fastest
from .tuning import Measured, TuningCache, text

CANDIDATES = 8
"""Of a problem, at level 1."""
GOOD = 0.8
"""Share of the processor's peak from which level 2 leaves a kernel alone."""
GENERATIONS, OFFSPRING = 6, 8
"""Level 2: rounds without an improvement of a problem's best, and new candidates in each."""
_BATCH = 24
"""Candidates that are linked into one library."""
_LIMIT_S = 20.0
"""For building one candidate, and for one run of it."""


@dataclass(frozen=True)
class Problem:
    """What a lowering asked, and where."""

    text: str
    candidates: tuple[Choice, ...]
    group: Group
    """The first that asked; its fused steps are those that are measured."""
    work: int
    """Multiply-adds of all kernels that asked the same."""
    own_work: int
    """Of one of them."""


@dataclass(eq=False)
class Choices:
    """The chooser of levels 1 and 2: what was measured, else the analytic choice."""

    measured: dict[str, Measured] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def __call__(self, problem: str, candidates: Sequence[Choice]) -> Choice:
        found = self.measured.get(problem)
        return candidates[0] if found is None else found.choice


@dataclass
class Search:
    """One search: ``run`` it once."""

    graph: Graph
    policy: Policy
    processor: Processor
    cache: TuningCache
    folder: Path
    """An empty one to work in."""
    bench: Bench
    link: Callable[[Sequence[str], Path], None]
    """Makes a library of object files."""
    jobs: int
    budget_s: float
    tell: Callable[[str], None]

    def run(self, level: int) -> Choices:
        """Ends within the budget, and a little: what was not measured by then is left to the analytic choice, and noted."""
        self._ends = time.monotonic() + self.budget_s
        self._spent = False
        self._count = 0
        self._choices = Choices()
        found = problems(self.graph, self.policy)
        unknown = [p for p in found if not self._known(p)]
        done = 0
        for batch in self._in_time(_batches(unknown)):
            self.tell(f"measuring kernels: {done} of {len(unknown)} problems done, next {names(batch[0].group)}")
            for problem, measured in self._measure([(p, p.candidates) for p in batch]):
                self._take(problem, problem.candidates, measured)
            done += len(batch)
        left = sum(1 for p in unknown if p.text not in self._choices.measured)
        if left:
            why = f"the budget of {self.budget_s:g} s was spent" if self._spent else "none of their candidates ran"
            self._choices.notes.append(f"{left} of {len(found)} kernel problems were not measured: {why}")
        if level > 1:
            self._widen([p for p in found if p.text in self._choices.measured])
        return self._choices

    def _known(self, problem: Problem) -> bool:
        known = self.cache.get(problem.text, problem.candidates)
        if known is not None:
            self._choices.measured[problem.text] = known
        return known is not None

    def _take(self, problem: Problem, candidates: Sequence[Choice], measured: Measured) -> None:
        self._choices.measured[problem.text] = measured
        self.cache.put(problem.text, candidates, measured)
        for candidate, why in measured.rejected.items():
            self._choices.notes.append(f"candidate {candidate} of {names(problem.group)} was rejected: {why}")

    def _in_time(self, batches: Iterator[list[Problem]]) -> Iterator[list[Problem]]:
        """Batches for as long as the next one fits the budget, if its candidates take what those of the last one took."""
        each_s = 0.0
        for batch in batches:
            count, started = sum(len(p.candidates) for p in batch), time.monotonic()
            if started + count * each_s >= self._ends:
                self._spent = True
                return
            yield batch
            self._spent = time.monotonic() >= self._ends
            each_s = (time.monotonic() - started) / count

    def _measure(self, wanted: Sequence[tuple[Problem, Sequence[Choice]]]) -> Iterator[tuple[Problem, Measured]]:
        """Build all candidates, in parallel, into one library; then time problem by problem. Those that nobody solved are left out."""
        trials = {p.text: [self._trial(p, c) for c in candidates] for p, candidates in wanted}
        rejected: dict[str, str] = {}
        objects = self._build([t for own in trials.values() for t in own], rejected)
        if not objects or len(objects) + len(rejected) < sum(map(len, trials.values())):
            return  # the budget ended it: a choice among half of the candidates is none to keep
        library = self.folder / f"batch{self._count}.so"
        self.link(list(objects.values()), library)
        left = {p.text: [t for t in trials[p.text] if t.name in objects] for p, _ in wanted}
        by_text = {p.text: p for p, _ in wanted}
        for problem, seconds in self._time(library, left, rejected):
            best = fastest(trials[problem], seconds)
            if best is not None:
                timed = {text(t.choice): seconds[t.name] for t in trials[problem] if t.name in seconds}
                why = {text(t.choice): rejected[t.name] for t in trials[problem] if t.name in rejected}
                yield by_text[problem], Measured(best.choice, seconds[best.name], timed, why)
        for file in (library, *map(Path, objects.values())):
            file.unlink(missing_ok=True)

    def _build(self, trials: list[Trial], rejected: dict[str, str]) -> dict[str, str]:
        """Object files by trial; ``rejected`` gets the others."""
        objects: dict[str, str] = {}
        for position, result in each(trials, self.bench.build, processes=self.jobs, limit_s=_LIMIT_S, deadline=self._ends):
            if isinstance(result, Failure):
                rejected[trials[position].name] = f"building it failed: {result.why}"
            else:
                objects[trials[position].name] = result
        return objects

    def _time(self, library: Path, left: dict[str, list[Trial]], rejected: dict[str, str]) -> Iterator[tuple[str, dict[str, float]]]:
        """Seconds by trial, problem by problem. A trial whose run kills the process or never ends is rejected, and the others run again."""
        left = {problem: trials for problem, trials in left.items() if trials}
        while left:
            order = list(left)
            again: dict[str, list[Trial]] = {}
            compare = partial(self.bench.compare, library)
            for position, result in each(list(left.values()), compare, processes=1, limit_s=_LIMIT_S, deadline=self._ends):
                problem = order[position]
                if not isinstance(result, Failure):
                    rejected.update(result["rejected"])
                    yield problem, result["seconds"]
                elif result.at:
                    rejected[result.at] = f"its run {result.why}"
                    again[problem] = [t for t in left[problem] if t.name != result.at]
            left = {problem: trials for problem, trials in again.items() if trials}

    def _trial(self, problem: Problem, choice: Choice) -> Trial:
        self._count += 1
        return Trial(f"t{self._count}", problem.group, problem.text, choice)

    def _widen(self, found: list[Problem]) -> None:
        """Level 2, from what level 1 chose, until nothing improves any more or the budget is spent."""
        random = Random(0)
        states = []
        for problem in found:
            state = _Wider(problem, self._choices.measured[problem.text])
            known = self.cache.get(problem.text, state.key)
            if known is not None:
                self._choices.measured[problem.text] = known
            elif not self._is_good(problem, state.best):
                states.append(state)
        total, last = len(states), 0.0
        while states and time.monotonic() + last < self._ends:
            started = time.monotonic()
            states.sort(key=lambda s: -s.best.seconds * s.problem.work / max(1, s.problem.own_work) / (1 + s.idle))
            turn = {s.problem.text: s for s in states[: max(1, _BATCH // (OFFSPRING + 1))]}
            self.tell(f"wider search: {total - len(states)} of {total} problems done, now {names(states[0].problem.group)}")
            wanted = [(s.problem, [s.best.choice, *s.offspring(random)]) for s in turn.values()]
            heard = {problem.text: measured for problem, measured in self._measure(wanted)}
            if time.monotonic() >= self._ends:
                break
            for key, state in turn.items():
                state.hear(heard.get(key))
                if state.settled or self._is_good(state.problem, state.best):
                    states.remove(state)
                    self.cache.put(key, state.key, state.best)
                self._choices.measured[key] = state.best
            last = time.monotonic() - started
        if states:
            self._choices.notes.append(
                f"{len(states)} of {total} kernel problems are still open to the wider search: the budget of {self.budget_s:g} s was spent"
            )

    def _is_good(self, problem: Problem, best: Measured) -> bool:
        anchor = problem.group.anchor
        dtype = "int8" if anchor is not None and isinstance(anchor.source, IntegerOp) else "float32"
        peak = self.processor.peak_ops_per_s.get(dtype, math.inf)  # type: ignore[call-overload]
        return bool(2 * problem.own_work / best.seconds >= GOOD * peak)


@dataclass
class _Wider:
    """Level 2's search for one problem: a best candidate, and those that were tried."""

    problem: Problem
    best: Measured
    idle: int = 0
    """Generations since the best one changed."""
    tried: set[Choice] = field(default_factory=set)
    exhausted: bool = False

    @property
    def key(self) -> tuple[Choice, ...]:
        """What its outcome is stored under: the candidates, and that they were only the beginning."""
        return (*self.problem.candidates, Choice("wider", (GENERATIONS, OFFSPRING)))

    @property
    def settled(self) -> bool:
        return self.exhausted or self.idle >= GENERATIONS

    def offspring(self, random: Random) -> list[Choice]:
        """Choices next to the best one that were not tried yet: one block changed, or two."""
        own = self.best.choice
        self.tried |= {own, *self.problem.candidates}
        peers = [c for c in self.problem.candidates if c.algorithm == own.algorithm and len(c.blocks) == len(own.blocks)]
        found: list[Choice] = []
        for _ in range(20 * OFFSPRING):
            blocks = list(own.blocks)
            for position in random.sample(range(len(blocks)), min(len(blocks), random.choice((1, 1, 2)))):
                size = blocks[position]
                steps = {size - 1, size + 1, size // 2, size * 2, *(peer.blocks[position] for peer in peers)}
                blocks[position] = random.choice(sorted(s for s in steps if s >= min(1, size)))
            choice = Choice(own.algorithm, tuple(blocks))
            if choice not in self.tried:
                self.tried.add(choice)
                found.append(choice)
            if len(found) == OFFSPRING:
                break
        self.exhausted = not found
        return found

    def hear(self, measured: Measured | None) -> None:
        """``measured`` had the best one among its candidates, as the first: it wins unless another is clearly faster."""
        if measured is None or measured.choice == self.best.choice:
            self.idle += 1
            return
        self.idle = 0
        self.best = replace(measured, rejected=self.best.rejected)


def problems(graph: Graph, policy: Policy) -> list[Problem]:
    """Every distinct question that the lowerings of a graph ask, the one with most work behind it first."""
    asked: dict[str, tuple[tuple[Choice, ...], Group, int]] = {}
    totals: dict[str, int] = defaultdict(int)
    for one in graph.groups:
        own: dict[str, tuple[Choice, ...]] = {}

        def record(problem: str, candidates: Sequence[Choice], own: dict[str, tuple[Choice, ...]] = own) -> Choice:
            own[problem] = shortlist(candidates)
            return first(problem, candidates)

        try:
            kernel, _ = graph.lowered(one, replace(policy, choose=record))
        except Exception:  # generate meets it again, and says what TVM refused
            continue
        for problem, candidates in own.items():
            if len(candidates) > 1:
                asked.setdefault(problem, (candidates, one, kernel.work))
                totals[problem] += kernel.work
    order = sorted(asked, key=lambda problem: -totals[problem])
    return [Problem(p, asked[p][0], asked[p][1], totals[p], asked[p][2]) for p in order]


def shortlist(candidates: Sequence[Choice]) -> tuple[Choice, ...]:
    """The first CANDIDATES, in their order, of which each algorithm's best is one."""
    distinct = list(dict.fromkeys(candidates))
    leaders = {c.algorithm: i for i, c in reversed(list(enumerate(distinct)))}
    others = (i for i in range(len(distinct)) if i not in leaders.values())
    return tuple(distinct[i] for i in sorted([*leaders.values(), *others][:CANDIDATES]))


def _batches(found: Sequence[Problem]) -> Iterator[list[Problem]]:
    batch: list[Problem] = []
    for problem in found:
        if batch and sum(len(p.candidates) for p in batch) + len(problem.candidates) > _BATCH:
            yield batch
            batch = []
        batch.append(problem)
    if batch:
        yield batch


def linked(linker: str) -> Callable[[Sequence[str], Path], None]:
    """A library of object files by the C compiler ``linker``. Raises ToolFailed with its last words."""
    from tvm.support import cc

    def link(objects: Sequence[str], library: Path) -> None:
        try:
            cc.create_shared(str(library), list(objects), cc=linker)
        except RuntimeError as error:
            raise ToolFailed(f"linking the candidates' library failed: {str(error).strip().splitlines()[-1]}") from error

    return link


def footprint_bytes(constants: Sequence[Any], processor: Processor) -> int:
    """Bytes of weights that a run of the whole model reads between two uses of the same ones, as far as a cache could keep them.

    0 where all weights stay in the last cache.
    """
    total = sum(int(array.nbytes) for array in constants)
    cache = processor.l3_bytes or processor.l2_bytes or 32 << 20
    return 0 if total < cache else 2 * cache
