"""A program of our own that runs beside us and answers blocks of bytes with blocks of bytes: simulators and emulators.

Its crash, its silence and its appetite end it and become ToolFailed here; it takes nothing down with it.
"""

from __future__ import annotations

import os
import selectors
import subprocess
import tempfile
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path

from gatewright.errors import ToolFailed

from . import toolchain

MEMORY_BYTES = 12 << 30


class Worker:
    """A running program. ``exchange`` writes to its standard input and reads from its standard output."""

    def __init__(
        self, command: Sequence[str | Path], cwd: Path, what: str, stall_limit_s: float,
        env: Mapping[str, str] | None = None, without: Sequence[str] = (), memory_limit_bytes: int | None = MEMORY_BYTES,
    ) -> None:  # fmt: skip
        """``what`` names it for people: "the simulator of digits"; ``stall_limit_s``: how long it may be silent while an answer is due.

        ``env`` and ``without``: see ``toolchain.surroundings``; the memory limit is of address space.
        """
        self._what, self._stall_limit_s = what, stall_limit_s
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 (lives as long as the process)
        self._process = subprocess.Popen(
            [os.fspath(word) for word in command], cwd=cwd, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._log,
            start_new_session=True, env=toolchain.surroundings(env, without),
        )  # fmt: skip
        toolchain.limit_memory(self._process.pid, memory_limit_bytes)

    def exchange(self, data: bytes, wanted: int) -> bytes:
        """``wanted`` bytes of its answer to ``data``. Both directions run at once, so that neither pipe can block the other."""
        writer = threading.Thread(target=self._write, args=(data,), daemon=True)
        writer.start()
        found = self._read(wanted)
        writer.join()
        return found

    def close(self) -> None:
        """End the process. Calling it twice is harmless."""
        if not self._log.closed:
            toolchain.kill_group(self._process)
            self._log.close()

    def finish(self) -> None:
        """Let it end by itself (its input ends), so that it can close what it writes; ended by force where it does not."""
        if self._log.closed:
            return
        assert self._process.stdin is not None
        try:
            self._process.stdin.close()
            self._process.wait(self._stall_limit_s)
        except (BrokenPipeError, subprocess.TimeoutExpired):
            return
        finally:
            self.close()

    def _write(self, data: bytes) -> None:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(data)
            self._process.stdin.flush()
        except (BrokenPipeError, ValueError):
            return  # it died: the reader sees the end of its output and says so

    def _read(self, wanted: int) -> bytes:
        assert self._process.stdout is not None
        found = bytearray()
        with selectors.DefaultSelector() as selector:
            selector.register(self._process.stdout, selectors.EVENT_READ)
            while len(found) < wanted:
                if not selector.select(self._stall_limit_s):
                    self.close()
                    raise ToolFailed(f"{self._what} gave nothing for {self._stall_limit_s:.0f} s and was stopped")
                piece = os.read(self._process.stdout.fileno(), min(wanted - len(found), 1 << 20))
                if not piece:
                    raise ToolFailed(f"{self._what} stopped{self._last_words()}")
                found += piece
        return bytes(found)

    def _last_words(self) -> str:
        self._process.wait()
        self._log.seek(0)
        lines = self._log.read().decode("utf-8", "replace").strip().splitlines()[-toolchain.LAST_LINES :]
        code = self._process.returncode
        how = f" with signal {-code}" if code < 0 else f" with exit code {code}"
        return how + ("; its last lines:\n  " + "\n  ".join(lines) if lines else "")
