"""torch.export's .pt2 files without trust: rewritten to what cannot run code, then opened by torch.

torch.export.load unpickles, imports what the file names, evaluates its symbolic expressions as Python and loads compiled libraries.
So the archive is read here first: a graph of ATen operators in JSON, and weights as plain bytes. That alone is put into a new archive;
whatever else a file may hold (pickled weights, custom objects, compiled code, other functions) needs ``trust=True``.
"""

from __future__ import annotations

import io
import json
import math
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from gatewright.errors import ModelError

from . import archives
from .importing import trusted
from .limits import Limits, raised

_TARGET = re.compile(r"torch\.ops\.aten\.[a-z_0-9A-Z]+\.[a-zA-Z_0-9]+")
_OPERATORS = ("getitem", "add", "mul", "sub", "floordiv", "mod", "neg", "pow", "truediv", "eq", "ne", "lt", "le", "gt", "ge", "and_", "or_",
              "not_")  # fmt: skip
_PLAIN_TARGETS = {*(f"_operator.{name}" for name in _OPERATORS), "math.ceil", "math.floor", "math.trunc"}
_FORBIDDEN = {"from_file", "_print", "save"}
"""ATen operators that read files or write to the screen."""
_WORDS = {"FloorDiv", "ModularIndexing", "PythonMod", "Mod", "CleanDiv", "CeilToInt", "FloorToInt", "CeilDiv", "IntTrueDiv", "PowByNatural",
          "TruncToInt", "Max", "Min", "Identity", "oo", "int_oo", "Add", "Mul", "Pow", "Integer",
          "Rational"}  # fmt: skip
_SYMBOL = re.compile(r"Symbol\('[a-z]{1,4}\d+'(, [a-z]+=(True|False))*\)")
_EXPRESSION = re.compile(r"[A-Za-z0-9_ +\-*/(),<>=]*")
_CONTAINERS = {None, "builtins.tuple", "builtins.list", "builtins.dict"}
_EXPRESSION_KEYS = {"expr_str"}
_WEIGHT = re.compile(r"(weight|constant|tensor)_\d+")
_HEADER = ("archive_format", "archive_version", "byteorder", ".data/version", ".data/serialization_id")
_JSON_BYTES = 512 << 20
_DEPTH = 100


def harmless(path: Path, limits: Limits) -> io.BytesIO:
    """The archive with nothing in it that torch would run. Raises ModelError naming what needs trust."""
    held = archives.entries(path, limits)
    root = next((name.partition("/")[0] for name in held if name.endswith("/archive_format")), "")
    files = {name[len(root) + 1 :]: name for name in held if name.startswith(f"{root}/")}
    if "models/model.json" not in files:
        raise ModelError(
            f"{path.name} is no file of torch.export, or of a version before 2.8", hint="write it again: torch.export.save(program, path)"
        )
    for name in files:
        if name.startswith(("data/aotinductor", "executorch")) or name.endswith((".so", ".pyd", ".cpp")):
            _refuse(path, f"it holds compiled code ({name})")
    program = _json(path, files["models/model.json"])
    _check_program(path, program)
    plain = [name for name in _HEADER if name in files]
    kept: dict[str, bytes] = {name: archives.member(path, files[name], 1 << 10) for name in plain}
    for kind in ("weights", "constants"):
        name = f"data/{kind}/model_{kind}_config.json"
        if name not in files:
            _refuse(path, f"its {kind} are a pickle")
        config = _json(path, files[name])
        kept[name] = json.dumps(config).encode()
        for entry in _entries(path, config, limits):
            place = f"data/{kind}/{entry}"
            kept[place] = archives.member(path, files.get(place, place), limits.tensor_bytes)
    kept["models/model.json"] = json.dumps(program).encode()
    # Example inputs are a pickle; without them the file is as good.
    kept["data/sample_inputs/model.pt"] = b""
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w", zipfile.ZIP_STORED) as archive:
        for name, data in kept.items():
            archive.writestr(f"model/{name}", data)
    made.seek(0)
    return made


def _json(path: Path, name: str) -> dict[str, Any]:
    try:
        found = json.loads(archives.member(path, name, _JSON_BYTES))
    except (ValueError, RecursionError):
        raise ModelError(f"{name} in {path.name} is no JSON", hint="the file is damaged") from None
    if not isinstance(found, dict):
        raise ModelError(f"{name} in {path.name} is not what torch.export writes", hint="the file is damaged")
    return found


