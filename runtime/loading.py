"""The verb ``load``, apart from the others: the process that reads files starts first, and imports while this one does."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from gatewright.frontend import isolate

if TYPE_CHECKING:
    from gatewright.frontend.model import Model


def load(source: Any, *, dims: Mapping[str, int] | None = None, name: str | None = None, **options: Any) -> Model:
    """A canonical Model from a path, bytes, a ModelProto or a framework's model. ``dims`` binds named axes: {"batch": 1}.

    A file is read in a process of its own, within ``limits``; ``trust=True`` reads it in this one. Options: see frontend/load.py.
    """
    if isinstance(source, str | os.PathLike | bytes) and not options.get("trust"):
        isolate.warm()
    from gatewright.frontend.load import load as read

    return read(source, dims=dims, name=name, **options)
