"""``Pipeline``: passes one after the other, from text or from Python, with the model verified in between.

small = Pipeline.parse("fuse,quantize{bits=8,grid=pow2}").run(model, PassContext(data=data))
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from importlib import import_module

from gatewright.errors import GatewrightError, PassError, UsageError, nearest
from gatewright.frontend.model import Model, Step
from gatewright.spec import Spec, construct, parse_list

from .base import Pass, PassContext
from .verify import Verify, verify_numeric, verify_structure

PASSES = {
    "absorb": "gatewright.passes.equalize:Absorb",
    "adaround": "gatewright.passes.adaround:Adaround",
    "awq": "gatewright.passes.awq:Awq",
    "cast": "gatewright.passes.cast:CastTo",
    "dynamic": "gatewright.passes.dynamic:Dynamic",
    "fold": "gatewright.passes.fold:Fold",
    "cluster": "gatewright.passes.cluster:Cluster",
    "distil": "gatewright.passes.training.distil:Distil",
    "equalize": "gatewright.passes.equalize:Equalize",
    "finetune": "gatewright.passes.training.finetune:Finetune",
    "fuse": "gatewright.passes.fuse:Fuse",
    "gradual": "gatewright.passes.gradual:Gradual",
    "gptq": "gatewright.passes.gptq:Gptq",
    "mixed": "gatewright.passes.mixed:Mixed",
    "nearest": "gatewright.passes.weight_only:Nearest",
    "prune": "gatewright.passes.prune:Prune",
    "qat": "gatewright.passes.training.qat:Qat",
    "quantize": "gatewright.passes.quantize:Quantize",
    "smoothquant": "gatewright.passes.smooth:Smoothquant",
    "student": "gatewright.passes.training.student:Student",
    "trees": "gatewright.passes.trees:Trees",
}
"""Pass name to "module:Class", imported on first use."""


def pass_class(name: str) -> type[Pass]:
    """The class of a pass. Raises UsageError with the nearest names."""
    if name not in PASSES:
        raise UsageError(f"there is no pass {name!r}", hint=nearest(name, PASSES, "passes"))
    module, _, attribute = PASSES[name].partition(":")
    found: type[Pass] = getattr(import_module(module), attribute)
    return found


def make_pass(spec: Spec) -> Pass:
    """A pass from its name and options. Raises UsageError for an unknown option or a value out of range."""
    return construct(pass_class(spec.name), f"pass {spec.name!r}", spec.options)


@dataclass(frozen=True)
class Pipeline:
    """A visible tuple of passes; ``str`` gives the text that makes it again."""

    passes: tuple[Pass, ...] = ()

    @classmethod
    def parse(cls, text: str) -> Pipeline:
        return cls(tuple(make_pass(spec) for spec in parse_list(text)))

    @classmethod
    def of(cls, given: Pipeline | Pass | str) -> Pipeline:
        """What a user may hand over wherever a pipeline is wanted."""
        if isinstance(given, Pipeline):
            return given
        return cls((given,)) if isinstance(given, Pass) else cls.parse(given)

    def __str__(self) -> str:
        return ",".join(map(str, self.passes))

    def __iter__(self) -> Iterator[Pass]:
        return iter(self.passes)

    def __len__(self) -> int:
        return len(self.passes)

    @property
    def needs_data(self) -> bool:
        return any(item.needs_data for item in self.passes)

    def run(self, model: Model, context: PassContext | None = None, verify: Verify = "structure") -> Model:
        """``model`` after every pass, one history step each. ``model`` itself is left as it was.

        ``verify``: "structure" checks the graph after each pass; "numeric" also compares the outputs of each exact pass
        with those before it, on samples of the context's data or on random ones; "none" trusts the passes.
        """
        context = context or PassContext()
        done: list[str] = []
        for item in self.passes:
            context.progress(f"pass {item}", len(done), len(self.passes))
            model = self._step(item, model, context, verify, done)
            done.append(str(item))
        return model

    def _step(self, item: Pass, model: Model, context: PassContext, verify: Verify, done: list[str]) -> Model:
        after = f" (after {','.join(done)})" if done else ""
        if item.needs_data and context.data is None:
            raise PassError(f"pass {item}{after} needs {item.data_for}", hint="give data=Dataset.load(…), or --data FILE")
        try:
            result = item.run(model, context)
        except PassError as error:
            raise PassError(f"pass {item}{after}: {error.message}", hint=error.hint) from error
        except GatewrightError:
            raise
        except Exception as error:
            # A pass that trips over a graph nobody thought of is reported by name; the cause stays attached for --debug.
            raise PassError(f"pass {item}{after} failed on {model.name}: {type(error).__name__}: {error}") from error
        # No times in the history: the same inputs give the same bytes.
        changed = result.model.with_ir(result.model.ir, Step("pass", str(item), result.notes, result.details))
        if verify != "none":
            verify_structure(changed, f"pass {item}{after}")
        if verify == "numeric" and item.effect == "exact" and result.modified:
            verify_numeric(model, changed, f"pass {item}{after}", data=context.data, seed=context.seed)
        return changed
