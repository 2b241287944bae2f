"""From the host's driver through the words of the bus to the design and back: the PYNQ driver and the XRT program, both whole.

The board is missing, nothing else: a DMA that hands its bytes to the compiled top function, and XRT's API over the compiled kernel.
"""

from __future__ import annotations

import importlib.util
import subprocess
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hls_kit import cnn, mlp, needs_gxx, noise, quantized

import gatewright as gw
from gatewright.frontend.model import Model
from gatewright.frontend.reference import Reference
from gatewright.targets import toolchain
from gatewright.targets.hls import emulator, lint

pytestmark = needs_gxx

DMA = """#include "firmware/design.cpp"
#include "firmware/design_axi.cpp"
#include <cstdio>
#include <cstdint>
#include <vector>
namespace nnet { bool trace_enabled = false; std::map<std::string, void *> *trace_outputs = NULL; size_t trace_type_size = 8; }
int main() {
    hls::stream<beat_t> taken, given;
    std::vector<uint64_t> words;
    for (uint64_t word; std::fread(&word, 8, 1, stdin) == 1;) words.push_back(word);
    for (size_t i = 0; i < words.size(); i++) {
        beat_t beat;
        beat.data = words[i]; beat.last = i + 1 == words.size();
        taken.write(beat);
    }
    for (size_t sample = 0; sample < words.size() / BEATS_IN; sample++) design_axi(taken, given);
    while (!given.empty()) {
        beat_t beat = given.read();
        if (beat.last != given.empty() || beat.keep != 255) return 7;
        uint64_t word = beat.data.to_uint64();
        std::fwrite(&word, 8, 1, stdout);
    }
}
"""
KERNEL = """#include "firmware/design.cpp"
#include "firmware/design_kernel.cpp"
#include <cstring>
#include <vector>
namespace nnet { bool trace_enabled = false; std::map<std::string, void *> *trace_outputs = NULL; size_t trace_type_size = 8; }
void kernel_on_bytes(const unsigned char *in, unsigned char *out, unsigned samples) {
    std::vector<word_t> taken(samples * BEATS_IN), given(samples * BEATS_OUT);
    for (size_t i = 0; i < taken.size() * 64; i++) taken[i / 64].range(i % 64 * 8 + 7, i % 64 * 8) = in[i];
    design_kernel(taken.data(), given.data(), samples);
    for (size_t i = 0; i < given.size() * 64; i++) out[i] = given[i / 64].range(i % 64 * 8 + 7, i % 64 * 8).to_uint();
}
"""


def compiled(folder: Path, sources: list[Path], *options: str) -> Path:
    """A program of the artifact's C++ and the test's."""
    gxx = toolchain.GXX.require("this test")
    headers = [f"-I{path}" for path in (*emulator.includes(folder),)]
    weights = f'-DWEIGHTS_DIR="{folder}/firmware/weights"'
    command: list[str | Path] = [gxx, "-std=c++17", "-O1", "-w", *options, *headers, weights, *sources, "-o", folder / "program"]
    toolchain.run(command, cwd=folder, log=folder.parent / "gxx.log", what="compiling", time_limit_s=600)
    return folder / "program"


