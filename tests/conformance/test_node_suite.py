"""ONNX's node tests: the list of those that count is the installed onnx's, a sample runs, and the page tells how all of them did."""

from __future__ import annotations

import importlib.util
import re
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
NAMES = (Path(__file__).parent / "node_tests.txt").read_text(encoding="utf-8").split()
PAGE = (ROOT / "docs" / "operators.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def suite() -> Any:
    spec = importlib.util.spec_from_file_location("node_suite", ROOT / "bench" / "node_suite.py")
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules["node_suite"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_list_is_of_the_installed_onnx(suite: Any) -> None:
    assert [test.name for test in suite.listed()] == NAMES


@pytest.mark.parametrize("target", ["ref", "ort"])
def test_a_sample_on_engines_that_need_no_compiler(suite: Any, target: str) -> None:
    failed = failures(suite, target, 25)
    assert failed == []


@pytest.mark.slow
def test_a_sample_on_target_cpu(suite: Any) -> None:
    failed = failures(suite, suite.ALONE, 70)
    assert failed == []


def test_a_zero_point_is_no_bias(suite: Any) -> None:
    found = {test.name: suite.one(test, "ref")["status"] for test in suite.listed() if "convinteger" in test.name}
    assert found == {"test_convinteger_with_padding": "passed", "test_convinteger_without_padding": "passed"}


def test_the_light_networks_come_with_onnx(suite: Any) -> None:
    tests = suite.listed("real")
    assert len(tests) == 9
    for inputs, outputs in (sample for test in tests[-1:] for sample in test.samples()):
        assert [array.shape for array in (*inputs, *outputs)] == [(1, 3, 224, 224), (1, 1000)]


@pytest.mark.slow
@pytest.mark.parametrize("target", ["ref", "ort"])
def test_a_light_network(suite: Any, target: str) -> None:
    (test,) = (test for test in suite.listed("real") if "squeezenet" in test.name)
    assert suite.one(test, target)["status"] == "passed"


@pytest.mark.nightly
@pytest.mark.parametrize("kind", ["real", "simple", "pytorch-operator", "pytorch-converted"])
def test_the_other_suites_on_target_cpu(suite: Any, kind: str) -> None:
    assert failures(suite, suite.ALONE, 1, kind) == []


def failures(suite: Any, target: str, step: int, kind: str = "node") -> list[str]:
    """Of every ``step``-th test: those that neither pass nor are refused nor are known defects."""
    found = {test.name: suite.one(test, target) for test in suite.listed(kind)[::step]}
    return [
        f"{name}: {line['status']} {line['reason']}" for name, line in found.items()
        if line["status"] not in ("passed", "refused") and suite.defect(target, name) is None
    ]  # fmt: skip


def totals(target: str) -> dict[str, int]:
    """The row of a target in the page's table of totals."""
    head = next(line for line in PAGE.splitlines() if line.startswith("| target | tests |"))
    row = next(line for line in PAGE.splitlines() if line.startswith(f"| `{target}` |"))
    columns, cells = ([cell.strip() for cell in line.strip("|").split("|")] for line in (head, row))
    return {column: int(cell) for column, cell in zip(columns[1:], cells[1:], strict=True)}


@pytest.mark.parametrize(("target", "least"), [("cpu", 1500), ("cpu{fallback=none}", 1000)])
def test_the_page_is_of_this_list_and_keeps_the_promise(target: str, least: int) -> None:
    count = totals(target)
    assert count["tests"] == len(NAMES)
    assert count["passed"] >= least
    assert count["crashed"] == count["hung"] == 0


def test_whatever_is_wrong_is_a_known_defect() -> None:
    for line in PAGE.splitlines():
        if found := re.fullmatch(r"\| (.*) \| \d+ \| (wrong|failed|crashed|hung) \| (.*) \|", line):
            assert found[3].startswith("known defect: "), line
