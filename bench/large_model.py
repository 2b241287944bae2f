"""A model of 3 GB with external data is loaded, its weights are quantized to 8 bits, and it is saved: how much memory that takes.

    python bench/large_model.py [--gb 3] [--pipeline dynamic] [--folder DIR]

The model is made and removed in DIR (twice its size is needed there). Printed are the peaks of anonymous memory (RssAnon) of
this process and of the one that reads the file, and the seconds; mapped files do not count. Linux only: the kernel has the figures.
"""

from __future__ import annotations

import argparse
import contextlib
import shutil
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper

SIZE = 2048
MIB = 1 << 20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gb", type=float, default=3.0)
    parser.add_argument("--pipeline", default="dynamic")
    parser.add_argument("--folder", type=Path, default=None)
    arguments = parser.parse_args()
    needed = int(arguments.gb * 1e9)
    with tempfile.TemporaryDirectory(dir=arguments.folder, prefix="gatewright-large-") as scratch:
        folder = Path(scratch)
        if shutil.disk_usage(folder).free < 2 * needed + 5 * 10**9:
            raise SystemExit(f"{folder} has not twice {needed:,} bytes free, and some to spare")
        made = make(folder, needed)
        print(f"{made:,} bytes of weights", flush=True)
        import gatewright as gw

        with Peak() as peak:
            for what, work in (
                ("load", lambda model: gw.load(folder / "large.onnx")),
                (arguments.pipeline, lambda model: gw.transform(model, arguments.pipeline)),
                ("save", lambda model: model.save(folder / "small.onnx")),
            ):
                start = time.monotonic()
                model = work(locals().get("model")) or locals()["model"]
                print(f"{what:12s} {time.monotonic() - start:6.1f} s, peak so far {peak.mib()}", flush=True)
        written = sum(file.stat().st_size for file in folder.glob("small*"))
        print(f"saved: {written:,} bytes")


def make(folder: Path, size: int) -> int:
    """A chain of products, its weights in one file beside it; a block of them at a time is in memory."""
    count = max(1, round(size / (4 * SIZE * SIZE)))
    rng = np.random.default_rng(0)
    nodes, weights = [], []
    with open(folder / "large.bin", "wb") as file:
        for i in range(count):
            weight = onnx.TensorProto(name=f"w{i}", data_type=TensorProto.FLOAT, dims=[SIZE, SIZE], data_location=TensorProto.EXTERNAL)
            for key, value in (("location", "large.bin"), ("offset", str(file.tell())), ("length", str(4 * SIZE * SIZE))):
                weight.external_data.add(key=key, value=value)
            file.write(rng.standard_normal((SIZE, SIZE), np.float32).data)
            weights.append(weight)
            nodes.append(helper.make_node("MatMul", [f"x{i}", f"w{i}"], [f"x{i + 1}"]))
    ends = [helper.make_tensor_value_info(f"x{i}", TensorProto.FLOAT, [1, SIZE]) for i in (0, count)]
    graph = helper.make_graph(nodes, "large", ends[:1], ends[1:], weights)
    onnx_model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    (folder / "large.onnx").write_bytes(onnx_model.SerializeToString())
    return count * 4 * SIZE * SIZE


class Peak:
    """The most anonymous memory of this process, and of any below it, looked up every 20 ms."""

    def __enter__(self) -> Peak:
        self._most: dict[str, int] = {"this process": 0, "the reader": 0}
        self._ends = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ends.set()
        self._thread.join()

    def mib(self) -> str:
        return ", ".join(f"{who} {size / MIB:,.0f} MiB" for who, size in self._most.items())

    def _watch(self) -> None:
        while not self._ends.wait(0.02):
            self._note("this process", "self")
            for child in self._below("self"):
                self._note("the reader", child)
                for grandchild in self._below(child):
                    self._note("the reader", grandchild)

    def _below(self, pid: str) -> list[str]:
        found: list[str] = []
        with contextlib.suppress(OSError):
            for task in Path(f"/proc/{pid}/task").iterdir():
                found += (task / "children").read_text().split()
        return found

    def _note(self, who: str, pid: str) -> None:
        with contextlib.suppress(OSError, StopIteration):
            lines = Path(f"/proc/{pid}/status").read_text().splitlines()
            self._most[who] = max(self._most[who], 1024 * int(next(line.split()[1] for line in lines if line.startswith("RssAnon"))))


if __name__ == "__main__":
    main()