def driver_of(folder: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location("driver", folder / "driver.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Dma:
    """pynq's DMA in front of a program that takes the bytes of a transfer and gives those of the answer."""

    def __init__(self, program: Path) -> None:
        self.program, self.transfers = program, 0
        self.sendchannel = SimpleNamespace(transfer=self.send, wait=lambda: None)
        self.recvchannel = SimpleNamespace(transfer=self.receive, wait=lambda: None)

    def receive(self, buffer: Any) -> None:
        self.waiting = buffer

    def send(self, buffer: Any) -> None:
        answer = subprocess.run([self.program], input=bytes(buffer), capture_output=True, check=True).stdout
        self.waiting[:] = np.frombuffer(answer, np.uint8)
        self.transfers += 1


def buffer(shape: tuple[int, ...], dtype: Any) -> Any:
    return np.zeros(shape, dtype)


Lowered = Callable[[Model, str], Path]


@pytest.fixture
def lowered(tmp_path: Path) -> Lowered:
    return lambda model, target: gw.compile(model, target, out=tmp_path / "art").path


@pytest.mark.parametrize(
    ("model", "options"),
    [(mlp, "bits=8,grid=pow2"), pytest.param(cnn, "bits=6,grid=affine", marks=pytest.mark.slow)],
)
def test_the_pynq_driver_gives_what_ref_gives(
    model: Callable[[], Model], options: str, lowered: Lowered, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = quantized(model(), options)
    folder = lowered(small, "hls:pynq-z2{io=stream}" if model is cnn else "hls:pynq-z2")
    (folder / "dma.cpp").write_text(DMA)
    dma = Dma(compiled(folder, [folder / "dma.cpp"]))
    driver = driver_of(folder)
    design = driver.Design(folder, overlay=SimpleNamespace(dma=dma), allocate=buffer)
    assert driver.verify(design) == 0
    feeds = noise(small, 9, seed=2)
    expected = Reference(small).run(feeds)
    got = design.run_model(feeds)
    assert all(np.array_equal(got[name], expected[name]) for name in expected)
    # In several transfers, too.
    monkeypatch.setattr(driver, "LARGEST_TRANSFER_BYTES", 4 * max(design.sample_bytes("inputs"), design.sample_bytes("outputs")))
    before = dma.transfers
    again = design.run_model(feeds)
    assert dma.transfers - before == 3
    assert all(np.array_equal(again[name], expected[name]) for name in expected)
    # A wrong expectation is seen, and integers out of range are refused.
    vectors = dict(np.load(folder / "vectors.npz"))
    name = next(key for key in vectors if key.startswith("out."))
    np.savez(folder / "vectors.npz", **{**vectors, name: vectors[name] + (np.arange(vectors[name].size) == 3).reshape(vectors[name].shape)})
    assert driver.verify(design) == 1
    port = design.about["inputs"][0]
    with pytest.raises(ValueError, match="takes integers from"):
        design.run({port["name"]: np.full((1, *port["shape"]), port["hi"] + 1)})


@pytest.mark.slow
def test_the_xrt_program_gives_what_ref_gives(lowered: Lowered, tmp_path: Path) -> None:
    small = quantized(cnn(), "bits=8,grid=affine")
    folder = lowered(small, "hls:alveo-u50{io=stream}")
    (folder / "kernel.cpp").write_text(KERNEL)
    call = "-DGATEWRIGHT_KERNEL(i,o,s)=kernel_on_bytes(i,o,s)"
    declared = tmp_path / "declared.h"
    declared.write_text("void kernel_on_bytes(const unsigned char *in, unsigned char *out, unsigned samples);\n")
    options = [call, "-include", str(declared), f"-I{lint.xrt_headers(tmp_path)}"]
    program = compiled(folder, [folder / "host.cpp", folder / "kernel.cpp"], *options)
    said = subprocess.run([program, "x.xclbin", "--verify"], cwd=folder, capture_output=True, text=True, check=False)
    assert said.returncode == 0, said.stdout
    assert ", 0 different" in said.stdout
    vectors = dict(np.load(folder / "vectors.npz"))
    inputs, outputs = ([vectors[key] for key in vectors if key.startswith(side)] for side in ("in.", "out."))
    np.concatenate([a.reshape(len(a), -1) for a in inputs], axis=1).astype(np.int32).tofile(folder / "in.i32")
    subprocess.run([program, "x.xclbin", "in.i32", "out.i32"], cwd=folder, capture_output=True, check=True)
    expected = np.concatenate([a.reshape(len(a), -1) for a in outputs], axis=1)
    assert np.array_equal(np.fromfile(folder / "out.i32", np.int32).reshape(expected.shape), expected)
    text = folder / "tb_data" / "expected.txt"
    text.write_text(text.read_text().replace(" ", " 1", 1))
    said = subprocess.run([program, "x.xclbin", "--verify"], cwd=folder, capture_output=True, text=True, check=False)
    assert said.returncode == 1
    assert ", 1 different" in said.stdout
