"""NVIDIA's compiler where it is installed: NVRTC and ptxas from Python packages (the extra ``cuda``), else nvcc of a CUDA toolkit.

Both are NVIDIA's, under its own licence; nothing of them is part of this project or of what it writes, except that the machine code
is made by them.
"""

from __future__ import annotations

import ctypes
import importlib.util
import re
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from gatewright.errors import ToolFailed, ToolMissing, UnsupportedError
from gatewright.targets.toolchain import Tool

from ..link import TEMPLATES

HEADER = "gatewright_gpu.h"
SOURCE, PTX, CUBIN = "kernels.cu", "kernels.ptx", "kernels.cubin"
FLAGS = ("--std=c++17", "--fmad=true")
HINT = "pip install 'gatewright[cuda]' (NVRTC and ptxas, under NVIDIA's licence), or install a CUDA toolkit with nvcc on the path"

NVCC = Tool(("nvcc",), "NVIDIA's CUDA compiler 12.0 or later", HINT)
PTXAS = Tool(("ptxas",), "NVIDIA's assembler, part of a CUDA toolkit", HINT)


@dataclass(frozen=True)
class Toolkit:
    """A compiler and an assembler."""

    version: str
    ptxas: Path
    nvrtc: Path | None
    """The library; None: ``nvcc`` compiles."""
    nvcc: Path | None
    includes: tuple[Path, ...]

    @classmethod
    def found(cls, what: str) -> Toolkit:
        """What is installed. Raises ToolMissing saying what to install."""
        made = cls.installed()
        if made is None:
            raise ToolMissing(f"{what} needs NVIDIA's compiler, and neither NVRTC with ptxas nor nvcc is installed", hint=HINT)
        return made

    @classmethod
    def installed(cls) -> Toolkit | None:
        """The packages of the extra ``cuda``, else a CUDA toolkit on the path."""
        return cls._packages() or cls._system()

    @classmethod
    def _packages(cls) -> Toolkit | None:
        nvrtc, nvcc, runtime = (package(name) for name in ("cuda_nvrtc", "cuda_nvcc", "cuda_runtime"))
        if nvrtc is None or nvcc is None or runtime is None:
            return None
        library = next(iter(sorted((nvrtc / "lib").glob("libnvrtc.so.*"))), None)
        ptxas = nvcc / "bin" / "ptxas"
        if library is None or not ptxas.is_file():
            return None
        return cls(f"NVRTC {_ptxas_version(ptxas)}", ptxas, library, None, (runtime / "include", nvcc / "include"))

    @classmethod
    def _system(cls) -> Toolkit | None:
        nvcc, ptxas = NVCC.find(), PTXAS.find()
        return None if nvcc is None or ptxas is None else cls(f"nvcc {_ptxas_version(ptxas)}", ptxas, None, nvcc, ())

    def architectures(self) -> tuple[str, ...]:
        """What it compiles for: "sm_75", …"""
        text = _output([str(self.ptxas), "--help"])
        return tuple(dict.fromkeys(re.findall(r"'(sm_\d+)'", text)))

    def assemble(self, folder: Path, arch: str, features: Sequence[str]) -> dict[str, dict[str, int]]:
        """PTX and machine code of the source in ``folder``. By kernel: registers, shared_bytes, stack_bytes, spilled_bytes.

        Raises UnsupportedError for an architecture that the installed version does not know, listing those that it does.
        """
        if arch not in self.architectures():
            raise UnsupportedError(f"{self.version} does not compile for {arch}; it knows {', '.join(self.architectures())}")
        defines = [f"-DGATEWRIGHT_{feature.upper()}" for feature in features]
        options = [*FLAGS, f"--gpu-architecture=compute_{arch.removeprefix('sm_')}", *defines]
        source = (folder / SOURCE).read_text(encoding="utf-8")
        if self.nvrtc is not None:
            ptx = _nvrtc(self.nvrtc, source, [*options, *(f"-I{path}" for path in self.includes)])
            (folder / PTX).write_bytes(ptx)
        else:
            _run([str(self.nvcc), *options, "--ptx", f"-I{TEMPLATES}", SOURCE, "-o", PTX], folder)
        said = _run([str(self.ptxas), f"-arch={arch}", "-v", PTX, "-o", CUBIN], folder)
        return resources(said)


