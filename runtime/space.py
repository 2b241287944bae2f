"""What a search may combine: one decision after the other, ending in the text of a pipeline.

What there is to decide depends on what pays on the target (``Gains``), on the model (a transformer has heads, a small MLP none), and on
what was decided before: only pruning has an amount. A decision is one of a few values, so that equal candidates meet and are
evaluated once. The first of the values is the plain one: a seed names the decisions that matter to it and takes the plain ones beside.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import Any, Protocol

from gatewright.errors import GatewrightError, UsageError, nearest
from gatewright.frontend.model import Model
from gatewright.frontend.work import macs
from gatewright.passes.base import PassContext
from gatewright.passes.pipeline import Pipeline
from gatewright.targets.base import Target

from .space_seeds import seeds_of

METHODS = ("prune", "gradual", "finetune", "distil", "cluster", "equalize", "quantize", "adaround", "gptq", "mixed", "qat")
"""Families of passes, in the order in which a pipeline has them."""
TRAINED = ("gradual", "finetune", "distil", "qat")
LABELLED = ("gradual", "finetune", "qat")
ROUNDING = ("quantize", "mixed", "adaround", "gptq", "qat")

BITS = (2, 8)
EPOCHS = (10, 30, 60)
RATES = (0.01, 0.003, 0.001)
TEMPERATURES = (4.0, 2.0, 8.0)
ALPHAS = (0.7, 0.4, 1.0)
TRAINING = "smoothing=0.1,validation=0"
"""Of all that trains on labels. The folds judge, so training holds out no data of its own."""

Value = str | float | int
Choices = Mapping[str, Value]


class Chooser(Protocol):
    """Who decides; Optuna's trial is one."""

    def suggest_categorical(self, name: str, choices: Sequence[Value], /) -> Any: ...
    def suggest_int(self, name: str, low: int, high: int, /) -> int: ...
    def suggest_float(self, name: str, low: float, high: float, /, *, step: float) -> float: ...


@dataclass
class Scripted:
    """A Chooser that takes what it is given, and the plain value (the first, the most bits, the least amount) of all else."""

    given: Choices
    taken: dict[str, Value] = field(default_factory=dict)
    refused: bool = False
    """Whether a given value is none of those that could be chosen."""

    def suggest_categorical(self, name: str, choices: Sequence[Value], /) -> Any:
        return self._take(name, choices[0], self.given.get(name, choices[0]) in choices)

    def suggest_int(self, name: str, low: int, high: int, /) -> int:
        return int(self._take(name, high, low <= int(self.given.get(name, high)) <= high))

    def suggest_float(self, name: str, low: float, high: float, /, *, step: float) -> float:
        return float(self._take(name, low, low <= float(self.given.get(name, low)) <= high))

    def _take(self, name: str, plain: Value, allowed: bool) -> Value:
        self.refused = self.refused or not allowed
        self.taken[name] = self.given.get(name, plain)
        return self.taken[name]


@dataclass(frozen=True)
class Gains:
    """What makes a model cheaper on a target, by any of the costs that count."""

    zeros: bool
    """Single zeros: logic that is not there, or short codes in a file."""
    narrow: bool
    """Widths below 8 bits."""
    shared: bool
    """Few distinct weights."""
    fpga: str | None
    """The device, where weights become constants in its logic and grids are powers of two."""
    must_quantize: bool

    @classmethod
    def of(cls, target: Target, costs: Sequence[str]) -> Gains:
        logic = target.device is not None and target.device.kind in ("board", "part")
        unrolled = logic and (getattr(target.options, "reuse", None) or 1) == 1
        stored = "file" in costs
        device = target.device.name if unrolled and target.device is not None else None
        return cls(unrolled or stored, logic or stored or "bytes" in costs, stored, device, target.quantization is not None)


