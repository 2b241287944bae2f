"""A model that its target cannot run whole is cut into parts, and what the target refuses falls back to the next engine that takes it.

The unit is a step of the integer plan, so no integer operation is ever cut. A refused integer step goes to ``ref``, which is
exact; a refused float step to ONNX Runtime, or to ``ref`` where that lacks it too. Steps of one engine that do not wait for one
another across an engine run together: each part is convex and as large as the order of engines allows. Nothing of this is silent:
the parts, the reason for each, and what crosses between them stand in the check, the manifest and the report.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property

from gatewright.errors import ModelError, UnsupportedOp
from gatewright.frontend.batch import batch_reason, with_batch
from gatewright.frontend.extract import submodel
from gatewright.frontend.integer import FloatStep, IntegerOp, Plan, plan
from gatewright.frontend.model import Model
from gatewright.frontend.split import Step, reads, written
from gatewright.frontend.work import layer_costs, value_bytes
from gatewright.hw.device import Processor
from gatewright.hw.measurement import Measurement
from gatewright.targets.base import Check, Target

from .targetspec import resolve

EXACT = "ref"
FALLBACKS = ("ort", EXACT)
"""Engines for what the target refuses, in order."""


BETTER_EXACT = frozenset({"DFT", "STFT", "Dropout"})
"""Float operators that ``ref`` runs before ONNX Runtime does: transforms in double precision, and masks drawn as ONNX's own text
draws them from a seed."""


@dataclass(frozen=True)
class Part:
    """What one engine runs at one go."""

    target: Target
    model: Model
    steps: int
    reasons: Mapping[str, str]
    """By node: why it is not on the model's own target. Empty for that target's parts."""
    received_bytes: int
    """Of values that other parts made."""

    @cached_property
    def macs(self) -> int:
        return sum(layer.macs for layer in layer_costs(self.model))


@dataclass(frozen=True)
class Cut:
    """The parts of a model, in the order in which they run."""

    model: Model
    """In the batch that the parts are for."""
    parts: tuple[Part, ...]

    @property
    def crossing_bytes(self) -> int:
        """Copied between parts in one run."""
        return sum(part.received_bytes for part in self.parts)

    @property
    def notes(self) -> tuple[str, ...]:
        """For people: what runs where and why, and what that costs."""
        total, moved = sum(part.steps for part in self.parts), [part for part in self.parts if part.reasons]
        macs = sum(part.macs for part in self.parts)
        said = []
        for part in moved:
            share = f", {part.macs / macs:.1%} of the multiply-accumulates" if part.macs else ""
            shown = "; ".join(f"{node}: {reason}" for node, reason in list(part.reasons.items())[:3])
            more = f"; and {len(part.reasons) - 3} more" if len(part.reasons) > 3 else ""
            said.append(f"{part.steps} of {total} operations run on {part.target.name}{share}: {shown}{more}")
        handed = f"{len(self.parts)} parts, {self.crossing_bytes:,} bytes handed between them in each run"
        return (*said, f"cut into {handed}; fallback=none refuses instead") if moved else ()


def cut(model: Model, target: Target, refused: Mapping[str, UnsupportedOp] = {}) -> Cut | None:
    """The parts of ``model`` for ``target``, or None where the target takes it whole (or takes no part in this, ``falls_back``).
    ``refused``: nodes that only its compiler refused, by name, beside those that its check does.

    Raises UnsupportedOp for a node that no engine takes.
    """
    if not target.falls_back:
        return None
    problems = {**{problem.node: problem for problem in target.check(model).problems}, **refused}
    if not problems:
        return None
    batch = getattr(target.options, "batch", 1)
    if batch > 1 and batch_reason(model) is None:
        model = with_batch(model, batch)
    return _Cutter(model, target, problems).cut()


def check(model: Model, target: Target) -> Check:
    """The target's own check; where it falls back, the cut's notes and cost stand in the place of what it refuses."""
    found = target.check(model)
    if not found.problems or not target.falls_back:
        return found
    try:
        parts = cut(model, target)
    except UnsupportedOp as problem:
        return replace(found, problems=(problem,))
    assert parts is not None
    figures = dict(found.figures)
    figures["handed over"] = Measurement(float(parts.crossing_bytes), "B", "estimated")
    if isinstance(target.device, Processor) and target.device.memory_bandwidth_bytes_per_s:
        # Written by one engine and read by the next.
        seconds = 2 * parts.crossing_bytes / target.device.memory_bandwidth_bytes_per_s
        figures["handing over"] = Measurement(seconds, "s", "estimated")
    return replace(found, problems=(), notes=(*found.notes, *parts.notes), figures=figures)


class _Cutter:
    """Deals the steps of a plan out to engines, and joins them to parts."""

    def __init__(self, model: Model, target: Target, problems: Mapping[str, UnsupportedOp]) -> None:
        self._model, self._target, self._problems = model, target, problems
        self._plan: Plan = plan(model)
        self._steps = self._plan.steps
        self._engines: dict[str, Target] = {target.name: target.alone(), **{name: resolve(name) for name in FALLBACKS}}
        self._maker = {name: index for index, step in enumerate(self._steps) for name in written(step)}
        self._values = {value.name or "": value for node in model.graph for value in node.outputs}
        self._values |= {value.name or "": value for value in model.graph.inputs}
        self._ends = {value.name or "" for value in model.graph.outputs}
        self._refused = {index: problem for index, step in enumerate(self._steps) if (problem := self._problem(step)) is not None}
        self._constant = self._constants()
        self._copied = {index for index, step in enumerate(self._steps) if index not in self._refused and _dequantizes(step)}
        self._engine_of: dict[int, str] = {}

    def cut(self) -> Cut:
        self._engine_of = {index: self._engine(index) for index in range(len(self._steps)) if index not in self._constant}
        while True:
            regions = self._regions()
            parts = [self._part(engine, region) for engine, region in regions]
            if not (refused := [pair for pair in zip(parts, regions, strict=True) if self._refuses(pair[0])]):
                break
            for part, (engine, region) in refused:
                if engine == EXACT:
                    raise part.target.check(part.model).problems[0]
                # Node by node the engine took it, together it does not.
                self._engine_of |= dict.fromkeys(region, EXACT)
        if not self._same_meaning(parts):
            parts = [self._whole_on_exact()]
        return Cut(self._model, tuple(parts))

    def _problem(self, step: Step) -> UnsupportedOp | None:
        nodes = {step.node, *step.nodes} if isinstance(step, IntegerOp) else {step.node}
        return next((found for node in nodes if node is not None and (found := self._problems.get(node.name or ""))), None)

    def _constants(self) -> set[int]:
        """Steps that compute from constants alone (a dequantized weight): whoever reads them has a copy."""
        known = set(self._model.graph.initializers)
        found = set()
        for index, step in enumerate(self._steps):
            names = written(step)
            if isinstance(step, FloatStep) and reads(step) and known.issuperset(reads(step)) and not self._ends.intersection(names):
                known.update(names)
                found.add(index)
                # What is computed from a refused constant goes where that one goes.
                makers = (self._maker.get(name) for name in reads(step))
                if (refused := next((maker for maker in makers if maker in self._refused), None)) is not None:
                    self._refused.setdefault(index, self._refused[refused])
        return found

    def _engine(self, index: int) -> str:
        step = self._steps[index]
        if index not in self._refused:
            # It may read a refused constant, which goes wherever its readers go.
            blocked = [maker for name in reads(step) if (maker := self._maker.get(name)) in self._constant and maker in self._refused]
            if not blocked:
                return self._target.name
            self._refused[index] = self._refused[blocked[0]]
        if isinstance(step, IntegerOp) or step.exponentials is not None or step.node.op_type == "QuantizeLinear":
            return EXACT
        order = FALLBACKS if step.node.op_type not in BETTER_EXACT else FALLBACKS[::-1]
        alone = self._submodel([index], step.node.name or step.node.op_type)
        for name in order:
            if not self._engines[name].check(alone).problems:
                return name
        raise UnsupportedOp(
            node=step.node.name or "", op=step.node.op_type, target=self._target.name,
            rule=f"{self._refused[index].rule}, and neither {' nor '.join(FALLBACKS)} runs it", hint="leave it out of the model",
        )  # fmt: skip

    def _regions(self) -> list[tuple[str, list[int]]]:
        """Steps by engine and by how often the engine changes on the way to them: no way leads out of such a set and back in."""
        depth: dict[int, int] = {}
        for index, engine in self._engine_of.items():
            makers = [maker for name in self._needs(index) if (maker := self._maker.get(name)) is not None]
            depth[index] = max((depth[maker] + (self._engine_of[maker] != engine) for maker in makers), default=0)
        regions: dict[tuple[int, str], list[int]] = {}
        for index, engine in self._engine_of.items():
            if self._is_made(index):
                regions.setdefault((depth[index], engine), []).append(index)
        self._delay(regions)
        return [(engine, region) for (_, engine), region in sorted(regions.items())]

    def _delay(self, regions: dict[tuple[int, str], list[int]]) -> None:
        """Join a region to the same engine's next one where nothing in between waits for it."""
        for depth, engine in sorted(regions, reverse=True):
            later = min((d for d, other in regions if other == engine and d > depth), default=None)
            if later is None:
                continue
            made = {name for index in regions[depth, engine] for name in written(self._steps[index])}
            waiting = (d for (d, _), region in regions.items() if d > depth and any(made.intersection(self._needs(i)) for i in region))
            if min(waiting, default=later) >= later and not self._reads(regions, later, made, engine):
                regions[later, engine] = sorted([*regions.pop((depth, engine)), *regions[later, engine]])

    def _reads(self, regions: Mapping[tuple[int, str], list[int]], depth: int, made: set[str], engine: str) -> bool:
        """Whether another engine's region at ``depth`` needs one of the values."""
        others = [region for (d, other), region in regions.items() if d == depth and other != engine]
        return any(made.intersection(self._needs(index)) for region in others for index in region)

    def _is_made(self, index: int) -> bool:
        """False for a DequantizeLinear that every reader computes for itself: what crosses is the integer."""
        return index not in self._copied or bool(self._ends.intersection(written(self._steps[index])))

    def _needs(self, index: int) -> list[str]:
        """Values that a step has to be given: constants, and what it has a copy of, apart."""
        found: list[str] = []
        for name in reads(self._steps[index]):
            maker = self._maker.get(name)
            if maker in self._constant or name in self._model.graph.initializers:
                continue
            if maker is not None and maker in self._copied and maker != index:
                found += self._needs(maker)
            else:
                found.append(name)
        return list(dict.fromkeys(found))

    def _boundary(self, region: list[int]) -> tuple[list[str], list[str]]:
        """Names of the values that go in, and of those that come out."""
        inside, made = set(region), [name for index in region for name in written(self._steps[index])]
        given = dict.fromkeys(name for index in region for name in self._needs(index) if name not in made)
        others = [other for other in self._engine_of if other not in inside and self._is_made(other)]
        wanted = self._ends | {name for other in others for name in self._needs(other)}
        return list(given), [name for name in made if name in wanted]

    def _submodel(self, region: list[int], name: str) -> Model:
        given, wanted = self._boundary(region)
        return submodel(self._model, given, wanted or [n for index in region for n in written(self._steps[index])], name)

    def _part(self, engine: str, region: list[int]) -> Part:
        model = self._submodel(region, self._model.name)
        graph_inputs = {value.name for value in self._model.graph.inputs}
        received = sum(value_bytes(self._values[info.name]) for info in model.inputs if info.name not in graph_inputs)
        reasons = {}
        if engine != self._target.name:
            for index in region:
                problem = self._refused.get(index)
                if problem is not None:
                    reasons[f"{problem.node} ({problem.op})"] = problem.rule
        return Part(self._engines[engine], model, len(region), reasons, received)

    def _refuses(self, part: Part) -> bool:
        return part.target.name != self._target.name and bool(part.target.check(part.model).problems)

    def _same_meaning(self, parts: list[Part]) -> bool:
        """Whether the parts hold exactly the model's integer operations: a cut must not make or unmake one."""
        whole = sorted((op.kind, op.output) for op in self._plan.integer_ops)
        try:
            found = sorted((op.kind, op.output) for part in parts for op in plan(part.model).integer_ops)
        except ModelError:
            return False
        return whole == found

    def _whole_on_exact(self) -> Part:
        reasons = {f"{p.node} ({p.op})": p.rule for p in self._refused.values()}
        part = Part(self._engines[EXACT], self._model, len(self._steps), reasons, 0)
        for problem in part.target.check(part.model).problems:
            raise problem
        return part


def _dequantizes(step: Step) -> bool:
    return isinstance(step, FloatStep) and step.node.op_type == "DequantizeLinear"
