"""Every setting that comes from the environment: the only place that reads it.

``SETTINGS`` is the whole list; ``gatewright doctor`` prints it with the values in force.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, cast, get_args

from gatewright.errors import UsageError


@dataclass(frozen=True)
class Setting:
    """One environment variable, what it does, and what holds where it is not set."""

    variable: str
    meaning: str
    default: str


SETTINGS = (
    Setting("GATEWRIGHT_CACHE_DIR", "where compiled artifacts and emulators are kept", "gatewright in XDG_CACHE_HOME, or in ~/.cache"),
    Setting("GATEWRIGHT_JOBS", "processes that a build may run at a time", "the CPUs that this process may use"),
    Setting("GATEWRIGHT_TIME_LIMIT_S", "seconds that one outside tool may take", "1800"),
    Setting("GATEWRIGHT_VERIFY", "how a model is checked after each pass: structure, numeric or none", "structure"),
    Setting("GATEWRIGHT_DEBUG", "1 shows the traceback of an error, as --debug does", "0"),
    Setting("NO_COLOR", "any value: no colours, see no-color.org", "not set"),
)

Verify = Literal["structure", "numeric", "none"]


@dataclass(frozen=True)
class Config:
    """The settings in force."""

    cache_dir: Path
    jobs: int
    time_limit_s: float
    verify: Verify
    debug: bool
    color: bool


def config(environ: Mapping[str, str] | None = None) -> Config:
    """Read now, not at import, so that a program may set them. Raises UsageError naming the variable and what it takes."""
    env = os.environ if environ is None else environ
    return Config(
        cache_dir=_cache_dir(env),
        jobs=int(_number(env, "GATEWRIGHT_JOBS", _usable_cpus(), 1)),
        time_limit_s=_number(env, "GATEWRIGHT_TIME_LIMIT_S", 1800, 1),
        verify=verify_of(env.get("GATEWRIGHT_VERIFY"), "GATEWRIGHT_VERIFY") or "structure",
        debug=env.get("GATEWRIGHT_DEBUG", "0").lower() not in ("", "0", "false", "no", "off"),
        color=not env.get("NO_COLOR"),
    )


def _cache_dir(env: Mapping[str, str]) -> Path:
    if own := env.get("GATEWRIGHT_CACHE_DIR"):
        return Path(own).expanduser().absolute()
    xdg = env.get("XDG_CACHE_HOME", "")
    # The XDG specification says to ignore a relative path.
    base = Path(xdg) if xdg and Path(xdg).is_absolute() else _home() / ".cache"
    return base / "gatewright"


def verify_of(text: str | None, where: str) -> Verify | None:
    """How to verify, from the words of ``where``; None where there are none."""
    if not text:
        return None
    if text not in get_args(Verify):
        raise UsageError(f"{where} is {text!r}; it takes {', '.join(get_args(Verify))}")
    return cast(Verify, text)


def _home() -> Path:
    try:
        return Path.home()
    except RuntimeError:
        raise UsageError("there is no home folder to keep the cache in", hint="set GATEWRIGHT_CACHE_DIR") from None


def _number(env: Mapping[str, str], variable: str, default: float, least: float) -> float:
    text = env.get(variable)
    if not text:
        return default
    try:
        number = float(text)
    except ValueError:
        number = float("nan")
    if not least <= number < float("inf"):
        raise UsageError(f"{variable} is {text!r}; it takes a number of at least {least:g}")
    return number


def _usable_cpus() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
