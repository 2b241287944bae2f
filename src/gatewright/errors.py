"""The errors a user can meet. Each says what is wrong and what to do, and knows the exit code of the command line.

Exit codes: 1 something failed or a tool is missing, 2 usage, 3 something is unsupported or does not fit.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class GatewrightError(Exception):
    """Something a user can act on. ``hint`` says what to do about it."""

    exit_code = 1

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message} ({self.hint})" if self.hint else self.message


class UsageError(GatewrightError):
    """The words of a call are off: an unknown target, device, pass or option, a value out of range."""

    exit_code = 2


class ModelError(GatewrightError):
    """A model file cannot be read, or what it holds is not a valid model."""


class DataError(GatewrightError):
    """A dataset cannot be read, does not fit the model, or lacks labels that a metric needs."""


class PassError(GatewrightError):
    """A pass could not do what was asked of it; the message names the pass, and those which ran before it."""


class ToolMissing(GatewrightError):
    """An outside program that the step needs is not installed."""


class ToolFailed(GatewrightError):
    """An outside program failed, ran out of time or memory; the message has its last lines and the log's path."""


class MismatchError(GatewrightError):
    """A conversion does not compute what ``ref`` computes; the message names the first layer that differs."""


class UnsupportedError(GatewrightError):
    """The target cannot run this model as it is."""

    exit_code = 3


class UnsupportedOp(UnsupportedError):
    """One node that a target refuses: which node, which op, which target, by which rule."""

    def __init__(self, *, node: str, op: str, target: str, rule: str, hint: str | None = None) -> None:
        super().__init__(f"{target} does not support node {node!r} ({op}): {rule}", hint=hint)
        self.node, self.op, self.target, self.rule = node, op, target, rule


class DoesNotFit(UnsupportedError):
    """The model is supported but larger than the device."""


def nearest(word: str, known: Iterable[str], what: str) -> str:
    """A hint for a mistyped name: the closest known names, or all of them when none is close.

    >>> nearest("cpuu", ["cpu", "ref"], "targets")
    'did you mean cpu? known targets: cpu, ref'
    """
    names = sorted(known)
    close = difflib.get_close_matches(word, names, n=3, cutoff=0.5)
    listed = f"known {what}: {', '.join(names)}"
    return f"did you mean {' or '.join(close)}? {listed}" if close else listed
