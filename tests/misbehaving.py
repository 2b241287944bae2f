"""What a library may do to the process that it runs in; work for ``frontend/isolate.py``."""

from __future__ import annotations

import ctypes
import os
import time
from typing import Any

import onnx
from onnx import parser

from gatewright.errors import DoesNotFit
from gatewright.frontend.limits import Limits
from gatewright.frontend.load import from_proto
from gatewright.frontend.model import Model


def small(limits: Limits, **_: Any) -> Model:
    text = '<ir_version: 8, opset_import: ["" : 21]> g (float[1] x) => (float[1] y) { y = Relu(x) }'
    return from_proto(parser.parse_model(text), text="small", limits=limits)


def process(limits: Limits) -> Model:
    """A model named after the process that made it."""
    return small(limits).renamed(str(os.getpid()))


def segfault(limits: Limits) -> Model:
    ctypes.string_at(8)
    return small(limits)


def abort(limits: Limits) -> Model:
    os.abort()


def leave(limits: Limits) -> Model:
    os._exit(3)


def hang_in_c(limits: Limits) -> Model:
    """Never back in Python, so that no signal handler of Python runs: it sleeps with the lock held."""
    ctypes.PyDLL(None).sleep(600)
    return small(limits)


def sleep(limits: Limits) -> Model:
    time.sleep(600)
    return small(limits)


def eat(limits: Limits) -> Model:
    held = []
    while True:
        held.append(bytearray(os.urandom(1 << 20) * 64))


def eat_in_c(limits: Limits) -> Model:
    proto = onnx.ModelProto()
    while True:
        proto.graph.node.add(op_type="x" * 10_000_000)


def write_a_file(limits: Limits, path: str) -> Model:
    with open(path, "wb") as file:
        file.truncate(1 << 40)
    return small(limits)


def fail(limits: Limits) -> Model:
    raise DoesNotFit("it is too large", hint="take a larger one")


def stumble(limits: Limits) -> Model:
    raise AssertionError("never so")


def talk(limits: Limits) -> Model:
    print("hello from inside", flush=True)
    os.system("echo hello from a shell; echo and its errors >&2")
    return small(limits)
