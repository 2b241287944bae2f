"""``compiled``: a model on the cpu target without a process of its own, so that a test takes tenths of a second."""

from __future__ import annotations

import contextlib
import io
import json
import shutil
from collections.abc import Iterator
from itertools import count
from pathlib import Path

import pytest
from compiling import Compile

from gatewright.frontend.model import Model, TensorInfo
from gatewright.targets.base import Artifact, Executor, TargetContext
from gatewright.targets.tvm import worker
from gatewright.targets.tvm.target import CpuOptions, CpuTarget


def _table(infos: tuple[TensorInfo, ...]) -> list[dict[str, object]]:
    return [{"name": info.name, "shape": list(info.shape), "dtype": str(info.dtype)} for info in infos]


@pytest.fixture
def compiled(tmp_path: Path) -> Iterator[Compile]:
    """``compiled(model, batch=2)``: an executor of the model; ``plain=True`` where a kernel is meant to be refused, else none may be."""
    opened: list[Executor] = []
    folders = count()

    def compile_here(model: Model, plain: bool = False, **options: object) -> Executor:
        target = CpuTarget(None, CpuOptions(**options))  # type: ignore[arg-type]
        folder, context = tmp_path / str(next(folders)), TargetContext(tmp_path)
        folder.mkdir()
        described = target.lower(target.legalize(model), folder, context)
        (folder / worker.JOB).write_text(json.dumps(target.job(model.name, "cc", context)), encoding="utf-8")
        with contextlib.redirect_stdout(io.StringIO()):
            built = worker.build(folder)
        refused = [note for note in built["notes"] if note.startswith("kernel of")]
        assert bool(refused) == plain, refused
        manifest = {"inputs": _table(model.inputs), "outputs": _table(model.outputs), "target": {**described, **built}, "files": {}}
        opened.append(target.load(Artifact(folder, manifest, context), "device", context))
        # Loaded and mapped: the files are no longer needed, and hundreds of them fill a disk.
        shutil.rmtree(folder)
        return opened[-1]

    yield compile_here
    for executor in opened:
        executor.close()
