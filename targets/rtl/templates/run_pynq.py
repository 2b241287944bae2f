"""Runs the network on a board with PYNQ: python3 run_pynq.py IN.npz OUT.npz

IN.npz holds an integer array [samples, …] per input of the network, under the names of ``network.json`` (or in its order, x0, x1 …);
OUT.npz gets one per output. Needs numpy and pynq, nothing of gatewright.
"""

import json
import sys
from pathlib import Path

import numpy as np

HERE = Path(__file__).resolve().parent
BUS_BITS = 64


def bits(port):
    """Width of one element, two's complement where it can be negative."""
    low, high = port["lo"], port["hi"]
    return max(1, (max(high, 0) if low >= 0 else max(high, -low - 1)).bit_length() + (low < 0))


def pack(ports, arrays):
    """Integers [n, …] per port -> uint64 [n, beats], the first element in the lowest bits."""
    flat = [np.asarray(array, np.int64).reshape(len(array), -1) for array in arrays]
    single = [(array[:, :, None] >> np.arange(bits(port)) & 1).reshape(len(array), -1) for port, array in zip(ports, flat, strict=True)]
    found = np.concatenate(single, axis=1)
    padded = np.pad(found.astype(np.uint8), ((0, 0), (0, -found.shape[1] % BUS_BITS)))
    return np.packbits(padded, axis=1, bitorder="little").view("<u8")


def unpack(ports, beats):
    """The inverse: uint64 [n, beats] -> int64 [n, shape of a sample] per port."""
    found = np.unpackbits(np.ascontiguousarray(beats).view(np.uint8), axis=1, bitorder="little").astype(np.int64)
    arrays, start = [], 0
    for port in ports:
        width, size = bits(port), int(np.prod(port["shape"], dtype=np.int64))
        weights = np.int64(1) << np.arange(width, dtype=np.int64)
        if port["lo"] < 0:
            weights[-1] = -weights[-1]
        part = found[:, start : start + size * width].reshape(len(found), size, width) @ weights
        arrays.append(part.reshape(len(found), *port["shape"][1:]))
        start += size * width
    return arrays


def beats_of(ports):
    """Beats of one sample."""
    return -(-sum(bits(port) * int(np.prod(port["shape"], dtype=np.int64)) for port in ports) // BUS_BITS)


def run(network, arrays):
    """Through the DMA, all samples as one packet."""
    from pynq import Overlay, allocate

    overlay = Overlay(str(HERE / "gatewright.bit"))
    data = pack(network["inputs"], arrays)
    sent = allocate(shape=data.shape, dtype=np.uint64)
    got = allocate(shape=(len(data), beats_of(network["outputs"])), dtype=np.uint64)
    sent[:] = data
    overlay.dma.recvchannel.transfer(got)
    overlay.dma.sendchannel.transfer(sent)
    overlay.dma.sendchannel.wait()
    overlay.dma.recvchannel.wait()
    return unpack(network["outputs"], np.array(got))


def main(given, wanted):
    network = json.loads((HERE / "network.json").read_text(encoding="utf-8"))
    with np.load(given) as file:
        arrays = [file[port["value"] if port["value"] in file else f"x{n}"] for n, port in enumerate(network["inputs"])]
    np.savez(wanted, **{f"y{n}": array for n, array in enumerate(run(network, arrays))})


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit("usage: python3 run_pynq.py IN.npz OUT.npz")
    main(sys.argv[1], sys.argv[2])
