"""Folders and files appear whole or not at all."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from gatewright.errors import GatewrightError
from gatewright.runtime import atomic
from gatewright.runtime.atomic import install, staging, write_file


def test_a_new_folder_appears_at_once(tmp_path: Path) -> None:
    with staging(tmp_path / "deep" / "er", "a") as folder:
        (folder / "file").write_text("x")
        assert not (tmp_path / "deep" / "er" / "a").exists()
        install(folder, tmp_path / "deep" / "er" / "a")
    assert (tmp_path / "deep" / "er" / "a" / "file").read_text() == "x"
    assert os.listdir(tmp_path / "deep" / "er") == ["a"]


@pytest.mark.parametrize("has_exchange", [True, False])
def test_a_folder_is_replaced_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, has_exchange: bool) -> None:
    if not has_exchange:
        monkeypatch.setattr(atomic.ctypes, "CDLL", lambda name: object())
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "old").write_text("old")
    with staging(tmp_path, "a") as folder:
        (folder / "new").write_text("new")
        install(folder, tmp_path / "a")
    assert os.listdir(tmp_path / "a") == ["new"]
    assert os.listdir(tmp_path) == ["a"]


def test_a_failure_leaves_nothing(tmp_path: Path) -> None:
    def work() -> None:
        with staging(tmp_path, "a") as folder:
            (folder / "half").write_text("x")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        work()
    assert os.listdir(tmp_path) == []


def test_what_a_killed_process_left_is_swept_and_a_living_one_s_is_not(tmp_path: Path) -> None:
    ended = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, text=True, check=True)
    dead = ended.stdout.strip()
    host = socket.gethostname().replace(".", "_")
    for pid in (dead, str(os.getpid())):
        (tmp_path / f".a.{host}.{pid}-7.staging").mkdir()
    (tmp_path / f".other.{host}.{dead}-7.staging").mkdir()
    with staging(tmp_path, "a"):
        pass
    assert sorted(os.listdir(tmp_path)) == sorted([f".a.{host}.{os.getpid()}-7.staging", f".other.{host}.{dead}-7.staging"])


def test_a_file_is_replaced_or_left_alone(tmp_path: Path) -> None:
    write_file(tmp_path / "f", b"1")
    write_file(tmp_path / "f", b"2")
    assert (tmp_path / "f").read_bytes() == b"2"
    with pytest.raises(GatewrightError, match="cannot write"):
        write_file(tmp_path / "missing" / "f", b"3")
    (tmp_path / "folder").mkdir()
    with pytest.raises(GatewrightError, match="cannot write"):
        write_file(tmp_path / "folder", b"3")
    assert sorted(os.listdir(tmp_path)) == ["f", "folder"]
