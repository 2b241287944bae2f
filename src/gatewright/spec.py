"""The one text syntax of options, shared by pipelines, targets and dataset inputs: ``name{key=value,key=value}``.

>>> parse_list("fuse,prune{kind=channel,amount=0.5}")
(Spec(name='fuse', options={}), Spec(name='prune', options={'kind': 'channel', 'amount': '0.5'}))

Values are text until a dataclass gives them a type (``construct``). A list inside a value is written with ``|``:
``quantize{wide=conv1|fc2}``. Nothing here evaluates anything.
"""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

from .errors import UsageError, nearest

T = TypeVar("T")


@dataclass(frozen=True)
class Spec:
    """One parsed item: a name and its options, still text."""

    name: str
    options: Mapping[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        inner = ",".join(f"{key}={value}" for key, value in self.options.items())
        return f"{self.name}{{{inner}}}" if inner else self.name


def split_outside_braces(text: str, separator: str = ",") -> list[str]:
    """``text`` cut at every ``separator`` that is not inside braces; items are stripped. Nothing between two is a UsageError."""
    items, depth, start = [], 0, 0
    for position, character in enumerate(text):
        depth += (character == "{") - (character == "}")
        if depth < 0:
            raise UsageError(f"'}}' without '{{' in {text!r}")
        if character == separator and depth == 0:
            items.append(text[start:position])
            start = position + 1
    if depth:
        raise UsageError(f"'{{' is never closed in {text!r}")
    items.append(text[start:])
    items = [item.strip() for item in items]
    if len(items) > 1 and not all(items):
        raise UsageError(f"nothing stands on one side of a {separator!r} in {text!r}", hint=f"take the {separator!r} out")
    return [item for item in items if item]


def parse(text: str) -> Spec:
    """One ``name`` or ``name{key=value,…}``."""
    name, brace, rest = text.strip().partition("{")
    if not name.strip():
        raise UsageError(f"a name is missing in {text!r}", hint="write name{option=value,…}")
    if not brace:
        return Spec(name.strip())
    inner, closing, after = rest.rpartition("}")
    if not closing or after.strip():
        raise UsageError(f"{text!r} does not end with '}}'", hint="write name{option=value,…}")
    options: dict[str, str] = {}
    for item in split_outside_braces(inner):
        key, equals, value = item.partition("=")
        if not equals or not key.strip():
            raise UsageError(f"option {item!r} of {name.strip()!r} is not key=value")
        if key.strip() in options:
            raise UsageError(f"option {key.strip()!r} of {name.strip()!r} is given twice")
        options[key.strip()] = value.strip()
    return Spec(name.strip(), options)


def parse_list(text: str) -> tuple[Spec, ...]:
    """A comma-separated list of specs; commas inside braces belong to the options."""
    return tuple(parse(item) for item in split_outside_braces(text))


def construct(cls: type[T], owner: str, options: Mapping[str, Any]) -> T:
    """An instance of the dataclass ``cls`` from options as text (or already typed, from Python).

    Supported field types: bool, int, float, str, Literal, tuples of those, and unions with None.
    Raises UsageError naming ``owner``, the option and what it takes. The dataclass's own ``__post_init__`` checks ranges.
    """
    hints = typing.get_type_hints(cls)
    known = {f.name: hints[f.name] for f in dataclasses.fields(cls) if f.init}  # type: ignore[arg-type]
    values = {}
    for key, value in options.items():
        if key not in known:
            raise UsageError(f"{owner} has no option {key!r}", hint=nearest(key, known, f"options of {owner}"))
        values[key] = _convert(value, known[key], f"option {key!r} of {owner}")
    missing = [
        f.name
        for f in dataclasses.fields(cls)  # type: ignore[arg-type]
        if f.init and f.name not in values and f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING
    ]
    if missing:
        raise UsageError(f"{owner} needs the option {missing[0]!r}")
    return cls(**values)


def render(value: object) -> str:
    """The inverse of the conversion: how a typed option is written."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, tuple | list):
        return "|".join(render(item) for item in value)
    return "none" if value is None else str(value)


def describe(instance: object, name: str) -> str:
    """The text that gives ``instance`` (a dataclass) back: its name and every option that is not at its default."""
    options = {}
    for f in dataclasses.fields(instance):  # type: ignore[arg-type]
        value = getattr(instance, f.name)
        default = f.default_factory() if f.default_factory is not dataclasses.MISSING else f.default
        if f.init and value != default:
            options[f.name] = render(value)
    return str(Spec(name, options))


def _convert(value: Any, wanted: Any, what: str) -> Any:
    origin, arguments = typing.get_origin(wanted), typing.get_args(wanted)
    if origin in (typing.Union, types.UnionType):
        if value is None or (isinstance(value, str) and value.lower() == "none" and type(None) in arguments):
            return None
        problems = []
        for candidate in (a for a in arguments if a is not type(None)):
            try:
                return _convert(value, candidate, what)
            except UsageError as error:
                problems.append(error)
        raise problems[0]
    if origin is typing.Literal:
        for allowed in arguments:
            if value == allowed or render(allowed) == value:
                return allowed
        raise UsageError(f"{what} is {value!r}; it takes {', '.join(render(a) for a in arguments)}")
    if origin is tuple:
        items = value.split("|") if isinstance(value, str) else value
        if not isinstance(items, tuple | list):
            items = (items,)
        return tuple(_convert(item, arguments[0], what) for item in items if item != "")
    return _scalar(value, wanted, what)


def _scalar(value: Any, wanted: Any, what: str) -> Any:
    try:
        if wanted is bool:
            words = {"true": True, "1": True, "yes": True, "on": True, "false": False, "0": False, "no": False, "off": False}
            return value if isinstance(value, bool) else words[str(value).lower()]
        if wanted is int:
            if isinstance(value, bool) or (isinstance(value, float) and not value.is_integer()):
                raise ValueError
            return int(value)
        if wanted is float:
            number = float(value)
            if number != number:
                raise ValueError
            return number
        if wanted is str:
            return str(value)
    except (KeyError, ValueError, TypeError):
        kind = {bool: "true or false", int: "a whole number", float: "a number"}[wanted]
        raise UsageError(f"{what} is {value!r}; it takes {kind}") from None
    if isinstance(value, wanted):
        return value
    raise UsageError(f"{what} is {value!r}; it takes {wanted.__name__}")
