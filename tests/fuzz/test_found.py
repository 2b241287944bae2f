"""What fuzz_load.py has found, and what became of it: each file is refused in words, in time."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from gatewright.errors import ModelError
from gatewright.frontend.load import load

FOUND = sorted((Path(__file__).parent / "found").glob("*.onnx"))
SECONDS = 10.0


@pytest.mark.parametrize("path", FOUND, ids=lambda path: path.stem)
def test_refused(path: Path) -> None:
    start = time.monotonic()
    # In this process, where a crash would be one.
    with pytest.raises(ModelError) as caught:
        load(path, trust=True)
    assert caught.value.__cause__ is None, "a refusal, not a stumble"
    assert time.monotonic() - start < SECONDS


def test_there_are_some() -> None:
    assert FOUND
