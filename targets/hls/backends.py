"""The vendors' tools that a design can be written for: one row each, and what the rest of the target needs to know of it.

AMD's three take the same C++ (ap_fixed, hls::stream); Quartus, Catapult and oneAPI each have a dialect of ac_fixed. Nothing
here imports hls4ml.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from .network import Tool

Vendor = Literal["amd", "intel"]


@dataclass(frozen=True)
class Backend:
    """One tool's dialect."""

    hls4ml: str
    """hls4ml's name of the backend."""
    header: str
    """Below templates/: our layers in its dialect."""
    vendors: tuple[Vendor, ...]
    """Whose parts it synthesizes for."""
    default_part: str
    """What the vendor's script is told where no device was named (hls4ml's own defaults)."""
    includes: tuple[str, ...]
    """Folders of the artifact that g++ needs besides the artifact itself and ``firmware``."""
    stream: str
    """The C++ class of a stream; empty where streams are pipes."""
    structs: bool = False
    """io_parallel: the top function takes a struct of arrays and returns one."""
    back: str = "convert_data"
    """hls4ml's function from the design's types to doubles."""
    text_weights: bool = False
    """hls4ml writes weights as initialized arrays only; the emulator reads them from text that we add."""
    depthwise: bool = True
    """False: its depthwise convolution is wrong or missing (hls4ml 1.3.0), so a dense one with zeros is written."""

    @property
    def is_amd(self) -> bool:
        """ap_fixed types, AMD's pragmas, AXI."""
        return self.header.startswith("amd/")


_AP, _VU13P = ("firmware/ap_types", "emulation"), "xcvu13p-flga2577-2-e"
_CATAPULT_INCLUDES = ("firmware/ac_types/include", "firmware/ac_math/include", "firmware/ac_simutils/include", "firmware/nnet_utils")

BACKENDS: Mapping[Tool, Backend] = {
    "vitis": Backend("Vitis", "amd/nnet_gatewright.h", ("amd",), _VU13P, _AP, "hls::stream"),
    "vivado": Backend("Vivado", "amd/nnet_gatewright.h", ("amd",), _VU13P, _AP, "hls::stream"),
    "vivadoaccelerator": Backend("VivadoAccelerator", "amd/nnet_gatewright.h", ("amd",), "xc7z020clg400-1", _AP, "hls::stream"),
    "quartus": Backend(
        "Quartus", "intel/nnet_gatewright.h", ("intel",), "Arria10", ("firmware/ac_types",), "stream",
        structs=True, back="convert_data_back", text_weights=True, depthwise=False,
    ),
    "oneapi": Backend(
        "oneAPI", "oneapi/nnet_gatewright.h", ("intel",), "Arria10", ("emulation", "emulation/ac_types"), "",
        text_weights=True, depthwise=False,
    ),
    "catapult": Backend(
        "Catapult", "catapult/nnet_gatewright.h", ("amd", "intel"), "xcku115-flvb2104-2-i", _CATAPULT_INCLUDES, "ac_channel",
        depthwise=False,
    ),
}  # fmt: skip


def tools_for(vendor: str) -> tuple[Tool, ...]:
    """The tools that synthesize for a vendor's parts, the usual one first."""
    return tuple(tool for tool, backend in BACKENDS.items() if vendor in backend.vendors)
