"""How an artifact comes about: what its key is made of, how its folder is filled and sealed, and where it is put."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import fields
from functools import cache
from pathlib import Path
from typing import Any

import gatewright
import gatewright.frontend
import gatewright.hw
import gatewright.passes
import gatewright.targets
from gatewright.errors import GatewrightError, ToolFailed, UnsupportedOp, UsageError
from gatewright.frontend.batch import batch_reason
from gatewright.frontend.data import Dataset
from gatewright.frontend.model import Model, TensorInfo
from gatewright.targets.base import Artifact, Target, TargetContext

from . import partition
from .atomic import install, staging
from .cache import key_of
from .partition import Cut
from .targetspec import canonical_text, resolve


def key(model: Model, target: Target, data: Dataset | None, seed: int) -> str:
    """The hash of everything that shapes an artifact. The model's history is the pipeline, with its data's digest and its seed."""
    return key_of(
        {
            "model": [model.name, model.digest, [step.to_json() for step in model.history]],
            "data": data.digest if data is not None else None,
            "seed": seed,
            "target": [target.name, _options(target)],
            "device": target.device.to_json() if target.device else None,
            "versions": versions(target),
            "fallbacks": [versions(resolve(name)) for name in partition.FALLBACKS] if target.falls_back else [],
            "code": _code(),
        }
    )


def make(model: Model, target: Target, folder: Path, context: TargetContext) -> None:
    """Fill the empty ``folder``: legalize, lower, and build where the target's compiler is a library."""
    context.progress(f"compiling {model.name} for {canonical_text(target)}")
    with_kept_logs(folder, context, lambda: _fill(model, target, folder, context))


def _fill(model: Model, target: Target, folder: Path, context: TargetContext) -> None:
    """Where only the target's compiler finds that it cannot make a node's kernel, that node falls back like any other."""
    refused: dict[str, UnsupportedOp] = {}
    while True:
        try:
            _fill_once(model, target, folder, context, refused)
            return
        except UnsupportedOp as problem:
            if not target.falls_back or problem.node in refused or all(node.name != problem.node for node in model.graph):
                raise
            context.progress(f"{model.name}: {problem.node} ({problem.op}) falls back: {problem.rule}")
            refused[problem.node] = problem
            for left in folder.iterdir():
                shutil.rmtree(left) if left.is_dir() else left.unlink()


def _fill_once(model: Model, target: Target, folder: Path, context: TargetContext, refused: Mapping[str, UnsupportedOp]) -> None:
    cut = partition.cut(model, target, refused)
    if cut is not None:
        _fill_parts(model, target, cut, folder, context)
        return
    legal = target.legalize(model)
    described = target.lower(legal, folder, context)
    manifest = _manifest(model, target, context, described)
    seal(folder, manifest)
    if target.builds_on_compile:
        added = target.build(Artifact.open(folder, context), folder, context)
        seal(folder, {**manifest, "stage": "built", "target": {**described, **added}})


def _fill_parts(model: Model, target: Target, cut: Cut, folder: Path, context: TargetContext) -> None:
    """An artifact for each part in a folder of its own, and the manifest that says how they go together (targets/parts.py)."""
    entries = []
    for number, part in enumerate(cut.parts):
        place = folder / "parts" / f"{number}_{part.target.name}"
        place.mkdir(parents=True)
        context.progress(f"compiling part {number + 1} of {len(cut.parts)} of {model.name} for {part.target.name}")
        _fill(part.model, part.target, place, context)
        entries.append(
            {
                "folder": place.relative_to(folder).as_posix(),
                "target": canonical_text(part.target),
                "inputs": [_info(info) for info in part.model.inputs],
                "outputs": [_info(info) for info in part.model.outputs],
                "nodes": part.steps,
                "reasons": dict(part.reasons),
                "macs": part.macs,
                "received_bytes": part.received_bytes,
            }
        )
    per_sample = batch_reason(cut.model) is None
    described = {"per_sample": per_sample, "batch": cut.model.inputs[0].shape[0] if per_sample else 1, "notes": list(cut.notes)}
    seal(folder, {**_manifest(model, target, context, described), "stage": "built", "parts": entries})


def _manifest(model: Model, target: Target, context: TargetContext, described: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "schema": 1,
        "name": model.name,
        "stage": "lowered",
        "target_text": canonical_text(target),
        "target_name": target.name,
        "options": _options(target),
        "device": target.device.to_json() if target.device else None,
        "model": {"name": model.name, "digest": model.digest, "history": [step.to_json() for step in model.history]},
        "inputs": [_info(info) for info in model.inputs],
        "outputs": [_info(info) for info in model.outputs],
        "preparation": _preparation(model, context.data),
        "versions": versions(target),
        "target": dict(described),
    }


