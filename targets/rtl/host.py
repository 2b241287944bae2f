"""The host's side of the serial line (``hw/rtl/serial.v``): frames with a CRC, one request and one reply at a time."""

from __future__ import annotations

import os
import select
import termios
import time
import tty
from collections.abc import Sequence

import numpy as np

from gatewright.errors import GatewrightError, UsageError

from .network import Array, Port
from .simulate import pack, unpack
from .verilog import width

MARK, RUN, IDENTIFY, ERROR = 0x55, ord("R"), ord("I"), ord("E")
TRIES = 4
"""A frame that a line garbles is sent again; so often."""
REPLY_LIMIT_S = 2.0


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


class SerialLine:
    """A device file in raw mode: a USB serial port, or the other end of a pseudo-terminal."""

    def __init__(self, port: str, baud: int) -> None:
        speed = getattr(termios, f"B{baud}", None)
        if speed is None:
            raise UsageError(f"{baud} baud is no speed that this system has", hint="compile with {baud=115200}")
        try:
            self._fd = os.open(port, os.O_RDWR | os.O_NOCTTY)
            tty.setraw(self._fd)
            settings = termios.tcgetattr(self._fd)
            settings[4] = settings[5] = speed
            termios.tcsetattr(self._fd, termios.TCSANOW, settings)
            termios.tcflush(self._fd, termios.TCIOFLUSH)
        except (OSError, termios.error) as error:
            raise GatewrightError(f"the serial port {port} cannot be used: {error}", hint="give the board's port with --port") from None

    def write(self, data: bytes) -> None:
        while data:
            data = data[os.write(self._fd, data) :]

    def read(self, count: int, limit_s: float) -> bytes:
        """Up to ``count`` bytes; fewer where nothing comes for ``limit_s``."""
        found, deadline = b"", time.monotonic() + limit_s
        while len(found) < count:
            left = deadline - time.monotonic()
            if left <= 0 or not select.select([self._fd], [], [], left)[0]:
                break
            try:
                piece = os.read(self._fd, count - len(found))
            except OSError as error:
                raise GatewrightError(f"the board went away: {error}") from None
            if not piece:
                raise GatewrightError("the board went away")
            found += piece
            deadline = time.monotonic() + limit_s
        return found

    def flush(self) -> None:
        termios.tcflush(self._fd, termios.TCIFLUSH)

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


class SerialBoard:
    """A network on a board: arrays in, arrays out, as ``interpret.run``."""

    def __init__(self, inputs: Sequence[Port], outputs: Sequence[Port], port: str, baud: int, identity: str) -> None:
        self._inputs, self._outputs = tuple(inputs), tuple(outputs)
        self._in_bytes, self._out_bytes = -(-width(self._inputs) // 8), -(-width(self._outputs) // 8)
        self._line = SerialLine(port, baud)
        # A frame takes its bits' time both ways; on top of that comes what the computer and its USB take.
        self._limit_s = REPLY_LIMIT_S + 10 * (self._in_bytes + self._out_bytes + 10) / baud
        try:
            found = self._ask(IDENTIFY, b"", 4)[::-1].hex()
        except GatewrightError:
            self._line.close()
            raise
        if found != identity:
            self._line.close()
            message = f"the board at {port} runs another design: it says {found}, this artifact is {identity}"
            raise GatewrightError(message, hint="load this artifact's bitstream")

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
        problem = "it gives no answer"
        for _ in range(TRIES):
            self._line.flush()
            self._line.write(frame(kind, payload))
            head = self._line.read(2, self._limit_s)
            if len(head) == 2 and head[0] == MARK and head[1] == ERROR:
                self._line.read(2, self._limit_s)
                problem = "it received the request damaged"
                continue
            rest = self._line.read(wanted + 2, self._limit_s) if len(head) == 2 else b""
            whole = len(rest) == wanted + 2 and head == bytes([MARK, kind])
            if whole and crc16(head[1:] + rest[:-2]) == int.from_bytes(rest[-2:], "big"):
                return rest[:-2]
            problem = "its answer is damaged" if head else problem
        hint = "check the port, its speed, and that the bitstream is loaded"
        raise GatewrightError(f"the board does not work: {problem}, {TRIES} times", hint=hint)