@dataclass(frozen=True)
class Space:
    """Pipelines of ``methods`` for one model and target."""

    methods: tuple[str, ...]
    gains: Gains
    units: tuple[str, ...] = ()
    """Kinds of units that pruning can remove from the model."""
    equalizes: bool = False
    """Whether layers of the model can be equalized."""
    outputs: tuple[str, ...] = ()
    """Of the model, as far as a pipeline's text can name them."""
    teacher: str | None = None
    """The file of the uncompressed model, which teaches where distil is among the methods."""

    @classmethod
    def of(cls, model: Model, target: Target, costs: Sequence[str], methods: Sequence[str] | None, has_labels: bool, teacher: str) -> Space:
        """``methods`` None: all that the data and the installed packages allow.

        Raises UsageError for an unknown method, for a target that takes quantized models when quantization is left out,
        and for a method that needs labels or torch where they are missing.
        """
        can_train, gains = find_spec("torch") is not None, Gains.of(target, costs)
        impossible = {name for name in METHODS if (name in TRAINED and not can_train) or (name in LABELLED and not has_labels)}
        chosen = tuple(methods) if methods is not None else tuple(name for name in METHODS if name not in impossible)
        for name in chosen:
            if name not in METHODS:
                raise UsageError(f"there is no search method {name!r}", hint=nearest(name, METHODS, "methods"))
            if name in LABELLED and not has_labels:
                raise UsageError(f"method {name!r} trains on labels and the data has none", hint="name them, --data 'FILE{labels=NAME}'")
            if name in impossible:
                raise UsageError(f"method {name!r} trains, which needs torch", hint="pip install 'gatewright[torch]'")
        if gains.must_quantize and not set(ROUNDING) & set(chosen):
            raise UsageError(f"target {target.name} takes quantized models, and the methods leave quantization out", hint="add quantize")
        prunes = "prune" in chosen or "gradual" in chosen
        units = _units(model) if prunes else ()
        named = tuple(o.name for o in model.outputs if o.dtype.kind == "f" and not set(",{}|=*?[ ") & set(o.name))
        return cls(chosen, gains, units, "equalize" in chosen and _changes(model, "equalize"), named, teacher)

    def suggest(self, choose: Chooser) -> str:
        """The pipeline of one candidate."""
        parts = ["fuse", *self._fewer(choose)]
        if self._has("cluster") and self.gains.shared and choose.suggest_categorical("cluster", ("no", "yes")) == "yes":
            parts.append(f"cluster{{bits={choose.suggest_int('cluster_bits', 2, 6)}}}")
            return ",".join(parts)
        return ",".join([*parts, *self._rounded(choose)])

    def seeds(self) -> tuple[Choices, ...]:
        """Candidates that everybody would try first, uniform 8-bit quantization before all; those that the space does not have left out."""
        found: dict[str, Choices] = {}
        for given in seeds_of(self.gains):
            script = Scripted(given)
            text = self.suggest(script)
            if not script.refused:
                found.setdefault(text, script.taken)
        return tuple(found.values())

    @property
    def uniform(self) -> str:
        """8 bits for everything: what is found is held against it."""
        return "fuse,quantize{bits=8,grid=pow2}"

    def _has(self, *methods: str) -> bool:
        return bool(set(methods) & set(self.methods))

    # ---- fewer weights ------------------------------------------------------------------------------------------

    def _fewer(self, choose: Chooser) -> list[str]:
        singles = ("magnitude",) if self.gains.zeros else ()
        kinds = ("none", *((*singles, *self.units) if self._has("prune", "gradual") else ()))
        kind = str(choose.suggest_categorical("prune", kinds))
        first = self._narrower(choose) if kind == "magnitude" else []
        pruning = self._pruning(kind, choose) if kind != "none" else ""
        steps = pruning and self._has("gradual")
        once = not steps or self._has("prune")
        alone = ("none", *(m for m in ("finetune", "distil") if self._has(m))) if once else ()
        lessons = (*alone, *(("gradual",) if steps else ()))
        lesson = str(choose.suggest_categorical("lesson" if pruning else "lesson_alone", lessons))
        if lesson == "none":
            return [*first, pruning] if pruning else []
        epochs, rate = self._effort("lesson", choose)
        training = f"epochs={epochs},lr={rate}"
        if lesson == "gradual":
            return [*first, f"gradual{{prune={pruning},finetune=finetune{{{training},{TRAINING}}},steps=3}}"]
        taught = self._distil(choose, training) if lesson == "distil" else f"finetune{{{training},{TRAINING}}}"
        return [*first, pruning, taught] if pruning else [taught]

    def _narrower(self, choose: Chooser) -> list[str]:
        """Before single weights go whole units may: each costs a bias, a rounding and a clamp, whatever its weights cost."""
        if "channel" not in self.units or choose.suggest_categorical("narrower", ("no", "yes")) == "no":
            return []
        return [f"prune{{kind=channel,amount={round(choose.suggest_float('narrower_amount', 0.1, 0.6, step=0.05), 2)}}}"]

    def _pruning(self, kind: str, choose: Chooser) -> str:
        high = 0.95 if kind == "magnitude" else 0.85
        amount = round(choose.suggest_float(f"{kind}_amount", 0.1, high, step=0.05), 2)
        rules = ("magnitude", "taylor") if self._has(*LABELLED) else ("magnitude",)
        rule = choose.suggest_categorical("importance", rules)
        options = f"kind={kind},amount={amount}" + (f",importance={rule}" if rule != "magnitude" else "")
        if kind == "magnitude" and self.gains.fpga is not None:
            # What saves most logic for its importance goes first.
            if choose.suggest_categorical("pattern", ("any", "hardware")) == "hardware":
                options += f",pattern=hardware,device={self.gains.fpga},bits=4"
        elif kind in ("channel", "neuron", "head") and choose.suggest_categorical("repair", ("none", "reconstruct")) == "reconstruct":
            options += ",repair=reconstruct"
        return f"prune{{{options}}}"

    def _effort(self, stage: str, choose: Chooser) -> tuple[int, float]:
        return int(choose.suggest_categorical(f"{stage}_epochs", EPOCHS)), float(choose.suggest_categorical(f"{stage}_lr", RATES))

    def _distil(self, choose: Chooser, training: str) -> str:
        temperature = choose.suggest_categorical("temperature", TEMPERATURES)
        # Without labels all that is learned is what the teacher says.
        alpha = choose.suggest_categorical("alpha", ALPHAS) if self._has(*LABELLED) else 1.0
        return f"distil{{{training},temperature={temperature},alpha={alpha},validation=0,teacher={self.teacher}}}"

    # ---- fewer bits ---------------------------------------------------------------------------------------------

    def _rounded(self, choose: Chooser) -> list[str]:
        plain = [name for name in ("quantize", "qat", "adaround", "gptq", "mixed") if self._has(name)]
        taught = ["taught"] if self._has("distil") and self._has("quantize") else []
        kinds = (*plain, *taught, *(() if self.gains.must_quantize else ("none",)))
        if not kinds:
            return []
        how = str(choose.suggest_categorical("rounding", kinds))
        if how == "none":
            return []
        bits = choose.suggest_int("bits", *BITS) if self.gains.narrow else 8
        weights = choose.suggest_int("weight_bits", *BITS) if self.gains.narrow and how != "mixed" else 8
        grid = choose.suggest_categorical("grid", ("pow2",) if self.gains.fpga is not None else ("pow2", "symmetric", "affine"))
        per = choose.suggest_categorical("per", ("tensor", "channel"))
        options = f"bits={bits}" + (f",weight_bits={weights}" if weights != bits and how != "mixed" else "") + f",grid={grid}"
        options += f",per={per}" if per != "tensor" else ""
        # Few levels for the answers make ties; the layer that gives them is mostly small.
        if bits < 8 and self.outputs and how != "mixed" and choose.suggest_categorical("answers", ("narrow", "wide")) == "wide":
            options += f",wide={'|'.join(self.outputs)},wide_bits=8"
        evens = per == "tensor" and self.equalizes and choose.suggest_categorical("equalize", ("no", "yes")) == "yes"
        before = ["equalize"] if evens else []
        if how == "qat":
            epochs, rate = self._effort("qat", choose)
            return [*before, f"qat{{{options},epochs={epochs},lr={rate},{TRAINING}}}"]
        span = choose.suggest_categorical("range", ("minmax", "mse", "percentile"))
        options += {"minmax": "", "mse": ",range=mse", "percentile": ",range=percentile,percentile=99.9"}[span]
        if how == "taught":
            epochs, rate = self._effort("qat", choose)
            return [*before, f"quantize{{{options}}}", self._distil(choose, f"epochs={epochs},lr={rate}")]
        options += ",bias_correction=true" if choose.suggest_categorical("bias_correction", ("no", "yes")) == "yes" else ""
        if how == "mixed":
            average = round(choose.suggest_float("average_bits", 3.0, 8.0, step=0.5), 1) if self.gains.narrow else 6.0
            return [*before, f"mixed{{average_bits={average},candidates=2|3|4|6|8,{options}}}"]
        rounding = [f"{how}{{bits={weights},grid={'pow2' if grid == 'pow2' else 'symmetric'}}}"] if how in ("adaround", "gptq") else []
        return [*before, *rounding, f"quantize{{{options}}}"]


def _units(model: Model) -> tuple[str, ...]:
    """Kinds of units whose pruning makes this model smaller; of two that do the same the more general."""
    found: dict[int, str] = {}
    for kind in ("channel", "neuron", "head", "layer"):
        work = _work_after(model, f"fuse,prune{{kind={kind},amount=0.5}}")
        if work is not None and work < macs(model):
            found.setdefault(work, kind)
    return tuple(found.values())


def _work_after(model: Model, pipeline: str) -> int | None:
    try:
        return macs(Pipeline.parse(pipeline).run(model, PassContext(), verify="none"))
    except GatewrightError:
        return None  # this model has none of what would be pruned


def _changes(model: Model, name: str) -> bool:
    try:
        fused = Pipeline.parse("fuse").run(model, PassContext(), verify="none")
        return next(iter(Pipeline.parse(name))).run(fused, PassContext()).modified
    except GatewrightError:
        return False
