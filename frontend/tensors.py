"""Names, shapes and types of a model's inputs and outputs: all that running a finished artifact needs to know of the model.

Apart from ``model.py``, so that a program that only runs artifacts loads no library that reads ONNX (50 MB, and seconds).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class TensorInfo:
    """A graph input or output: its name, static shape and numpy dtype."""

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype[Any]

    def __str__(self) -> str:
        return f"{self.name}: {self.dtype}{list(self.shape)}"
