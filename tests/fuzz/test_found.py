"""What fuzz_load.py has found, and what became of it: each file is refused in words, or is a model after all; in time."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from gatewright.errors import ModelError
from gatewright.frontend.load import load

FOUND = sorted((Path(__file__).parent / "found").glob("*.onnx"))
SECONDS = 10.0
MODELS = {"an_lstm_of_no_samples"}
"""ONNX allows these."""


@pytest.mark.parametrize("path", FOUND, ids=lambda path: path.stem)
def test_no_harm(path: Path) -> None:
    start = time.monotonic()
    # In this process, where a crash would be one.
    if path.stem in MODELS:
        assert load(path, trust=True).outputs
        assert time.monotonic() - start < SECONDS
        return
    with pytest.raises(ModelError) as caught:
        load(path, trust=True)
    assert caught.value.__cause__ is None, "a refusal, not a stumble"
    assert time.monotonic() - start < SECONDS


def test_there_are_some() -> None:
    assert FOUND
