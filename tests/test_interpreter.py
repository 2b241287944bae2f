"""Every process of Python that the product starts leaves what lies in the current folder alone."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import gatewright
from gatewright.interpreter import python

PACKAGE = Path(gatewright.__file__).parent


def test_the_current_folder_is_not_imported_from(tmp_path: Path) -> None:
    (tmp_path / "numpy.py").write_text("import os; os.mkdir('harm')")
    done = subprocess.run(python("-c", "import numpy; print(numpy.__name__)"), cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "numpy"
    assert not (tmp_path / "harm").exists()
    subprocess.run([sys.executable, "-c", "import numpy"], cwd=tmp_path, capture_output=True, check=True)
    assert (tmp_path / "harm").exists(), "what this test is about"


def test_nobody_starts_python_another_way() -> None:
    """``sys.executable`` is named in one place; what multiprocessing starts is a fork, which imports as its parent does."""
    folders = [PACKAGE, *(path for path in PACKAGE.iterdir() if path.is_dir())]
    sources = {path.resolve() for folder in folders for path in folder.resolve().rglob("*.py")}
    assert len(sources) > 200
    naming = [path.name for path in sorted(sources) if re.search(r"sys\.executable|from sys import", path.read_text(encoding="utf-8"))]
    assert naming == ["interpreter.py"]
    spawning = re.compile(r"get_context\((?!\"fork\")|multiprocessing\.Process")
    assert [path.name for path in sorted(sources) if spawning.search(path.read_text(encoding="utf-8"))] == []
