"""A table (TOML or JSON) checked against a dataclass: types, ranges, unknown and missing keys, each with one clear error.

Strict where ``gatewright.spec`` is lenient: there values are a user's words, here they are already typed, and a text where
a number belongs is a mistake. Ranges stand in the annotations: ``cores: Annotated[int, Range(1, 4096)]``.
"""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from gatewright.errors import UsageError, nearest

T = TypeVar("T")


@dataclass(frozen=True)
class Range:
    """Bounds of a number, both inclusive."""

    low: float
    high: float


def parse_table(cls: type[T], table: object, where: str) -> T:
    """An instance of the dataclass ``cls`` from ``table``. Raises UsageError that starts with ``where`` and names the key."""
    if not isinstance(table, Mapping):
        raise UsageError(f"{where} is {_shown(table)}; it takes a table of keys")
    hints = typing.get_type_hints(cls, include_extras=True)
    fields = {f.name: f for f in dataclasses.fields(cls) if f.init}  # type: ignore[arg-type]
    for key in table:
        if key not in fields:
            raise UsageError(f"{where}: there is no key {key!r}", hint=nearest(str(key), fields, "keys"))
    values = {key: _checked(value, hints[key], f"{where}: key {key!r}") for key, value in table.items()}
    for name, f in fields.items():
        if name not in values and f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING:
            raise UsageError(f"{where}: key {name!r} is missing", hint=f"it takes {_takes(hints[name])}")
    return cls(**values)


def render_table(instance: object) -> dict[str, Any]:
    """The inverse of ``parse_table``: plain JSON values, keys at their defaults left out."""
    table: dict[str, Any] = {}
    for f in dataclasses.fields(instance):  # type: ignore[arg-type]
        value = getattr(instance, f.name)
        default = f.default_factory() if f.default_factory is not dataclasses.MISSING else f.default
        if value != default:
            table[f.name] = _plain(value)
    return table


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value):
        return render_table(value)
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    return {key: _plain(item) for key, item in value.items()} if isinstance(value, Mapping) else value


def _checked(value: Any, wanted: Any, what: str) -> Any:
    wanted, bounds = _unwrap(wanted)
    origin, arguments = typing.get_origin(wanted), typing.get_args(wanted)
    mistake = UsageError(f"{what} is {_shown(value)}; it takes {_takes(wanted, bounds)}")
    if origin in (typing.Union, types.UnionType):
        return _checked(value, next(a for a in arguments if a is not type(None)), what)
    if origin is typing.Literal:
        if value not in arguments:
            raise mistake
        return value
    if origin is tuple:
        if not isinstance(value, list | tuple) or (arguments[-1] is not Ellipsis and len(value) != len(arguments)):
            raise mistake
        kinds = [arguments[0]] * len(value) if arguments[-1] is Ellipsis else arguments
        return tuple(_checked(item, kind, f"{what}, item {i + 1},") for i, (item, kind) in enumerate(zip(value, kinds, strict=True)))
    if origin is not None and issubclass(origin, Mapping):
        if not isinstance(value, Mapping):
            raise mistake
        keys = typing.get_args(arguments[0])  # of a Literal; none where any text may be a key
        for key in value:
            if keys and key not in keys:
                raise UsageError(f"{what} has no entry {key!r}", hint=nearest(str(key), keys, "entries"))
        return {key: _checked(item, arguments[1], f"{what}, entry {key!r},") for key, item in value.items()}
    if dataclasses.is_dataclass(wanted):
        return parse_table(typing.cast("type[Any]", wanted), value, what)
    number = float if wanted is float and isinstance(value, int) and not isinstance(value, bool) else type(value)
    if number is not wanted or (bounds and not bounds.low <= value <= bounds.high):
        raise mistake
    return float(value) if wanted is float else value


def _unwrap(wanted: Any) -> tuple[Any, Range | None]:
    if typing.get_origin(wanted) is typing.Annotated:
        return typing.get_args(wanted)[0], next((m for m in wanted.__metadata__ if isinstance(m, Range)), None)
    return wanted, None


def _takes(wanted: Any, bounds: Range | None = None) -> str:
    """What a key takes, in words."""
    if bounds is None:
        wanted, bounds = _unwrap(wanted)
    origin, arguments = typing.get_origin(wanted), typing.get_args(wanted)
    if origin in (typing.Union, types.UnionType):
        return _takes(next(a for a in arguments if a is not type(None)))
    if origin is typing.Literal:
        return " or ".join(repr(a) for a in arguments)
    if origin is tuple:
        count = "" if arguments[-1] is Ellipsis else f"{len(arguments)} items, "
        return f"a list of {count}each {_takes(arguments[0])}"
    if origin is not None and issubclass(origin, Mapping):
        return f"a table, each entry {_takes(arguments[1])}"
    words = {int: "a whole number", float: "a number", str: "a text", bool: "true or false"}.get(wanted, "a table of keys")
    return f"{words} from {bounds.low:g} to {bounds.high:g}" if bounds else words


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
