"""Waves as a Value Change Dump (IEEE 1364-2005, clause 18): vectors put together from their bits."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from .network import Array

PERIOD_NS = 10


class Writer:
    """One sample per clock cycle: values as they stand before the rising edge."""

    def __init__(self, path: Path, names: Sequence[str], clock: str) -> None:
        """``names``: of every bit that ``sample`` will be given; ``data[3]`` is bit 3 of ``data``. ``clock``: drawn, not given."""
        self._bits: dict[str, dict[int, int]] = {}
        for place, name in enumerate(names):
            found = re.fullmatch(r"(.*)\[(\d+)\]", name)
            base, bit = (found[1], int(found[2])) if found else (name, 0)
            if base != clock:
                self._bits.setdefault(re.sub(r"\s", "_", base), {})[bit] = place
        self._codes = {name: _code(number + 1) for number, name in enumerate(self._bits)}
        self._last: dict[str, str] = {}
        self._time = 0
        self._file = open(path, "w", encoding="utf-8", newline="\n")  # noqa: SIM115 (closed by close)
        self._file.write("$timescale 1ns $end\n$scope module network $end\n")
        self._file.write(f"$var wire 1 {_code(0)} {clock} $end\n")
        for name, bits in self._bits.items():
            size = max(bits) + 1
            self._file.write(f"$var wire {size} {self._codes[name]} {name}{f' [{size - 1}:0]' if size > 1 else ''} $end\n")
        self._file.write("$upscope $end\n$enddefinitions $end\n")

    def sample(self, values: Array) -> None:
        """0 or 1 per name."""
        lines = [f"#{self._time}", f"0{_code(0)}"]
        for name, bits in self._bits.items():
            text = "".join(str(int(values[bits[bit]])) if bit in bits else "x" for bit in range(max(bits), -1, -1))
            if self._last.get(name) != text:
                self._last[name] = text
                lines.append(f"b{text} {self._codes[name]}" if len(text) > 1 else text + self._codes[name])
        lines += [f"#{self._time + PERIOD_NS // 2}", f"1{_code(0)}"]
        self._file.write("\n".join(lines) + "\n")
        self._time += PERIOD_NS

    def close(self) -> None:
        """Calling it twice is harmless."""
        self._file.close()


def _code(number: int) -> str:
    """A short name: printable ASCII from "!" on."""
    text = ""
    while True:
        text += chr(33 + number % 94)
        number = number // 94 - 1
        if number < 0:
            return text
