"""The host's side of the protocol against lines that misbehave: it answers or says why not, and never hangs."""

from __future__ import annotations

import os
import pty
import threading
import time
import tty
from collections.abc import Callable, Iterator

import numpy as np
import pytest

from gatewright.errors import GatewrightError, UsageError
from gatewright.targets.rtl import host
from gatewright.targets.rtl.host import Board, crc16, frame, receive
from gatewright.targets.rtl.lines import SerialLine, SpiDevice, _SpiLine
from gatewright.targets.rtl.network import Port

IDENTITY = "0123abcd"
IN, OUT = Port("x", (1, 3), "int8", -128, 127), Port("y", (1, 2), "int8", -128, 127)
IDENTIFIED = bytes.fromhex(IDENTITY)[::-1]


def test_crc() -> None:
    assert crc16(b"123456789") == 0x29B1


def reader(data: bytes) -> Callable[[int, float], bytes]:
    """A line on which ``data`` has come, and nothing follows."""
    rest = bytearray(data)

    def read(count: int, limit_s: float) -> bytes:
        found = bytes(rest[:count])
        del rest[:count]
        return found

    return read


GOOD = frame(host.RUN, b"\x07\x09")


@pytest.mark.parametrize(
    ("data", "payload", "problem"),
    [
        (GOOD, b"\x07\x09", ""),
        (b"\x00\xff\x12" + GOOD, b"\x07\x09", ""),  # garbage before the frame
        (b"\x55\x55\x52" + GOOD, b"\x07\x09", ""),  # … with marks in it
        (GOOD[:-1] + bytes([GOOD[-1] ^ 1]) + GOOD, b"\x07\x09", ""),  # a damaged frame, then a good one
        (frame(host.IDENTIFY, b"\x55\x52\x01\x02") + GOOD, b"\x07\x09", ""),  # somebody else's reply
        (GOOD[:-1] + bytes([GOOD[-1] ^ 1]), None, "damaged"),
        (GOOD[:-2], None, "damaged"),
        (b"", None, "no answer"),
        (b"\xff" * 40, None, "is no answer"),
        (frame(host.ERROR), None, "received the request damaged"),
    ],
)
def test_receive(data: bytes, payload: bytes | None, problem: str) -> None:
    got, said = receive(reader(data), host.RUN, 2, 0.5)
    assert got == payload
    assert problem in said


def test_a_line_that_never_stops_ends() -> None:
    started = time.monotonic()
    assert receive(lambda count, limit: b"\x55" * count, host.RUN, 2, 0.2)[0] is None
    assert receive(lambda count, limit: bytes(count), host.RUN, 2, 0.2)[0] is None
    assert time.monotonic() - started < 5


class Scripted:
    """A board on a pseudo-terminal: answers each request by ``answer``, which gets the frame without its mark."""

    def __init__(self, answer: Callable[[bytes], bytes]) -> None:
        self._answer = answer
        self._host, self._board = pty.openpty()
        tty.setraw(self._board)
        self.port = os.ttyname(self._board)
        self._sizes = {host.RUN: 7, host.IDENTIFY: 4}
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        found = b""
        while True:
            try:
                found += os.read(self._host, 100)
            except OSError:
                return
            while len(found) >= 2 and len(found) >= (size := self._sizes.get(found[1], 4)):
                os.write(self._host, self._answer(found[1:size]))
                found = found[size:]

    def close(self) -> None:
        os.close(self._board)
        os.close(self._host)


@pytest.fixture
def scripted() -> Iterator[Callable[[Callable[[bytes], bytes]], Scripted]]:
    made: list[Scripted] = []

    def make(answer: Callable[[bytes], bytes]) -> Scripted:
        made.append(Scripted(answer))
        return made[-1]

    yield make
    for board in made:
        board.close()


def open_board(port: str, patience_s: float = 0.3) -> Board:
    return Board((IN,), (OUT,), SerialLine(port, 115200), 115200, IDENTITY, patience_s=patience_s)


def well(request: bytes) -> bytes:
    """Its first two elements, one more each."""
    if request[0] == host.IDENTIFY:
        return frame(host.IDENTIFY, IDENTIFIED)
    return frame(host.RUN, bytes((byte + 1) % 256 for byte in request[1:3]))


def test_a_board_that_works_behind_noise_and_errors(scripted: Callable[[Callable[[bytes], bytes]], Scripted]) -> None:
    turn = [0]

    def answer(request: bytes) -> bytes:
        turn[0] += 1
        good = well(request)
        return [b"\x00\x55\x07" + good, good[:-1], frame(host.ERROR), good][turn[0] % 4]

    board = open_board(scripted(answer).port)
    (got,) = board.run([np.array([[1, 2, 3], [-5, -1, 0], [7, 8, 9]])])
    assert got.tolist() == [[2, 3], [-4, 0], [8, 9]]
    board.close()


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (lambda request: b"", "no answer, 4 times"),
        (lambda request: b"\xf0\x0d" * 20, "what it sends is no answer"),
        (lambda request: well(request)[:-1] + b"\x00", "its answer is damaged"),
        (lambda request: frame(host.ERROR), "received the request damaged"),
        (lambda request: frame(host.IDENTIFY, bytes(4)), "another design, or one of another version: it says 00000000"),
    ],
)
def test_a_board_that_does_not_work(
    answer: Callable[[bytes], bytes], message: str, scripted: Callable[[Callable[[bytes], bytes]], Scripted]
) -> None:
    started = time.monotonic()
    with pytest.raises(GatewrightError, match=message):
        open_board(scripted(answer).port)
    assert time.monotonic() - started < 20


def test_ports(scripted: Callable[[Callable[[bytes], bytes]], Scripted], tmp_path: object) -> None:
    port = scripted(well).port
    first = SerialLine(port, 115200)
    with pytest.raises(GatewrightError, match="in use by another program"):
        SerialLine(port, 115200)
    first.close()
    with pytest.raises(GatewrightError, match="cannot be used"):
        SerialLine("/dev/no-such-port", 115200)
    with pytest.raises(GatewrightError, match="cannot be used"):
        SerialLine(os.devnull, 115200)
    with pytest.raises(UsageError, match="no speed"):
        SerialLine(port, 12345)
    with pytest.raises(GatewrightError, match="SPI device"):
        SpiDevice(os.devnull, 1_000_000)


class Stuck(_SpiLine):
    """A line that always says the same."""

    def __init__(self, byte: int) -> None:
        self.byte = byte

    def transfer(self, data: bytes) -> bytes:
        return bytes([self.byte]) * len(data)

    def close(self) -> None:
        return


@pytest.mark.parametrize("byte", [0x00, 0xFF, 0x55])
def test_a_stuck_spi_line_ends(byte: int) -> None:
    with pytest.raises(GatewrightError, match="the board does not work"):
        Board((IN,), (OUT,), Stuck(byte), 1_000_000, IDENTITY, patience_s=0.1)
