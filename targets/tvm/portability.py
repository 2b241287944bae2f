"""Which machines run the code for a device: this one, one that qemu imitates, or neither; and the compilers for it."""

from __future__ import annotations

import platform

from gatewright.errors import UnsupportedError
from gatewright.hw.device import Processor, host
from gatewright.targets.toolchain import Tool

_QEMU_CPUS = {
    "cortex-a72": "cortex-a72", "cortex-a76": "cortex-a76", "neoverse-n1": "neoverse-n1", "x86-64-v2": "Nehalem", "x86-64-v3": "Haswell",
}  # fmt: skip
"""By LLVM's name: the CPU that has these instructions and no others, so that one too many is found. Others run on qemu's "max"."""


def architecture(triple: str | None) -> str:
    """The first word of a target triple, as LLVM spells it; this machine's for None."""
    word = (triple or platform.machine()).split("-")[0].lower()
    return {"amd64": "x86_64", "arm64": "aarch64"}.get(word, word)


def is_native(device: Processor) -> bool:
    """Whether the device is of this machine's architecture."""
    return architecture(device.triple) == architecture(None)


def lacking(device: Processor) -> list[str]:
    """The device's instructions that a CPU of its architecture would have to have, and this machine's has not."""
    return sorted(set(device.isa) - set(host().isa))


def require_this_machine(device: Processor) -> None:
    """Raises UnsupportedError where the code would meet an instruction that this CPU does not have."""
    if not is_native(device):
        raise UnsupportedError(
            f"the artifact is for {device.name} ({architecture(device.triple)}); this machine is {architecture(None)}",
            hint="run it on a machine of that kind, or here in mode emulate",
        )
    if missing := lacking(device):
        raise UnsupportedError(
            f"the artifact is for {device.name}, whose instructions this CPU lacks: {', '.join(missing)}; it is assembled and unverified",
            hint="compile it for this machine with -t cpu",
        )


def unverified(device: Processor) -> str | None:
    """Why nobody can tell from this machine that code for the device is right; None where it runs here."""
    if not is_native(device):
        return f"unverified on a CPU: the code is for {device.name} ({architecture(device.triple)}), and here it can only be emulated"
    if missing := lacking(device):
        return f"unverified: the code may use instructions that this machine's CPU lacks ({', '.join(missing)})"
    return None


def cross_prefix(device: Processor) -> str | None:
    """What the names of the device's compilers begin with: "aarch64-linux-gnu"; None where it is of this machine's architecture."""
    return None if is_native(device) else f"{architecture(device.triple)}-linux-gnu"


def linker_for(device: Processor) -> Tool:
    """The C compiler that links a library for the device."""
    prefix = cross_prefix(device)
    if prefix is None:
        return Tool(("cc", "gcc", "clang"), "a C compiler to link with", "install g++, on Debian and Ubuntu: apt install g++")
    return Tool((f"{prefix}-gcc",), f"a C compiler for {architecture(device.triple)}", _apt(f"gcc-{prefix.replace('_', '-')}"))


def cxx_for(device: Processor) -> Tool:
    """The C++ compiler of the example."""
    prefix = cross_prefix(device)
    if prefix is None:
        return Tool(("c++", "g++", "clang++"), "a C++ compiler", "install g++, on Debian and Ubuntu: apt install g++")
    return Tool((f"{prefix}-g++",), f"a C++ compiler for {architecture(device.triple)}", _apt(f"g++-{prefix.replace('_', '-')}"))


def qemu_for(device: Processor) -> Tool:
    """The emulator of one process for the device."""
    arch = architecture(device.triple)
    return Tool((f"qemu-{arch}", f"qemu-{arch}-static"), "qemu's user-mode emulator, 7.2 or later", _apt("qemu-user"))


def require_emulable(device: Processor) -> None:
    """Raises UnsupportedError for code that qemu does not run: it has no AVX-512 and no AMX."""
    if wide := [feature for feature in device.isa if feature.startswith(("avx512", "amx"))]:
        raise UnsupportedError(
            f"the artifact is for {device.name}, and qemu emulates none of {', '.join(wide)}", hint="run it on a machine of that kind"
        )


def qemu_cpu(device: Processor) -> str:
    """What qemu calls the device's CPU."""
    return _QEMU_CPUS.get(device.mcpu or "", "max")


def sysroot(device: Processor) -> str:
    """Where the device's own libc lies here, as Debian's cross compilers install it."""
    prefix = cross_prefix(device)
    return "/" if prefix is None else f"/usr/{prefix}"


def _apt(package: str) -> str:
    return f"on Debian and Ubuntu: apt install {package}"
