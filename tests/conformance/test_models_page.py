"""The page of models: every one was run on every engine, once, and is whole on target cpu."""

from __future__ import annotations

from pathlib import Path

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "models.md").read_text(encoding="utf-8")
ROWS = [[cell.strip() for cell in line.strip("|").split("|")] for line in PAGE.splitlines() if line.startswith("| ")][1:]
UNLIKE = {"ppocrv4_det": 1e-2, "qonnx_espcn_subpixel_q": 1e-2}
"""ONNX Runtime's own error on one, a step of quantization on the other."""


def test_every_model_stands_there_once() -> None:
    names = [row[0] for row in ROWS]
    assert sorted(set(names)) == sorted(names)
    assert sum(name.startswith("light_") for name in names) == 9
    assert len(names) >= 41


def test_every_model_was_run_and_agrees() -> None:
    for name, _, ort, cpu, _ in ROWS:
        assert ort, f"{name} was not run on ort"
        assert cpu, f"{name} was not run on cpu"
        for cell in (ort, cpu):
            assert float(cell) <= UNLIKE.get(name, 1e-4), (name, cell)


def test_every_model_is_whole_on_target_cpu() -> None:
    assert [name for name, *_, falls in ROWS if falls != "whole"] == []
