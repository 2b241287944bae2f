"""Settings from the environment."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from gatewright.errors import UsageError
from gatewright.runtime.config import SETTINGS, config


def test_defaults(monkeypatch: pytest.MonkeyPatch) -> None:
    found = config({"HOME": "/home/me"})
    assert found.cache_dir == Path.home() / ".cache" / "gatewright"
    assert found.jobs >= 1
    assert (found.time_limit_s, found.verify, found.debug, found.color) == (1800, "structure", False, True)


def test_cache_dir_order() -> None:
    assert config({"XDG_CACHE_HOME": "/x"}).cache_dir == Path("/x/gatewright")
    assert config({"XDG_CACHE_HOME": "relative"}).cache_dir == Path.home() / ".cache" / "gatewright"
    assert config({"XDG_CACHE_HOME": "/x", "GATEWRIGHT_CACHE_DIR": "/own"}).cache_dir == Path("/own")


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("GATEWRIGHT_JOBS", "0"),
        ("GATEWRIGHT_JOBS", "many"),
        ("GATEWRIGHT_TIME_LIMIT_S", "-3"),
        ("GATEWRIGHT_TIME_LIMIT_S", "nan"),
        ("GATEWRIGHT_TIME_LIMIT_S", "inf"),
        ("GATEWRIGHT_VERIFY", "always"),
    ],
)
def test_a_bad_value_names_the_variable(variable: str, value: str) -> None:
    with pytest.raises(UsageError, match=variable):
        config({variable: value})


@pytest.mark.parametrize(("text", "meaning"), [("1", True), ("true", True), ("0", False), ("", False), ("off", False)])
def test_debug_switch(text: str, meaning: bool) -> None:
    assert config({"GATEWRIGHT_DEBUG": text}).debug is meaning


def test_no_other_file_reads_the_environment() -> None:
    root = Path(__file__).resolve().parents[2]
    # toolchain and isolate hand their own environment on, to programs and to the process that reads files
    allowed = {root / file for file in ("runtime/config.py", "targets/toolchain.py", "frontend/isolate.py")}
    folders = ("runtime", "targets", "passes", "frontend", "hw", "src/gatewright")
    files = {path.resolve() for folder in folders for path in (root / folder).rglob("*.py")} - allowed
    readers = [path for path in files if re.search(r"os\.environ|getenv", path.read_text(encoding="utf-8"))]
    assert readers == []


def test_every_setting_is_shown_by_the_doctor(monkeypatch: pytest.MonkeyPatch) -> None:
    from gatewright.runtime.diagnosis import diagnose

    assert set(diagnose().settings) == {setting.variable for setting in SETTINGS}
