"""The command line's words, turned into what the verbs take. Each raises UsageError saying what was expected."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import cast, get_args

from gatewright.errors import GatewrightError, UsageError, nearest
from gatewright.frontend import coded
from gatewright.frontend.data import Dataset
from gatewright.frontend.limits import Limits
from gatewright.frontend.model import Model
from gatewright.passes.combine import How
from gatewright.spec import construct
from gatewright.targets.base import Artifact, Mode

from .report import Cost


def dims_of(text: str | None) -> dict[str, int]:
    """``batch=1,sequence=128``."""
    found: dict[str, int] = {}
    for item in filter(None, map(str.strip, (text or "").split(","))):
        name, _, size = item.rpartition("=")
        if not name.strip() or not size.strip().isdecimal() or int(size) < 1:
            raise UsageError(f"--dims has {item!r}, which is not NAME=N", hint="--dims batch=1,sequence=128")
        found[name.strip()] = int(size)
    return found


def limits_of(text: str | None) -> Limits:
    """``nodes=1000000,memory_bytes=16GiB``."""
    options: dict[str, str] = {}
    for item in filter(None, map(str.strip, (text or "").split(","))):
        name, _, size = item.partition("=")
        match = re.fullmatch(r"(\d+)\s*([KMGT])(i?)B", size.strip(), re.IGNORECASE)
        if match is not None:
            power = "KMGT".index(match[2].upper()) + 1
            size = str(int(match[1]) * (1024 if match[3] else 1000) ** power)
        options[name.strip()] = size.strip()
    return construct(Limits, "--limits", options)


def model_file_of(out: Path) -> Path:
    """Where a model is to be written: known to be possible before the work begins."""
    suffixes = (".onnx", coded.SUFFIX)
    if out.suffix not in suffixes:
        raise UsageError(f"--out is {out}; a model is written as {' or '.join(suffixes)}", hint=f"-o {out.with_suffix('.onnx')}")
    return file_of(out)


def file_of(out: Path) -> Path:
    """Where a file is to be written: in a folder that there is, and no folder itself. Raises GatewrightError."""
    if out.is_dir():
        raise GatewrightError(f"cannot write {out}: it is a folder", hint="name a file in it")
    if not out.parent.is_dir():
        raise GatewrightError(f"cannot write {out}: there is no folder {out.parent}", hint="make it first, or name another file")
    return out


def sizes_of(text: str, option: str) -> list[int]:
    """``1,16``."""
    words = [word.strip() for word in text.split(",") if word.strip()]
    if not words or not all(word.isdecimal() and int(word) > 0 for word in words):
        raise UsageError(f"{option} is {text!r}; it takes whole numbers from 1, with commas", hint=f"{option} 1,16")
    return [int(word) for word in words]


def data_of(text: str | None, inputs: Sequence[str] | None) -> Dataset | None:
    """``FILE{part=train}`` and one text per ``--input``."""
    if text is not None:
        return Dataset.parse(text, inputs or ())
    if inputs:
        raise UsageError("--input says how data becomes an input, and there is no data", hint="add --data FILE")
    return None


def data_of_models(models: Sequence[Model], text: str, inputs: Sequence[str]) -> dict[str, Dataset]:
    """The data as each model takes it: ``x{scale=2}`` is for all of them, ``digits_int8:x{dtype=int8}`` for that model only."""
    found = {}
    for model in models:
        own = [item.removeprefix(f"{model.name}:") for item in inputs if item.startswith(f"{model.name}:")]
        others = [other.name for other in models if other is not model]
        shared = [item for item in inputs if not item.startswith((f"{model.name}:", *(f"{name}:" for name in others)))]
        found[model.name] = Dataset.parse(text, own or shared)
    return found


def data_of_artifact(artifact: Artifact, text: str, inputs: Sequence[str] | None, note: Callable[[str], None]) -> Dataset:
    """Without ``--input`` the data is prepared as the manifest has recorded; ``note`` is told."""
    recorded = artifact.manifest.get("preparation", [])
    if not inputs and recorded:
        note(f"data prepared as recorded in the artifact: {', '.join(recorded)}")
    return Dataset.parse(text, inputs or recorded)


def mode_of(text: str | None, *, simulates: bool = False, at_port: bool = False) -> Mode | None:
    """``simulates``: an option was given that only mode simulate has; ``at_port``: a port, which only mode device has."""
    if at_port and text != "device":
        raise UsageError("--port belongs to mode device", hint="add --mode device")
    if simulates and text != "simulate":
        raise UsageError("--level and --wave belong to mode simulate", hint="add --mode simulate")
    if text is not None and text not in get_args(Mode):
        raise UsageError(f"there is no mode {text!r}", hint=nearest(text, get_args(Mode), "modes"))
    return cast("Mode | None", text)


def cost_of(text: str) -> Cost:
    name = text.replace("-", "_")
    if name not in get_args(Cost):
        raise UsageError(f"there is no cost {text!r}", hint=nearest(name, get_args(Cost), "costs"))
    return cast(Cost, name)


def seconds_of(text: str, option: str) -> float:
    """``90``, ``90s``, ``30m`` or ``2h``."""
    unit = {"s": 1.0, "m": 60.0, "h": 3600.0}.get(text[-1:].lower())
    number = text if unit is None else text[:-1]
    try:
        value = float(number) * (unit or 1.0)
    except ValueError:
        value = -1.0
    if not 0 < value < 1e9:
        raise UsageError(f"{option} is {text!r}, which is no time", hint=f"{option} 90s, {option} 30m or {option} 2h")
    return value


def how_of(text: str) -> How:
    if text not in get_args(How):
        raise UsageError(f"models are not combined by {text!r}", hint=nearest(text, get_args(How), "ways"))
    return cast(How, text)
