"""The package as it is installed: every folder listed, nothing heavy imported, every public name there."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import gatewright

ROOT = Path(__file__).parents[1]
LAYERS = ("hw", "frontend", "passes", "targets", "runtime")


def project() -> dict[str, object]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def test_every_folder_with_code_is_a_listed_package() -> None:
    listed = set(project()["tool"]["setuptools"]["packages"])  # type: ignore[index]
    found = {"gatewright"} | {
        "gatewright." + ".".join(init.parent.relative_to(ROOT).parts) for layer in LAYERS for init in (ROOT / layer).rglob("__init__.py")
    }
    assert listed == found


def test_every_listed_package_has_its_folder() -> None:
    setuptools = project()["tool"]["setuptools"]  # type: ignore[index]
    assert set(setuptools["package-dir"]) == set(setuptools["packages"])
    for package, folder in setuptools["package-dir"].items():
        assert (ROOT / folder / "__init__.py").is_file(), package


def test_every_data_file_is_package_data() -> None:
    """A file that code reads at run time must be in the wheel."""
    setuptools = project()["tool"]["setuptools"]  # type: ignore[index]
    for layer in LAYERS:
        for file in (ROOT / layer).rglob("*"):
            if file.is_file() and file.suffix not in (".py", ".pyc") and "__pycache__" not in file.parts:
                package = next(p for p in file.parents if (p / "__init__.py").is_file())
                name = "gatewright." + ".".join(package.relative_to(ROOT).parts)
                patterns = setuptools["package-data"].get(name, [])
                assert any(file.relative_to(package).match(pattern) for pattern in patterns), f"{file} is in no package-data of {name}"


@pytest.mark.parametrize("name", gatewright.__all__)
def test_public_name_resolves(name: str) -> None:
    assert getattr(gatewright, name) is not None


def test_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        gatewright.nonsense  # noqa: B018


def test_import_brings_nothing_heavy() -> None:
    """What keeps ``import gatewright`` below 0.3 s: none of these is loaded by it (bench/import_time.py prints the seconds)."""
    heavy = ("numpy", "onnx", "onnx_ir", "tvm", "hls4ml", "torch", "rich")
    code = f"import sys, gatewright; print(' '.join(m for m in {heavy} if m in sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""
