"""The whole flow on one page; read this first.

    load         a file or a framework's model -> Model               loading.py, frontend/load.py
    transform    a Model through a pipeline of passes -> Model        passes/pipeline.py
    check        does the target take it, does it fit -> Check        targets/base.py, partition.py (what falls back to other engines)
    compile      legalize, lower, build if by a library -> Artifact   targets/<name>/target.py
    build        the target's own tools -> Artifact
    compare      models × targets on data -> Report                   compare.py
    combine      several models -> one, an ensemble or an average     passes/combine.py
    optimize     the pipeline that costs least within a drop -> Front search.py

Each verb of the command line is one of these. An artifact is run with ``artifact.load()``, which gives an Executor.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gatewright.errors import UnsupportedError
from gatewright.frontend.data import Dataset
from gatewright.frontend.integer import plan
from gatewright.frontend.model import Model
from gatewright.passes.base import Pass, PassContext
from gatewright.passes.pipeline import Pipeline
from gatewright.passes.verify import Verify
from gatewright.progress import Progress, silent
from gatewright.targets.base import Artifact, Check, Target, TargetContext

from . import artifacts, partition
from .atomic import install, staging
from .cache import Cache
from .config import config
from .loading import load as load
from .targetspec import resolve

if TYPE_CHECKING:
    from gatewright.passes.combine import How

    from .front import Front
    from .metrics import MetricFunction
    from .report import Report


def transform(
    model: Model,
    pipeline: str | Pass | Pipeline,
    data: Dataset | None = None,
    *,
    seed: int = 0,
    verify: Verify | None = None,
    progress: Progress = silent,
    checkpoints: str | Path | None = None,
) -> Model:
    """The model after ``pipeline``, such as "fuse,quantize{bits=8,grid=pow2}"; what was done is in its history.

    ``data`` calibrates or trains the passes that need it. ``verify``: "structure", "numeric" or "none" (default: the settings').
    ``checkpoints``: a folder where training keeps where it is; the same call goes on from there after a kill.
    """
    passes = Pipeline.of(pipeline)
    given = PassContext(data, seed, progress, None if checkpoints is None else Path(checkpoints))
    return passes.run(model, given, verify=verify or config().verify)


def check(model: Model, target: str, data: Dataset | None = None, *, seed: int = 0, progress: Progress = silent) -> Check:
    """Is every node supported, does it fit, and what will it cost? Runs no tool and refuses nothing: the answer says it all."""
    bound = resolve(target)
    if data is not None:
        model = _quantized_for(bound, model, data, seed, progress)
    return partition.check(model, bound)


def compile(
    model: Model,
    target: str,
    out: str | Path | None = None,
    data: Dataset | None = None,
    *,
    seed: int = 0,
    progress: Progress = silent,
) -> Artifact:
    """The model compiled for ``target``, written to the folder ``out`` whole or not at all (in the cache where ``out`` is None).

    Ends built where the target's compiler is a library, lowered (files only) where it is an outside tool: see ``build``.
    A target that takes only quantized models quantizes a float one to 8 bits with ``data``, and the history says so.
    Raises UnsupportedError (UnsupportedOp, DoesNotFit) before anything is written.
    """
    return compile_timed(model, target, out, data, seed=seed, progress=progress).artifact


def build(artifact: Artifact | str | Path, *, progress: Progress = silent) -> Artifact:
    """Run the target's tools on a lowered artifact: it is replaced by the built one, whole or not at all."""
    settings = context(progress=progress)
    if not isinstance(artifact, Artifact):
        artifact = Artifact.open(artifact, settings)
    if artifact.stage == "built":
        return artifact
    target, path = artifact.target(), artifact.path.resolve()
    with staging(path.parent, path.name) as folder:
        shutil.copytree(path, folder, dirs_exist_ok=True)
        artifacts.build(artifact, target, folder, settings)
        install(folder, path)
    return Artifact.open(path, settings)


def compare(
    models: Model | Sequence[Model],
    targets: str | Sequence[str] | Mapping[str, Sequence[str]],
    data: Dataset | Mapping[str, Dataset],
    metric: str | MetricFunction | None = None,
    **options: Any,
) -> Report:
    """Every model on every target: how right it is and what it costs. The first model is the baseline. Options: see compare.py."""
    from .compare import compare as run

    return run(models, targets, data, metric, **options)


def combine(models: Sequence[Model], how: How = "ensemble") -> Model:
    """Several variants as one model: "ensemble" averages their outputs, at the cost of all; "average" their weights, at the cost of one."""
    from gatewright.passes.combine import combine as run

    return run(models, how)


def optimize(model: Model, target: str, data: Dataset, **options: Any) -> Front:
    """Search pipelines for ``target``: the Pareto front of accuracy against cost, and the choice on it. Options: see search.py."""
    from .search import optimize as run

    return run(model, target, data, **options)


@dataclass(frozen=True)
class Compiled:
    """An artifact, and what making it took."""

    artifact: Artifact
    model: Model
    """What was compiled: the given model, or the one quantized for the target."""
    seconds: float | None
    """Of the compilation itself, also where it came from the cache; None where that is not known."""


def compile_timed(
    model: Model, target: str, out: str | Path | None = None, data: Dataset | None = None, *, seed: int = 0, progress: Progress = silent
) -> Compiled:
    """``compile``, with the time it took."""
    settings, bound = context(data=data, seed=seed, progress=progress), resolve(target)
    if out is not None:
        out = artifacts.free_place(Path(out))
    model = _quantized_for(bound, model, data, seed, progress)
    entry = Cache(settings.cache_dir).entry(
        "artifacts",
        artifacts.key(model, bound, data, seed),
        make=lambda folder: artifacts.make(model, bound, folder, settings),
        check=lambda folder: Artifact.open(folder, settings),
        progress=progress,
    )
    place = entry.path if out is None else artifacts.place(entry.path, out)
    return Compiled(Artifact.open(place, settings), model, entry.seconds)


def context(
    data: Dataset | None = None, *, seed: int = 0, progress: Progress = silent, port: str | None = None, level: str | None = None,
    wave: Path | None = None,
) -> TargetContext:  # fmt: skip
    """What targets may use, from the settings."""
    settings = config()
    return TargetContext(settings.cache_dir, settings.jobs, settings.time_limit_s, data, seed, progress, port, level, wave)


def _quantized_for(target: Target, model: Model, data: Dataset | None, seed: int, progress: Progress) -> Model:
    """``model`` itself, or quantized by the target's own pipeline where that is needed and ``data`` allows it."""
    if target.quantization is None or plan(model).is_quantized:
        return model
    if data is None:
        raise UnsupportedError(
            f"target {target.name} takes quantized models, and {model.name!r} computes in floating point",
            hint=f"quantize it first, gatewright transform -p '{target.quantization}', or give data (--data FILE) and that is done for you",
        )
    return transform(model, target.quantization, data, seed=seed, progress=progress)
