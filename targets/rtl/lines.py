"""Ways to a board, as bytes: a serial port, an SPI device of Linux, and the simulated ones."""

from __future__ import annotations

import array
import fcntl
import os
import select
import struct
import termios
import time
import tty
from abc import ABC, abstractmethod

from gatewright.errors import GatewrightError, UsageError
from gatewright.targets.worker import Worker

WRITE_LIMIT_S = 10.0


class SerialLine:
    """A device file in raw mode: a USB serial port, or the other end of a pseudo-terminal."""

    def __init__(self, port: str, baud: int) -> None:
        speed = getattr(termios, f"B{baud}", None)
        if speed is None:
            raise UsageError(f"{baud} baud is no speed that this system has", hint="compile with {baud=115200}")
        self._fd = -1
        try:
            # Not blocking: a port without a carrier would keep open waiting.
            self._fd = os.open(port, os.O_RDWR | os.O_NOCTTY | os.O_NONBLOCK)
            tty.setraw(self._fd)
            settings = termios.tcgetattr(self._fd)
            settings[2] = (settings[2] | termios.CLOCAL | termios.CREAD) & ~(getattr(termios, "CRTSCTS", 0) | termios.CSTOPB)
            settings[4] = settings[5] = speed
            termios.tcsetattr(self._fd, termios.TCSANOW, settings)
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            termios.tcflush(self._fd, termios.TCIOFLUSH)
        except BlockingIOError:
            self.close()
            raise GatewrightError(f"the serial port {port} is in use by another program", hint="end that one first") from None
        except (OSError, termios.error) as error:
            self.close()
            raise GatewrightError(f"the serial port {port} cannot be used: {error}", hint="give the board's port with --port") from None

    def write(self, data: bytes) -> None:
        deadline = time.monotonic() + WRITE_LIMIT_S + len(data) / 500
        while data:
            left = deadline - time.monotonic()
            if left <= 0 or not select.select([], [self._fd], [], left)[1]:
                raise GatewrightError("the serial port takes nothing any more", hint="is it the board's, and is the board on?")
            try:
                data = data[os.write(self._fd, data) :]
            except BlockingIOError:
                continue
            except OSError as error:
                raise GatewrightError(f"the board went away: {error}") from None

    def read(self, count: int, limit_s: float) -> bytes:
        found, deadline = b"", time.monotonic() + limit_s
        while len(found) < count:
            left = deadline - time.monotonic()
            if left <= 0 or not select.select([self._fd], [], [], left)[0]:
                break
            try:
                piece = os.read(self._fd, count - len(found))
            except BlockingIOError:
                continue
            except OSError as error:
                raise GatewrightError(f"the board went away: {error}") from None
            if not piece:
                raise GatewrightError("the board went away")
            found += piece
        return found

    def flush(self) -> None:
        termios.tcflush(self._fd, termios.TCIFLUSH)

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


class _SpiLine(ABC):
    """SPI gives a byte for every byte: reading is sending zeros."""

    MOST_DRAINED = 1 << 14
    """Bytes: more than any reply has, and an end where the line is stuck."""

    def write(self, data: bytes) -> None:
        self.transfer(data)

    def read(self, count: int, limit_s: float) -> bytes:
        return self.transfer(bytes(count))

    def flush(self) -> None:
        """Have the board say to its end what it began to say to somebody else."""
        for _ in range(0, self.MOST_DRAINED, 64):
            if not any(self.transfer(bytes(64))):
                return

    @abstractmethod
    def transfer(self, data: bytes) -> bytes:
        """Send ``data`` within one selection; what came back."""


class SpiDevice(_SpiLine):
    """A device file of Linux's spidev, /dev/spidev0.0 (Documentation/spi/spidev.rst)."""

    MOST = 4096
    """Bytes of one transfer that spidev takes unless it is told otherwise."""
    _MESSAGE = struct.Struct("=QQIIHBBBBBB")
    _SPI_IOC_MESSAGE_1, _SPI_IOC_WR_MODE = 0x40206B00, 0x40016B01

    def __init__(self, port: str, hz: int) -> None:
        self._hz, self._port, self._fd = hz, port, -1
        try:
            self._fd = os.open(port, os.O_RDWR)
            fcntl.ioctl(self._fd, self._SPI_IOC_WR_MODE, b"\0")
        except OSError as error:
            self.close()
            hint = "give the board's SPI device with --port, such as /dev/spidev0.0"
            raise GatewrightError(f"the SPI device {port} cannot be used: {error}", hint=hint) from None

    def transfer(self, data: bytes) -> bytes:
        if len(data) > self.MOST:
            message = f"a frame of {len(data)} bytes is more than spidev takes at once ({self.MOST})"
            raise GatewrightError(message, hint="compile with {wrapper=uart}")
        out, back = array.array("B", data), array.array("B", bytes(len(data)))
        words = (out.buffer_info()[0], back.buffer_info()[0], len(data), self._hz, 0, 8, 0, 0, 0, 0, 0)
        try:
            fcntl.ioctl(self._fd, self._SPI_IOC_MESSAGE_1, self._MESSAGE.pack(*words))
        except OSError as error:
            raise GatewrightError(f"the SPI device {self._port} does not work: {error}") from None
        return back.tobytes()

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


class SimulatedSpi(_SpiLine):
    """The lines of a board in simulation (``templates/spi.cpp``)."""

    def __init__(self, worker: Worker) -> None:
        self._worker = worker

    def transfer(self, data: bytes) -> bytes:
        return self._worker.exchange(len(data).to_bytes(4, "little") + data, len(data)) if data else b""

    def close(self) -> None:
        self._worker.finish()
