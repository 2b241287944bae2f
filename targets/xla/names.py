"""Names: of a program's weights, and of nodes where a compiler sees them."""

from __future__ import annotations

import re
import zlib


def initializer(name: str) -> str:
    """The weight that an initializer is."""
    return f"initializer:{name}"


def made_for(operation: str, what: str) -> str:
    """A weight computed for an integer operation, its digits or its table; never an initializer's name, whatever the model's names are."""
    return f"operation:{operation}:{what}"


def digit(operation: str, number: int) -> str:
    """A digit of an integer operation's weight, the lowest first."""
    return made_for(operation, f"weight{number}")


def mangled(name: str) -> str:
    """A node's name as a scope's: a model's names never reach a compiler as they are. Different names stay different."""
    plain = re.sub(r"[^A-Za-z0-9_.]", "_", name)
    return plain if plain == name and 0 < len(name) <= 60 else f"{plain[:60]}_{zlib.crc32(name.encode()):08x}"
