"""The host's side of ``hw/rtl/frames.v``: frames with a CRC, one request and one reply at a time, over a line of bytes.

Whatever comes, a request ends: with its reply, or with an error that says what came instead. Bytes before a reply, and replies
that are damaged, are skipped until the next mark; a request without a good reply is sent again.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np

from gatewright.errors import GatewrightError

from .network import Array, Port
from .simulate import pack, unpack
from .verilog import width

MARK, RUN, IDENTIFY, ERROR = 0x55, ord("R"), ord("I"), ord("E")
TRIES = 4
"""A frame that a line garbles is sent again; so often."""
PATIENCE_S = 2.0
"""What the computer and its USB may take on top of a frame's own time."""


class Line(Protocol):
    """A way to the board. See ``lines.py`` for the real ones."""

    def write(self, data: bytes) -> None: ...

    def read(self, count: int, limit_s: float) -> bytes:
        """Up to ``count`` bytes; fewer where nothing comes for ``limit_s``."""

    def flush(self) -> None:
        """Forget what has come and was not read."""

    def close(self) -> None: ...


def crc16(data: bytes) -> int:
    """CRC-16/CCITT-FALSE.

    >>> hex(crc16(b"123456789"))
    '0x29b1'
    """
    crc = 0xFFFF
    for byte in data:
        folded = (crc >> 8) ^ byte
        folded ^= folded >> 4
        crc = ((crc << 8) ^ (folded << 12) ^ (folded << 5) ^ folded) & 0xFFFF
    return crc


def frame(kind: int, payload: bytes = b"") -> bytes:
    body = bytes([kind]) + payload
    return bytes([MARK]) + body + crc16(body).to_bytes(2, "big")


class Board:
    """A network on a board: arrays in, arrays out, as ``interpret.run``."""

    def __init__(
        self, inputs: Sequence[Port], outputs: Sequence[Port], line: Line, baud: int, identity: str, *, patience_s: float = PATIENCE_S
    ) -> None:
        """Asks who is there. Raises GatewrightError where it is nobody, or another design; the line is closed then."""
        self._inputs, self._outputs = tuple(inputs), tuple(outputs)
        self._in_bytes, self._out_bytes = -(-width(self._inputs) // 8), -(-width(self._outputs) // 8)
        self._line = line
        self._limit_s = patience_s + 10 * (self._in_bytes + self._out_bytes + 10) / baud
        try:
            found = self._ask(IDENTIFY, b"", 4)[::-1].hex()
            if found != identity:
                message = f"the board runs another design, or one of another version: it says {found}, this artifact is {identity}"
                raise GatewrightError(message, hint="load this artifact's bitstream, or compile and build again")
        except GatewrightError:
            line.close()
            raise

    def run(self, arrays: Sequence[Array]) -> list[Array]:
        """int64 [n, elements] per input port → int64 [n, elements] per output port."""
        words = -(-self._in_bytes // 4)
        blocks = pack(self._inputs, arrays, words)[:, : self._in_bytes]
        answers = [np.frombuffer(self._ask(RUN, block.tobytes(), self._out_bytes), np.uint8) for block in blocks]
        return unpack(self._outputs, np.stack(answers))

    def close(self) -> None:
        self._line.close()

    def _ask(self, kind: int, payload: bytes, wanted: int) -> bytes:
        """The payload of the reply. Raises GatewrightError where none comes whole."""
        problem = ""
        for _ in range(TRIES):
            self._line.flush()
            self._line.write(frame(kind, payload))
            reply, problem = receive(self._line.read, kind, wanted, self._limit_s)
            if reply is not None:
                return reply
        hint = "check the port, its speed, and that the bitstream is loaded"
        raise GatewrightError(f"the board does not work: {problem}, {TRIES} times", hint=hint)


def receive(read: Callable[[int, float], bytes], kind: int, wanted: int, limit_s: float) -> tuple[bytes | None, str]:
    """The payload of the next good reply of ``kind``, or None and what came instead; in ``limit_s`` at most, whatever comes."""
    sizes = {kind: 4 + wanted, ERROR: 4}
    deadline = time.monotonic() + limit_s
    found, problem = b"", "it gives no answer"
    while True:
        start = found.find(MARK)
        found = found[start:] if start >= 0 else b""
        missing = 4 - len(found)
        if len(found) >= 2:
            size = sizes.get(found[1])
            if size is not None and len(found) >= size:
                if crc16(found[1 : size - 2]) == int.from_bytes(found[size - 2 : size], "big"):
                    return (found[2 : size - 2], "") if found[1] == kind else (None, "it received the request damaged, or does not know it")
                problem = "its answer is damaged"
            if size is None or len(found) >= size:
                found = found[1:]  # no frame begins here: look for the next mark
                continue
            missing = size - len(found)
        left = deadline - time.monotonic()
        piece = read(missing, left) if left > 0 else b""
        if not piece:
            return None, "its answer is damaged" if found else problem
        if problem == "it gives no answer" and any(piece):
            problem = "what it sends is no answer"
        found += piece
