"""Fixtures that every test may use: real models and data that may be absent, and golden files."""

from __future__ import annotations

import difflib
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SHARED = ROOT.parent / "shared"
GOLDEN = ROOT / "tests" / "golden"
STARTED = time.monotonic()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--update-golden", action="store_true", help="rewrite tests/golden/ with what the code gives now")
    parser.addoption("--slow-budget", type=float, metavar="SECONDS", help="skip, by name, the slow tests that have not begun by then")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Under a budget the first case of every test comes before the second of any, so that what is left out are repetitions."""
    if config.getoption("--slow-budget") is None:
        return
    seen: Counter[str] = Counter()
    turn: dict[str, int] = {}
    for item in items:
        test = item.nodeid.partition("[")[0]
        turn[item.nodeid] = seen[test]
        seen[test] += 1
    items.sort(key=lambda item: turn[item.nodeid])


def pytest_runtest_setup(item: pytest.Item) -> None:
    budget = item.config.getoption("--slow-budget")
    if budget is not None and item.get_closest_marker("slow") and time.monotonic() - STARTED > budget:
        pytest.skip(f"the budget of {budget:.0f} s for slow tests is spent")


def _shared(folder: str, name: str) -> Path:
    path = SHARED / folder / name
    if not path.exists():
        pytest.skip(f"{folder}/{name} is not beside this checkout")
    return path


@pytest.fixture(scope="session")
def shared_model() -> Callable[[str], Path]:
    """``shared_model("mnist_cntk.onnx")``: the path of a real model; the test is skipped, by name, where it is absent."""
    return lambda name: _shared("models", name)


@pytest.fixture(scope="session")
def shared_data() -> Callable[[str], Path]:
    """``shared_data("sk_digits.npz")``: the path of a real data set; the test is skipped, by name, where it is absent."""
    return lambda name: _shared("data", name)


@pytest.fixture
def golden(request: pytest.FixtureRequest) -> Callable[[str, str], None]:
    """``golden(name, text)``: fails with a diff unless tests/golden/<name> holds ``text``; --update-golden rewrites the file."""

    def compare(name: str, text: str) -> None:
        path = GOLDEN / name
        if request.config.getoption("--update-golden"):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8", newline="\n")
            return
        if not path.is_file():
            pytest.fail(f"tests/golden/{name} does not exist; write it with pytest --update-golden")
        expected = path.read_text(encoding="utf-8")
        if text != expected:
            diff = difflib.unified_diff(expected.splitlines(), text.splitlines(), f"golden/{name}", "now", lineterm="")
            pytest.fail("\n".join([*diff, "if this is meant, run pytest --update-golden and look at the change"]), pytrace=False)

    return compare
