"""How long work says where it is, without knowing who listens (a terminal, a log, nobody)."""

from __future__ import annotations

from typing import Protocol


class Progress(Protocol):
    """Told of every step that can take over a second."""

    def __call__(self, what: str, done: int | None = None, total: int | None = None) -> None:
        """``what`` is under way; ``done`` of ``total`` units where the number is known."""


def silent(what: str, done: int | None = None, total: int | None = None) -> None:
    """The listener of library calls that did not ask for progress."""