def build(artifact: Artifact, target: Target, folder: Path, context: TargetContext) -> None:
    """Run the target's tools on ``folder``, a copy of the lowered ``artifact``, and seal it as built."""

    def work() -> None:
        added = target.build(artifact, folder, context)
        seal(
            folder,
            {**artifact.manifest, "stage": "built", "versions": versions(target), "target": {**artifact.manifest["target"], **added}},
        )

    context.progress(f"building {artifact.manifest['name']} for {artifact.target_text}")
    with_kept_logs(folder, context, work)


def seal(folder: Path, manifest: Mapping[str, Any]) -> None:
    """Write manifest.json with the SHA-256 of every other file below ``folder``."""
    files = {}
    for file in sorted(folder.rglob("*")):
        name = file.relative_to(folder).as_posix()
        if file.is_symlink():
            raise GatewrightError(f"the target left a link in the artifact: {name}")
        if file.is_file() and name != "manifest.json":
            with open(file, "rb") as stream:
                files[name] = hashlib.file_digest(stream, "sha256").hexdigest()
    text = json.dumps({**manifest, "files": files}, indent=2, sort_keys=True, ensure_ascii=False)
    (folder / "manifest.json").write_text(text + "\n", encoding="utf-8", newline="\n")


def versions(target: Target) -> dict[str, str]:
    return {"gatewright": gatewright.__version__, **target.tool_versions()}


def free_place(out: Path) -> Path:
    """``out``, resolved, if an artifact may be written there. Raises UsageError before any work is done."""
    out = out.resolve()
    if out.is_dir() and any(out.iterdir()):
        if not _is_artifact(out):
            raise UsageError(f"{out} is a folder that holds something other than an artifact", hint="give a new or an empty folder")
    elif out.exists() and not out.is_dir():
        raise UsageError(f"{out} is a file, an artifact is a folder", hint="give a new or an empty folder")
    return out


def place(entry: Path, out: Path) -> Path:
    """A copy of the cache's ``entry`` at ``out``, whole or not at all."""
    with staging(out.parent, out.name) as folder:
        shutil.copytree(entry, folder, dirs_exist_ok=True)
        install(folder, out)
    return out


def with_kept_logs(folder: Path, context: TargetContext, work: Callable[[], None]) -> None:
    """A tool's failure names its log, which would go with the staged ``folder``: it is kept, and the message names the copy."""
    try:
        work()
    except ToolFailed as error:
        logs = context.cache_dir / "logs"
        for log in folder.rglob("*.log"):
            logs.mkdir(parents=True, exist_ok=True)
            kept = logs / f"{folder.name.strip('.').removesuffix('.staging')}-{log.name}"
            shutil.copyfile(log, kept)
            error.message = error.message.replace(str(log), str(kept))
        raise


def _is_artifact(folder: Path) -> bool:
    """It was made by this program: what else lies in a folder must never be replaced."""
    try:
        manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(manifest, dict) and {"schema", "target_name", "files"} <= set(manifest)


@cache
def _code() -> str:
    """Of the sources that shape artifacts: a checkout under work keeps its version number while its meaning changes."""
    sha = hashlib.sha256()
    for package in (gatewright.frontend, gatewright.hw, gatewright.passes, gatewright.targets):
        root = Path(next(iter(package.__path__))).resolve()
        for file in sorted(file for file in root.rglob("*") if file.is_file() and "__pycache__" not in file.parts):
            sha.update(f"{package.__name__}/{file.relative_to(root).as_posix()} {file.stat().st_size}\n".encode())
            sha.update(file.read_bytes())
    sha.update(Path(partition.__file__).read_bytes())
    return sha.hexdigest()


def _options(target: Target) -> dict[str, Any]:
    return {field.name: getattr(target.options, field.name) for field in fields(target.options) if field.init}


def _info(info: TensorInfo) -> dict[str, Any]:
    return {"name": info.name, "shape": list(info.shape), "dtype": str(info.dtype)}


def _preparation(model: Model, data: Dataset | None) -> list[str]:
    """How raw data becomes the model's inputs, as texts of ``--input``: the given data's way, else that of the last calibration."""
    if data is not None:
        return [given.text(name) for name, given in data.preparation.items()]
    return next((list(step.details["inputs"]) for step in reversed(model.history) if "inputs" in step.details), [])