def resources(said: str) -> dict[str, dict[str, int]]:
    """What ``ptxas -v`` says of each kernel."""
    found: dict[str, dict[str, int]] = {}
    kernel = ""
    for line in said.splitlines():
        if match := re.search(r"Function properties for (\w+)", line):
            kernel = match[1]
            found.setdefault(kernel, {})
        elif match := re.search(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", line):
            found[kernel] |= {"stack_bytes": int(match[1]), "spilled_bytes": int(match[2]) + int(match[3])}
        elif match := re.search(r"Used (\d+) registers", line):
            shared = re.search(r"(\d+) bytes smem", line)
            found[kernel] |= {"registers": int(match[1]), "shared_bytes": int(shared[1]) if shared else 0}
    return found


def _nvrtc(library: Path, source: str, options: Sequence[str]) -> bytes:
    """PTX of a source. Raises ToolFailed with the compiler's first error."""
    nvrtc, program = ctypes.CDLL(str(library)), ctypes.c_void_p()
    header = (TEMPLATES / HEADER).read_bytes()

    def text(size: str, get: str) -> bytes:
        length = ctypes.c_size_t()
        getattr(nvrtc, size)(program, ctypes.byref(length))
        buffer = ctypes.create_string_buffer(length.value)
        getattr(nvrtc, get)(program, buffer)
        return buffer.raw[: length.value]

    headers, names = (ctypes.c_char_p * 1)(header), (ctypes.c_char_p * 1)(HEADER.encode())
    if code := nvrtc.nvrtcCreateProgram(ctypes.byref(program), source.encode(), SOURCE.encode(), 1, headers, names):
        raise ToolFailed(f"NVRTC cannot begin: error {code}")
    try:
        words = (ctypes.c_char_p * len(options))(*(option.encode() for option in options))
        if nvrtc.nvrtcCompileProgram(program, len(options), words):
            said = text("nvrtcGetProgramLogSize", "nvrtcGetProgramLog").decode("utf-8", "replace")
            first = next((line for line in said.splitlines() if "error" in line), said.strip()[:300])
            raise ToolFailed(f"NVRTC refuses the kernels: {first}")
        return text("nvrtcGetPTXSize", "nvrtcGetPTX").rstrip(b"\0")
    finally:
        nvrtc.nvrtcDestroyProgram(ctypes.byref(program))


def package(name: str) -> Path | None:
    """The folder of one of NVIDIA's packages, ``nvidia.<name>``, found without importing it."""
    try:
        spec = importlib.util.find_spec(f"nvidia.{name}")
    except ModuleNotFoundError:
        return None
    places = list(spec.submodule_search_locations or ()) if spec is not None else []
    return Path(places[0]) if places else None


def _ptxas_version(ptxas: Path) -> str:
    match = re.search(r"release ([\d.]+)", _output([str(ptxas), "--version"]))
    return match[1] if match else "of unknown version"


def _output(command: Sequence[str]) -> str:
    return subprocess.run(command, capture_output=True, text=True, errors="replace", check=False).stdout


def _run(command: Sequence[str], folder: Path) -> str:
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, errors="replace", check=False)
    if done.returncode:
        lines = [line for line in (done.stderr + done.stdout).splitlines() if "error" in line.lower() or "fatal" in line.lower()]
        raise ToolFailed(f"{Path(command[0]).name} failed: {(lines or [f'exit code {done.returncode}'])[0][:300]}")
    return done.stderr + done.stdout