def _entries(path: Path, config: dict[str, Any], limits: Limits) -> Iterator[str]:
    """Names of the files of a weights configuration, each with a plain tensor of a size within the limits."""
    for key, entry in (config.get("config") or {}).items():
        name, meta = str(entry.get("path_name")), entry.get("tensor_meta")
        if entry.get("use_pickle") or not isinstance(meta, dict):
            _refuse(path, f"its weight {key!r} is pickled")
        if not _WEIGHT.fullmatch(name):
            _refuse(path, f"its constant {key!r} is an object of its own ({name})")
        assert isinstance(meta, dict)
        sizes = [size.get("as_int") for size in meta.get("sizes", ())]
        if any(not isinstance(size, int) or size < 0 for size in sizes) or 8 * math.prod(sizes) > limits.tensor_bytes:
            raise ModelError(f"weight {key!r} of {path.name} has sizes {sizes}", hint=f"if you trust the file: {raised('tensor_bytes')}")
        yield name


def _check_program(path: Path, program: dict[str, Any]) -> None:
    """Raises ModelError unless every function is ATen's and every expression arithmetic; what says nothing about the values is dropped."""
    module = program.get("graph_module")
    if not isinstance(module, dict) or not isinstance(module.get("graph"), dict):
        raise ModelError(f"{path.name} holds no graph", hint="the file is damaged")
    program["guards_code"] = []
    module["metadata"] = {}
    if module.get("treespec_namedtuple_fields"):
        _refuse(path, "its inputs or outputs are named tuples of its own")
    waiting: list[tuple[Any, int]] = [(program, 0)]
    while waiting:
        item, depth = waiting.pop()
        if depth > _DEPTH:
            raise ModelError(f"the graph in {path.name} is nested deeper than {_DEPTH} levels", hint="the file is damaged")
        if isinstance(item, list):
            waiting.extend((value, depth + 1) for value in item)
        elif isinstance(item, dict):
            if "target" in item:
                _check_target(path, item)
            for key, value in item.items():
                if key in _EXPRESSION_KEYS:
                    _check_expression(path, value)
                elif key in ("in_spec", "out_spec") and value:
                    _check_tree(path, value)
                elif key in ("as_custom_obj", "custom_obj", "as_operator", "token") and value is not None:
                    _refuse(path, f"it holds {key.removeprefix('as_')} objects")
                else:
                    waiting.append((value, depth + 1))


def _check_target(path: Path, node: dict[str, Any]) -> None:
    target = str(node["target"])
    name = target.split(".")[3] if _TARGET.fullmatch(target) else ""
    if target not in _PLAIN_TARGETS and (not name or name in _FORBIDDEN):
        _refuse(path, f"its node {node.get('name')!r} calls {target[:80]!r}, which is no operator of ATen")
    node["metadata"] = {}


def _check_expression(path: Path, text: Any) -> None:
    """Symbolic sizes are evaluated as Python: names may only be symbols (s0, u1) and known functions."""
    bare = _SYMBOL.sub("s0", str(text))
    plain = isinstance(text, str) and len(text) < 10_000 and _EXPRESSION.fullmatch(bare)
    if not plain or any(not re.fullmatch(r"[a-z]{1,4}\d+", word) and word not in _WORDS for word in re.findall(r"[A-Za-z_]\w*", bare)):
        _refuse(path, f"its size {str(text)[:80]!r} is no arithmetic")


def _check_tree(path: Path, text: Any) -> None:
    try:
        waiting = [json.loads(text)[1]]
    except (ValueError, TypeError, IndexError, RecursionError):
        raise ModelError(f"{path.name} does not say how its inputs are nested", hint="the file is damaged") from None
    while waiting:
        item = waiting.pop()
        kind = item.get("type") if isinstance(item, dict) else ""
        if kind not in _CONTAINERS or "__enum__" in str(item.get("context")):
            _refuse(path, f"its inputs or outputs are of type {kind!r}")
        waiting.extend(item.get("children_spec", ()))


def _refuse(path: Path, what: str) -> None:
    trusted(False, path.name, what)
