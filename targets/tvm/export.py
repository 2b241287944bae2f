"""The C interface of a compiled model: names that are safe in C, C++, CMake and the file system, and the rendered files.

A model's own names appear in comments only, and there without any character that could end one.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined

from gatewright.errors import UnsupportedError

from .memory import ALIGNMENT
from .steps import Value

LONGEST_NAME = 40
CONSTANTS = "constants.bin"

_C_TYPES = {
    "float64": "double", "float32": "float", "float16": "uint16_t", "bfloat16": "uint16_t", "bool": "uint8_t",
    **{f"{sign}int{bits}": f"{sign}int{bits}_t" for sign in ("", "u") for bits in (8, 16, 32, 64)},
}  # fmt: skip
"""By TVM's name; what C has no type for is its bits."""


@dataclass(frozen=True)
class Port:
    """An input or an output as C sees it."""

    field: str
    macro: str
    shown: str
    """The model's name of it, fit for a comment."""
    ctype: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def count(self) -> int:
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        return self.count * (1 if self.dtype == "bool" else np.dtype(_numpy(self.dtype)).itemsize)


@dataclass(frozen=True)
class Interface:
    """The names under which C and C++ know a model."""

    prefix: str
    shown: str
    """The model's own name, fit for a comment."""
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]

    @classmethod
    def of(cls, name: str, inputs: Sequence[Value], outputs: Sequence[Value], batch: int) -> Interface:
        """``batch`` other than 1 is part of the names, so that a program can link a model once per batch size."""
        prefix = f"gw_{identifier(name, 'model')}" + (f"_b{batch}" if batch != 1 else "")
        macro = prefix.upper()
        return cls(prefix, comment(name), _ports(inputs, "in", macro), _ports(outputs, "out", macro))

    @property
    def macro(self) -> str:
        return self.prefix.upper()

    @property
    def header(self) -> str:
        return f"{self.prefix}.h"

    @property
    def library(self) -> str:
        return f"lib{self.prefix}.so"

    def render(self, template: str, **more: Any) -> str:
        """The text of a template; besides ``more`` it sees the names and ports."""
        return environment().get_template(template).render(
            prefix=self.prefix, macro=self.macro, shown=self.shown, inputs=self.inputs, outputs=self.outputs, header=self.header,
            library=self.library, constants=CONSTANTS, alignment=ALIGNMENT, **more,
        )  # fmt: skip


@cache
def environment() -> Environment:
    """Templates fail on a name that they are not given. Nothing is escaped: names are mangled before they get here."""
    loader = PackageLoader("gatewright.targets.tvm")
    return Environment(loader=loader, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True)


def identifier(name: str, default: str) -> str:
    """Part of an identifier: lower-case ASCII letters, digits and single underscores, neither first nor last.

    A prefix keeps it from being a keyword or a macro, and from beginning with a digit.
    """
    return re.sub(r"[^a-z0-9]+", "_", name.lower(), flags=re.ASCII).strip("_")[:LONGEST_NAME].strip("_") or default


def comment(name: str) -> str:
    """A name quoted for a comment of C, C++ or CMake: none of its characters ends one, continues a line or hides anything."""
    shown = re.sub(r"[^A-Za-z0-9_.:,=+() -]", "_", name, flags=re.ASCII)
    return f'"{shown[:80]}{"..." if len(shown) > 80 else ""}"'


def files(interface: Interface, described: Mapping[str, Any], device: str, arch: str, cross: str | None) -> dict[str, str]:
    """What the user is given besides library and constants, by path: the header, and a CMake project that runs the model.

    described: ``threads``, ``batch``, ``per_sample``, ``arena_bytes``, ``calls``. ``cross``: the prefix of the cross compiler's
    programs, None where the artifact is for this machine's architecture.
    """
    given = {key: described[key] for key in ("threads", "batch", "per_sample", "arena_bytes", "calls")}
    return {
        interface.header: interface.render("model.h.j2", device=comment(device), **given),
        "example/CMakeLists.txt": interface.render("CMakeLists.txt.j2", arch=arch, cross=cross),
        "example/main.cpp": interface.render("main.cpp.j2"),
    }


def _ports(values: Sequence[Value], direction: str, macro: str) -> tuple[Port, ...]:
    taken: set[str] = set()
    ports = []
    for position, value in enumerate(values):
        field = f"{direction}_{identifier(value.name, str(position))}"
        while field in taken:
            field += f"_{position}"
        taken.add(field)
        shape = tuple(value.shape)
        ports.append(Port(field, f"{macro}_{field.upper()}", comment(value.name), c_type(value.dtype), value.dtype, shape))
    return tuple(ports)


def c_type(dtype: str) -> str:
    """C's type for a TVM type. Raises UnsupportedError for one that it has none for."""
    if dtype.startswith("float8"):
        return "uint8_t"
    if dtype not in _C_TYPES:
        raise UnsupportedError(f"values of type {dtype} cannot cross the interface of a cpu artifact")
    return _C_TYPES[dtype]


def _numpy(dtype: str) -> str:
    return {"bfloat16": "uint16"}.get(dtype, "uint8" if dtype.startswith("float8") else dtype)
