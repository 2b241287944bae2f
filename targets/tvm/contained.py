"""Work in forked processes: what crashes, hangs or eats all memory there is a ``Failure`` here, and the work goes on.

A forked process sees everything that this one has made (a graph, its weights), so nothing needs to be sent to it but the
number of an item. It must be forked before this process runs a compiled kernel: TVM's pool of threads does not survive a fork.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from typing import Any

Tell = Callable[[str], None]
"""Says what an item's work is about to do, so that its death is known by that."""


@dataclass(frozen=True)
class Failure:
    """Why an item gave nothing."""

    why: str
    at: str = ""
    """What it last told."""


def each(
    items: Sequence[Any], work: Callable[[Any, Tell], Any], *, processes: int, limit_s: float, deadline: float = float("inf")
) -> Iterator[tuple[int, Any]]:
    """``work(item, tell)`` for every item in ``processes`` forked processes: (position, JSON value or Failure) as they come.

    An item whose work raises, dies or goes on for ``limit_s`` without telling anything is a Failure. Past ``deadline`` (of
    time.monotonic) no item begins, and those under way are stopped without a word.
    """
    waiting = deque(range(len(items)))
    children: list[_Child] = []
    try:
        while waiting or children:
            while waiting and len(children) < processes and time.monotonic() < deadline:
                children.append(_Child(items, work))
            for child in [c for c in children if c.item is None]:
                if waiting and time.monotonic() < deadline:
                    child.begin(waiting.popleft(), limit_s)
                else:
                    child.stop()
                    children.remove(child)
            if not children:
                return
            nearest = min(deadline, *(c.ends for c in children))
            ready = wait([c.pipe for c in children], max(0.0, nearest - time.monotonic()))
            if time.monotonic() >= deadline:
                return
            for child in list(children):
                if child.pipe in ready or time.monotonic() >= child.ends:
                    item, result = child.item, child.read(child.pipe in ready)
                    if result is not None:
                        yield item if item is not None else 0, result[0]
                    if child.dead:
                        children.remove(child)
    finally:
        for child in children:
            child.stop()


@dataclass
class _Child:
    """One forked process, and the item that it is at."""

    items: Sequence[Any]
    work: Callable[[Any, Tell], Any]
    item: int | None = None
    ends: float = float("inf")
    at: str = ""
    dead: bool = False
    pipe: Connection = field(init=False)

    def __post_init__(self) -> None:
        context = multiprocessing.get_context("fork")
        self.pipe, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, self.items, self.work), daemon=True)
        self._process.start()
        theirs.close()

    def begin(self, item: int, limit_s: float) -> None:
        self.item, self.at, self.ends, self._limit_s = item, "", time.monotonic() + limit_s, limit_s
        try:
            self.pipe.send_bytes(json.dumps(item).encode())
        except OSError:
            return  # it died between two items: reading says so

    def read(self, ready: bool) -> tuple[Any] | None:
        """The item's result in a tuple; None where it only told something."""
        if not ready:
            self.stop()
            return (Failure(f"took longer than {self._limit_s:.0f} s", self.at),)
        try:
            kind, value = json.loads(self.pipe.recv_bytes())
        except (EOFError, OSError):
            self._process.join(1.0)
            code = self._process.exitcode or 0
            self.stop()
            why = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
            return (Failure(why, self.at),)
        if kind == "at":
            self.at, self.ends = value, time.monotonic() + self._limit_s
            return None
        self.item, self.ends = None, float("inf")
        return (Failure(value, self.at) if kind == "failed" else value,)

    def stop(self) -> None:
        self.dead = True
        self._process.kill()
        self._process.join()
        self.pipe.close()


def _serve(pipe: Connection, items: Sequence[Any], work: Callable[[Any, Tell], Any]) -> None:
    """The forked process: item by item, until there is nobody to ask for more.

    It has no output: whoever reads this process's must see the end of it when this process dies, whatever goes on here.
    """
    with open(os.devnull, "w") as nowhere:
        for stream in (1, 2):
            os.dup2(nowhere.fileno(), stream)

    def tell(what: str) -> None:
        pipe.send_bytes(json.dumps(["at", what]).encode())

    while True:
        try:
            item = json.loads(pipe.recv_bytes())
        except (EOFError, OSError):
            return
        try:
            answer = ["done", work(items[item], tell)]
        except Exception as error:  # whatever a candidate raises is its own failure
            lines = [line for line in str(error).strip().splitlines() if line.strip()]
            answer = ["failed", (lines[-1] if lines else type(error).__name__)[:300]]
        pipe.send_bytes(json.dumps(answer).encode())
