"""A figure that cannot lose its unit or forget where it came from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

Source = Literal["estimated", "emulated", "simulated", "synthesized", "measured", "published"]


@dataclass(frozen=True)
class Measurement:
    """``value`` in ``unit`` (an SI symbol such as "s", "J", "B", "1/s", or a count such as "LUT"), and its ``source``.

    estimated: from a formula; emulated: a functional model ran; simulated: a cycle- or gate-level simulation ran;
    synthesized: a tool reported it of a netlist; measured: a clock or a meter read it; published: a paper states it.
    Latency is never "emulated": how fast an emulator runs says nothing of the device.
    """

    value: float
    unit: str
    source: Source

    def __post_init__(self) -> None:
        if self.source not in get_args(Source):
            raise ValueError(f"source {self.source!r} is none of {', '.join(get_args(Source))}")
        if self.source == "emulated" and self.unit == "s":
            raise ValueError("a latency is never emulated: report emulation_rate instead")

    def to_json(self) -> dict[str, float | str]:
        return {"value": self.value, "unit": self.unit, "source": self.source}
