"""The content-addressed store: never trusted, never half-written, safe for several processes."""

from __future__ import annotations

import multiprocessing
import os
import time
from pathlib import Path

import pytest

from gatewright.errors import GatewrightError
from gatewright.runtime.cache import Cache, key_of


def check(folder: Path) -> None:
    if (folder / "file").read_text() != "good":
        raise GatewrightError("damaged")


def good(folder: Path) -> None:
    (folder / "file").write_text("good")


def test_key_depends_on_every_part_and_on_nothing_else() -> None:
    assert key_of({"a": 1, "b": [1, 2]}) == key_of({"b": [1, 2], "a": 1})
    assert len({key_of({"a": 1}), key_of({"a": 2}), key_of({"b": 1}), key_of({"a": [1]})}) == 4


def test_made_once(tmp_path: Path) -> None:
    cache = Cache(tmp_path)
    first = cache.entry("kind", "ab12", good, check)
    second = cache.entry("kind", "ab12", lambda folder: pytest.fail("made twice"), check)
    assert (first.hit, second.hit) == (False, True)
    assert first.path == second.path
    assert second.seconds is not None
    assert second.seconds == pytest.approx(first.seconds, abs=1e-5)


def test_a_damaged_entry_is_made_again(tmp_path: Path) -> None:
    cache = Cache(tmp_path)
    path = cache.entry("kind", "ab12", good, check).path
    (path / "file").write_text("evil")
    (path / "stray").write_text("stray")
    again = cache.entry("kind", "ab12", good, check)
    assert not again.hit
    assert os.listdir(again.path) == ["file"]


def test_an_entry_that_is_a_file_is_replaced(tmp_path: Path) -> None:
    cache = Cache(tmp_path)
    (tmp_path / "kind" / "ab").mkdir(parents=True)
    (tmp_path / "kind" / "ab" / "ab12").write_text("not a folder")

    def strict(folder: Path) -> None:
        if not folder.is_dir():
            raise GatewrightError("not a folder")
        check(folder)

    assert not cache.entry("kind", "ab12", good, strict).hit


@pytest.mark.parametrize("error", [GatewrightError("no"), KeyboardInterrupt(), ZeroDivisionError()])
def test_a_failed_make_leaves_nothing(tmp_path: Path, error: BaseException) -> None:
    def fail(folder: Path) -> None:
        good(folder)
        raise error

    with pytest.raises(type(error)):
        Cache(tmp_path).entry("kind", "ab12", fail, check)
    assert [path for path in (tmp_path / "kind").rglob("*") if path.is_file()] == []
    assert os.listdir(tmp_path / "kind" / "ab") == []


def test_a_cache_that_cannot_be_written_is_a_clear_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(GatewrightError, match="GATEWRIGHT_CACHE_DIR"):
        Cache(tmp_path / "file").entry("kind", "ab12", good, check)


def _slow(folder: Path) -> None:
    time.sleep(0.3)
    (folder / "file").write_text("good")


def _take(root: str, results: multiprocessing.Queue[tuple[bool, str]]) -> None:
    entry = Cache(Path(root)).entry("kind", "ab12", _slow, check)
    results.put((entry.hit, (entry.path / "file").read_text()))


def test_of_many_processes_one_makes_it(tmp_path: Path) -> None:
    spawn = multiprocessing.get_context("spawn")
    results = spawn.Queue()
    workers = [spawn.Process(target=_take, args=(str(tmp_path), results)) for _ in range(4)]
    for worker in workers:
        worker.start()
    found = [results.get(timeout=60) for _ in workers]
    for worker in workers:
        worker.join(30)
        assert worker.exitcode == 0
    assert sorted(hit for hit, _ in found) == [False, True, True, True]
    assert {text for _, text in found} == {"good"}


def test_bytes_used(tmp_path: Path) -> None:
    cache = Cache(tmp_path)
    assert cache.bytes_used() == 0
    cache.entry("kind", "ab12", good, check)
    assert cache.bytes_used() >= 4
