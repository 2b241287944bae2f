"""The type of the ``compiled`` fixture (conftest.py), under a module name that no other folder has."""

from __future__ import annotations

from collections.abc import Callable

from gatewright.targets.base import Executor

Compile = Callable[..., Executor]
